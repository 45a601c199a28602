"""The worker that speaks: claims the best due episodes, as many at once as the engine has
slots.

Threads: the *claimer* looks into SQL when a wake-up rings, when a slot comes free, and every
`look_s` without any message; the *lease* thread renews what is owned, and stops renewing when the
engine stands still; the *orders* thread brings what is ordered to the episodes it is for; each
episode has a thread that conducts it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from engine.engine import Engine
from engine.utterance import Utterance
from pipeline import leases
from pipeline.control import Command
from pipeline.database import Database
from pipeline.errors import DatabaseUnavailable, LostLease
from pipeline.leases import Claim
from pipeline.settings import Settings

log = logging.getLogger(__name__)

EXIT_HUNG = 70
_MARGIN_S = 3.0  # leave before the lease ends on our clock, by at most a fifth of it
_CLAIM_AT_ONCE = 8
_INTERRUPTED_S = 2.0  # to hand over what could not reach the end of its sentence


class Held:
    """An episode this worker owns, until told otherwise; shared with the lease thread."""

    def __init__(self, claim: Claim, lease_s: float) -> None:
        self.claim = claim
        self._sure_s = lease_s - min(_MARGIN_S, lease_s / 5)
        self._since = time.monotonic()
        self._deadline = self._since + self._sure_s
        self._is_lost = False
        self._is_draining = False
        self._utterance: Utterance | None = None
        self._orders: list[Command] = []
        self._ordering = threading.Lock()
        self._hear: Callable[[], None] | None = None
        self.heard = 0  # number of the last order that came

    @property
    def is_lost(self) -> bool:
        """Somebody else owns the episode now, or may soon."""
        return self._is_lost or time.monotonic() > self._deadline

    @property
    def is_draining(self) -> bool:
        """The worker wants to stop: hand the episode over after this sentence."""
        return self._is_draining

    def check(self) -> None:
        """Raise LostLease when this worker must not write for the episode any more."""
        if self.is_lost:
            raise LostLease(f"lost episode {self.claim.episode_id} at fence {self.claim.fence}")

    def now_ms(self) -> int:
        """The database's clock, as far as this process can tell without asking."""
        return self.claim.claimed_ms + int((time.monotonic() - self._since) * 1000)

    def watch(self, utterance: Utterance | None) -> None:
        """Cancel this speech when the lease is lost."""
        self._utterance = utterance
        if self._is_lost and utterance is not None:
            utterance.cancel()

    @property
    def order(self) -> Command | None:
        """The oldest order that has not been followed."""
        orders = self._orders
        return orders[0] if orders else None

    def deliver(self, commands: list[Command], *, head: int = 0) -> None:
        """Orders came, up to number `head`; called on any thread."""
        with self._ordering:
            new = [one for one in commands if one.number > self.heard]
            self._orders = [*self._orders, *new]
            self.heard = max(self.heard, head, *(one.number for one in new))
        hear = self._hear
        if hear is not None and self._orders:
            hear()

    def followed(self, command: Command) -> None:
        """This order is dealt with."""
        with self._ordering:
            self._orders = [one for one in self._orders if one.number != command.number]

    def on_orders(self, hear: Callable[[], None] | None) -> None:
        """Call `hear` when an order comes, on the thread that brings it."""
        self._hear = hear

    def stop_speech(self) -> None:
        """Cancel the speech that is watched, so that its reader looks for orders."""
        utterance = self._utterance
        if utterance is not None:
            utterance.cancel()

    def renewed(self, asked_at: float) -> None:
        """The lease was prolonged by a statement sent at `asked_at` (monotonic)."""
        self._deadline = asked_at + self._sure_s

    def drain(self) -> None:
        """Ask for a hand-over at the end of the sentence."""
        self._is_draining = True

    def interrupt(self) -> None:
        """There is no time for the end of the sentence: hand over now."""
        self._is_draining = True
        self.stop_speech()

    def lose(self) -> None:
        """The lease is gone: stop the speech at its next step."""
        self._is_lost = True
        self.stop_speech()


