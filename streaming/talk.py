"""A speaker's side in Python: texts in, sound out, any number of them over one connection.

    async with Talk("wss://host/v1/live", "nck_...") as talk:
        utterance = await talk.say("The build is green.")
        async for item in utterance:
            ...  # Audio, or an event of the protocol as a dict

A connection that breaks ends all its utterances with `ListenError`; what was said is spoken all the
same, and `Listening(url, token=..., sid=utterance.sid)` goes on where it broke.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from streaming.client import ACK_S, Audio, Event, settle
from streaming.errors import ListenError
from streaming.frames import TICKS_PER_MS, Kind, parse
from streaming.listener import SUBPROTOCOL

OPEN_S = 10.0


class Utterance:
    """One text that is being spoken; iterate over what comes of it, up to its `end`.

    Attributes:
        sid: its session.
        queue: its place when it was accepted, {"pos", "eta_ms"}.
    """

    def __init__(self, sid: str, queue: Event) -> None:
        self.sid = sid
        self.queue = queue
        self.stream: int | None = None
        self.seq = 0
        self.played_ms = 0
        self._items: asyncio.Queue[Audio | Event | ListenError] = asyncio.Queue()
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Audio | Event:
        """Return the next chunk or event.

        Raises:
            ListenError: the connection broke, or the text could not be spoken.
        """
        if self._is_over:
            raise StopAsyncIteration
        item = await self._items.get()
        if isinstance(item, ListenError):
            self._is_over = True
            raise item
        self._is_over = not isinstance(item, Audio) and item["t"] == "end"
        return item

    def put(self, item: Audio | Event | ListenError) -> None:
        """Hand on what came."""
        self._items.put_nowait(item)


class Talk:
    """One connection that texts are spoken over.

    Args:
        url: of the WebSocket, `wss://host/v1/live`.
        token: an API key, or an account token with the scope `gen`.
        codec: what sound comes as, unless `say` names another: "opus" or "pcm".
    """

    def __init__(self, url: str, token: str, *, codec: str = "opus") -> None:
        self._url = url
        self._token = token
        self._codec = codec
        self._reqs = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Event]] = {}
        self._utterances: dict[str, Utterance] = {}
        self._streams: dict[int, Utterance] = {}
        self._said: dict[str, Utterance] = {}  # accepted, and not returned by `say` yet
        self._ws: ClientConnection
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ListenError: there is no such server, or it does not know the token.
        """
        try:
            self._ws = await connect(
                self._url,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,
                max_size=1 << 20,
                open_timeout=OPEN_S,
                close_timeout=2,
            )
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI) as error:
            raise ListenError("connection", f"the server does not answer: {error}") from error
        hello: Event = {"t": "hello", "v": 1, "token": self._token}
        codecs = [self._codec, *({"opus", "pcm"} - {self._codec})]
        try:
            await self._ws.send(json.dumps(hello | {"codecs": codecs}))
            welcome = json.loads(await self._ws.recv())
        except ConnectionClosed as error:
            raise ListenError("connection", "the server closed the connection") from error
        if welcome["t"] == "error":
            await self._ws.close()
            raise ListenError(welcome["code"], welcome["message"])
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._acknowledge())]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection; what was said goes on."""
        await self._ws.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def say(self, text: str, **wishes: Any) -> Utterance:
        """Speak a text; returns once it is accepted.

        Args:
            wishes: `voice`, `emotion`, `speed`, `lang`, `title`, `codec`, as the protocol has them.

        Raises:
            ListenError: it was refused; `code` says why (`rate_limited`: too many at a time).
        """
        accepted = await self._ask({"t": "say", "text": text, **wishes})
        return self._said.pop(str(accepted["sid"]))

    async def control(self, sid: str, op: str, value: Any = None, **where: Any) -> Event:
        """Give an order for a session and return the `ctl` answer; see `Listening.control`."""
        order = {"t": "control", "sid": sid, "op": op, **where}
        return await self._ask(order | ({"value": value} if value is not None else {}))

    async def _ask(self, message: Event) -> Event:
        req = next(self._reqs)
        answer: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._answers[req] = answer
        try:
            await self._ws.send(json.dumps(message | {"req": req}, ensure_ascii=False))
            return await answer
        except ConnectionClosed as error:
            raise ListenError("connection", "the connection broke") from error
        finally:
            del self._answers[req]

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for data in self._ws:
                if isinstance(data, bytes):
                    self._take_frame(data)
                    continue
                self._take_event(event := json.loads(data))
                if event["t"] == "end":  # what has ended still counts among those that are open
                    await self._ws.send(json.dumps({"t": "close", "sid": event["sid"]}))
        broken = ListenError("connection", "the connection broke")
        for utterance in self._utterances.values():
            utterance.put(broken)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(broken)

    def _take_frame(self, data: bytes) -> None:
        header, payload = parse(data)
        utterance = self._streams.get(header.stream)
        if utterance is not None and header.kind is not Kind.END:
            utterance.seq = header.seq
            utterance.played_ms = (header.pts + header.dur) // TICKS_PER_MS
            utterance.put(Audio(header, payload))

    def _take_event(self, event: Event) -> None:
        if event["t"] == "accepted":
            # at once: its first frames may be behind it already
            utterance = Utterance(event["sid"], event["queue"])
            self._utterances[utterance.sid] = self._said[utterance.sid] = utterance
        answer = self._answers.get(event.get("req", 0))
        if answer is not None and event["t"] in ("accepted", "ctl", "error"):
            settle(answer, event)
            return
        found = self._utterances.get(event.get("sid", ""))
        if found is None:
            return
        if event["t"] == "opened":
            found.stream = event["stream"]
            self._streams[event["stream"]] = found
        if event["t"] == "error" and event["code"] != "no_capacity":
            found.put(ListenError(event["code"], event["message"]))
        else:
            found.put(event)
        if event["t"] == "end":
            del self._utterances[found.sid]
            self._streams.pop(found.stream or 0, None)

    async def _acknowledge(self) -> None:
        """Say what has come; it is played as far as we know."""
        while True:
            await asyncio.sleep(ACK_S)
            now = int(time.time() * 1000)
            acks: list[Event] = [
                {"t": "ack", "sid": sid, "seq": one.seq, "play_ms": one.played_ms, "ts": now}
                for sid, one in self._utterances.items()
                if one.stream is not None
            ]
            with contextlib.suppress(ConnectionClosed):
                for message in acks or [{"t": "ping", "ts": now}]:
                    await self._ws.send(json.dumps(message))