class Speaker:
    """Claims and conducts episodes until drained.

    Args:
        produce: speaks one claimed episode to its end; must return quietly on LostLease.
        worker_id: this incarnation's row.
        read_orders: gives the orders for an episode with numbers above one.
    """

    def __init__(
        self,
        database: Database,
        engine: Engine,
        produce: Callable[[Held], None],
        settings: Settings,
        worker_id: str,
        *,
        read_orders: Callable[[str, int], list[Command]] = lambda _episode, _after: [],
    ) -> None:
        self._database = database
        self._engine = engine
        self._produce = produce
        self._settings = settings
        self._id = worker_id
        self._slots = engine.info().slots
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()
        self._bell = threading.Event()
        self._is_draining = False
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(self._slots, thread_name_prefix="episode")
        self._read_orders = read_orders
        self._ordered: SimpleQueue[str | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._claim_forever, name="claimer", daemon=True),
            threading.Thread(target=self._renew_forever, name="lease", daemon=True),
            threading.Thread(target=self._hear_orders, name="orders", daemon=True),
        ]

    def start(self) -> None:
        """Begin to claim."""
        for thread in self._threads:
            thread.start()
        self.wake()

    def wake(self) -> None:
        """Something may be due; returns at once."""
        self._bell.set()

    def order_came(self, episode_id: str, *, is_stop: bool = False) -> None:
        """Something was ordered for an episode; returns at once."""
        held = self._held.get(episode_id)
        if held is None:
            return
        if is_stop:
            held.lose()  # the row is cancelled already
        else:
            self._ordered.put(episode_id)

    def drain(self, timeout_s: float) -> None:
        """Claim no more; let each episode finish its sentence and hand it over; then stop."""
        self._is_draining = True
        self._bell.set()
        claimer = self._threads[0]
        if claimer.is_alive():
            claimer.join()  # what it is claiming at this moment must be handed over too
        with self._lock:
            held = list(self._held.values())
        for one in held:
            one.drain()
        self._wait_until_free(timeout_s)
        for one in list(self._held.values()):
            one.interrupt()
        self._wait_until_free(_INTERRUPTED_S)
        for one in list(self._held.values()):
            one.lose()
        self._pool.shutdown(wait=True)
        self._stopped.set()
        self._ordered.put(None)

    def _wait_until_free(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._held and time.monotonic() < deadline:
            time.sleep(0.02)

    def _claim_forever(self) -> None:
        while not self._is_draining:
            self._bell.wait(self._settings.look_s)
            self._bell.clear()
            try:
                while not self._is_draining and self._claim_some():
                    pass
            except DatabaseUnavailable as error:
                log.warning("claiming waits: %s", error)

    def _claim_some(self) -> bool:
        took = False
        for queue in ("realtime", "batch", "quarantine"):
            limit = min(self._room(queue), _CLAIM_AT_ONCE)
            if limit <= 0 or not leases.has_due(self._database, (queue,)):
                continue
            asked_at = time.monotonic()
            for claim in leases.claim(
                self._database,
                self._id,
                queue=queue,
                limit=limit,
                lease_ms=self._settings.lease_ms,
            ):
                held = Held(claim, self._settings.lease_ms / 1000)
                held.renewed(asked_at)
                with self._lock:
                    self._held[claim.episode_id] = held
                self._pool.submit(self._conduct, held)
                took = True
        return took

    def _room(self, queue: str) -> int:
        """How many episodes of a queue may join now.

        A quarter of the slots stays free for those who wait while batch work runs. A suspect runs
        alone of its kind, so that the next crash names it.
        """
        with self._lock:
            free = self._slots - len(self._held)
            if queue == "quarantine":
                alone = all(held.claim.queue != "quarantine" for held in self._held.values())
                return min(free, 1) if alone else 0
        return free - self._slots // 4 if queue == "batch" else free

    def _conduct(self, held: Held) -> None:
        try:
            self._produce(held)
        except Exception:
            log.exception("conducting failed", extra={"episode": held.claim.episode_id})
        finally:
            with self._lock:
                self._held.pop(held.claim.episode_id, None)
            self.wake()

    def _hear_orders(self) -> None:
        while (episode_id := self._ordered.get()) is not None:
            held = self._held.get(episode_id)
            if held is None:
                continue
            try:
                orders = self._read_orders(episode_id, held.heard)
            except DatabaseUnavailable as error:
                log.warning("orders wait for the next renewal: %s", error)
                continue
            held.deliver(orders)

    def _renew_forever(self) -> None:
        steps, moved_at = self._engine.steps, time.monotonic()
        every_s = self._settings.renew_ms / 1000
        while not self._stopped.wait(every_s):
            if self._engine.steps != steps or not self._engine.in_flight:
                steps, moved_at = self._engine.steps, time.monotonic()
            standstill_s = time.monotonic() - moved_at
            if standstill_s > self._settings.hung_s:
                log.critical("the engine stands still, leaving", extra={"seconds": standstill_s})
                os._exit(EXIT_HUNG)
            if standstill_s <= every_s * 2:
                self._renew()

    def _renew(self) -> None:
        with self._lock:
            mine = dict(self._held)
        asked_at = time.monotonic()
        try:
            kept = leases.renew(self._database, self._id, mine, lease_ms=self._settings.lease_ms)
        except DatabaseUnavailable as error:
            # speech goes on: each Held knows by itself when its lease runs out
            log.warning("leases not renewed: %s", error)
            return
        for episode_id, held in mine.items():
            now = kept.get(episode_id)
            if now is not None and now.fence == held.claim.fence:
                held.renewed(asked_at)
                if now.command_head > held.heard:
                    self.order_came(episode_id)  # its signal was lost
            elif episode_id in self._held:
                log.info("episode lost", extra={"episode": episode_id})
                held.lose()
