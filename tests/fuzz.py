"""Random and mutated frames and messages against live listening.

    python -m tests.fuzz [--count 100000] [--seed N]

Half of them go to the state machine and the parsers, half through real sockets to a real gateway.
What may come back are the documented errors and close codes, and nothing may be left behind: no
connection, no lease, no memory. A failure prints the seed that repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import random
import struct
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

from streaming.chunk_log import MemoryLog
from streaming.errors import BadFrame, BadToken, TokenError
from streaming.frames import Codec, Header, parse
from streaming.gateway import Gateway
from streaming.limits import Limits, Rate
from streaming.listener import CLOSE, STATUS, Check, Close, Listener, Open, Send
from streaming.orders import Order, Say
from streaming.tokens import Grant
from tests.streaming.speaking import RING, SID, book, create, running, speak, token

# RFC 6455's own: normal, going away, protocol error, no UTF-8, too large for any answer.
LIBRARY_CLOSES = {1000, 1001, 1002, 1007, 1009}
ANSWERS = {"welcome", "pong", "error", "opened", "queued", "caught_up", "accepted", "ctl"}
LEAK_BYTES = 2 << 20
FRAMES_PER_CONNECTION = 60

VECTORS = [
    "4e110205a1b2c3d4000300110000032c000000000076f2000000078019aabbcc020003f8fffe0003f8fffe",
    "4e110100a1b2c3d4000300110000032d000000000076f9800000000819aabc9400000100ffffff7f",
    "4e130000a1b2c3d4000300110000032e000000000076f9880000000019aabc95",
]
GOOD: list[dict[str, Any]] = [
    {"t": "hello", "v": 1, "token": "nc1.x.y", "codecs": ["opus"], "client": {"id": "a"}},
    {"t": "auth", "token": "nc1.x.y"},
    {"t": "open", "sid": SID, "from": {"at": "start"}, "policy": "live", "ahead_ms": 500},
    {"t": "open", "sid": SID, "codec": "pcm", "from": {"seq": 3, "k": 0}, "words": False},
    {"t": "close", "sid": SID},
    {"t": "ack", "sid": SID, "seq": 1, "play_ms": 5, "buf_ms": 9, "under": {"n": 0, "ms": 0}},
    {"t": "flow", "sid": SID, "ahead_ms": 0},
    {"t": "ping", "ts": 1},
    {"t": "control", "req": 1, "sid": SID, "op": "speed", "value": 1.2, "at": "next"},
    {"t": "control", "req": "x", "sid": SID, "op": "emotion", "value": {"vector": [0] * 8}},
    {"t": "control", "sid": SID, "op": "skip", "value": 3, "play_ms": 10},
    {"t": "say", "req": 2, "text": "Hello.", "voice": "v", "lang": "en", "open": False},
]
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, 1e308, -1e308, 0.5, "", "\0", "\ud800",
    "é" * 300, "x" * 2100, [], {}, [[]] * 9, {"a": {"b": []}}, SID, "*", "nc1.", "opus", "start",
]  # fmt: skip
BROKEN = ["", "{", "[" * 12_000, '{"t":', "null", "3", '{"t":NaN}', '{"t":"ping"}x', "x" * 17_000]
FIELDS = sorted({name for message in GOOD for name in message} | {"k", "e", "p", "w"})


class Failed(AssertionError):
    """Something came back, or stayed, that must not."""


def message(chance: random.Random) -> str:
    """A message: good, with odd fields, or broken."""
    kind = chance.random()
    if kind < 0.01:
        return chance.choice(BROKEN)
    fields = dict(chance.choice(GOOD))
    while kind < 0.75:
        name, odd = chance.choice(FIELDS), chance.choice(ODD)
        if chance.random() < 0.2:
            fields.pop(name, None)
        elif isinstance(inner := fields.get(name), dict) and inner:
            fields[name] = {**inner, chance.choice(list(inner)): odd}
        else:
            fields[name] = odd
        kind += chance.random()
    text = json.dumps(fields)
    if chance.random() < 0.03:
        return mutated(text.encode(), chance).decode(errors="replace")
    return text


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` with some bytes changed, left out, doubled or put in."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0 if at < len(changed):
                changed[at] = chance.randrange(256)
            case 1:
                del changed[at : at + chance.randint(1, 4)]
            case 2:
                changed[at:at] = changed[at : at + 8]
            case _:
                changed[at:at] = chance.randbytes(chance.randint(1, 4))
    return bytes(changed)


def websocket_frame(body: bytes, chance: random.Random, wild: float = 0.02) -> bytes:
    """A client's frame around `body`, sometimes against the rules."""
    opcode, first, mask, size = 1, 0x80, 0x80, len(body)
    if chance.random() < wild:
        match chance.randrange(4):
            case 0:
                opcode = chance.randrange(16)
            case 1:
                first = chance.choice([0, 0xC0, 0xF0])  # fragments, reserved bits
            case 2:
                mask = 0
            case _:
                size += chance.randint(1, 9)  # the next frame's bytes belong to this one
    if size < 126:
        head = bytes([first | opcode, mask | size])
    elif size < 1 << 16:
        head = struct.pack(">BBH", first | opcode, mask | 126, size)
    else:
        head = struct.pack(">BBQ", first | opcode, mask | 127, size)
    key = chance.randbytes(4) if mask else b""
    spread = (key * (len(body) // 4 + 1))[: len(body)] if mask else bytes(len(body))
    return head + key + bytes(a ^ b for a, b in zip(body, spread, strict=True))


# the state machine and the parsers, without a socket


def ready(chance: random.Random) -> Listener:
    """A state machine in any of its states."""
    listener = Listener(conn="c", node="n", connected_at=0.0)
    if chance.random() < 0.9:
        listener.receive('{"t":"hello","v":1,"token":"x","codecs":["opus","pcm"]}', 0.0)
        role = chance.choice(["owner", "listener", "admin"])
        sid, scopes = chance.choice([(SID, ()), ("*", ("gen",))])
        listener.granted(Grant("lnk", role, 2000, sid=sid, scopes=scopes), 0.0)
    return listener


def try_state_machine(chance: random.Random, count: int) -> int:
    """Give it `count` messages; every action must be a documented one."""
    listener, now = ready(chance), 0.0
    for _ in range(count):
        if listener.state == "closed" or chance.random() < 0.01:
            listener, now = ready(chance), 0.0
        now += chance.choice([0.0, 0.04, 1.0])
        data: Any = message(chance)
        if chance.random() < 0.01:
            data = chance.randbytes(9)
        quick = isinstance(data, str) and chance.random() < 0.5
        actions = listener.receive_quick(data, now) if quick else listener.receive(data, now)
        for action in [*(actions or []), *listener.tick(now)]:
            check_action(action, listener, chance, now)
    return count


def check_action(action: Any, listener: Listener, chance: random.Random, now: float) -> None:
    """Whether an action is one that may come."""
    if isinstance(action, Send):
        check_answer(json.loads(json.dumps(action.message)))
    elif isinstance(action, Close):
        if action.code not in CLOSE.values() or listener.state != "closed":
            raise Failed(f"{action} in state {listener.state}")
    elif isinstance(action, Check):
        listener.refused(BadToken("no"))
    elif isinstance(action, Open):
        if chance.random() < 0.3:
            listener.left(action.sid, now)
    elif isinstance(action, Order | Say):
        json.dumps(action.wish.value if isinstance(action, Order) else action.text)


def check_answer(answer: dict[str, Any]) -> None:
    """Whether an answer is a documented one."""
    if answer["t"] == "error" and STATUS.get(answer["code"]) != answer["status"]:
        raise Failed(f"an error that is not documented: {answer}")


def try_frames(chance: random.Random, count: int) -> int:
    """Mutated audio frames are refused as such, or read."""
    for _ in range(count):
        data = mutated(bytes.fromhex(chance.choice(VECTORS)), chance)
        with contextlib.suppress(BadFrame):
            header, payload = parse(data)
            if not isinstance(header, Header) or header.codec not in Codec or len(payload) > 99:
                raise Failed(f"{data.hex()} was read as {header}")
    return count


def try_tokens(chance: random.Random, count: int) -> int:
    """No mutated token grants anything."""
    good = token()
    for _ in range(count):
        bad = mutated(good.encode(), chance).decode(errors="replace")
        with contextlib.suppress(TokenError):
            RING.verify(bad, now=time.time())
            if bad != good:
                raise Failed(f"{bad} was believed")
    return count


# through sockets


class Attack:
    """Connections to one gateway, and what they got."""

    def __init__(self, chance: random.Random, port: int) -> None:
        self.closes: Counter[int] = Counter()
        self._chance = chance
        self._port = port

    async def connect(self, frames: int) -> int:
        """One connection that sends up to `frames`; gives how many."""
        chance = self._chance
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        request = (
            "GET /v1/live HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: notecast.v1\r\n\r\n"
        ).encode("ascii")
        if chance.random() < 0.05:
            request = mutated(request, chance)
        hello = json.dumps({"t": "hello", "v": 1, "token": token(), "codecs": ["opus", "pcm"]})
        reading = asyncio.create_task(self._read(reader))
        sent = 0
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            if chance.random() < 0.9:
                writer.write(websocket_frame(hello.encode(), chance, wild=0))
            while sent < frames and not reading.done():
                data = self._bytes()
                cut = chance.randrange(len(data) + 1) if chance.random() < 0.1 else len(data)
                writer.write(data[:cut])
                if cut < len(data):
                    await asyncio.sleep(0)
                    writer.write(data[cut:])
                sent += 1
                if sent % 8 == 0:
                    await writer.drain()
                    await asyncio.sleep(0)
            writer.write(b"\x88\x80" + bytes(4))  # close, masked, without a code
            await writer.drain()
        if chance.random() < 0.2:
            writer.transport.abort()
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(1):  # a frame that lies about its size eats the close
                await reading
        reading.cancel()
        writer.transport.abort()
        return sent

    def _bytes(self) -> bytes:
        chance = self._chance
        kind = chance.random()
        if kind < 0.002:
            return chance.randbytes(chance.randint(1, 200))
        frame = websocket_frame(message(chance).encode(errors="replace"), chance)
        return mutated(frame, chance) if kind < 0.02 else frame

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Read the server's frames to the end, and look at each."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 101"):
                return
            while True:
                first, size = await reader.readexactly(2)
                if size > 125:
                    size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8))
                self._look(first, await reader.readexactly(size))

    def _look(self, first: int, body: bytes) -> None:
        if first == 0x81:
            answer = json.loads(body)
            check_answer(answer)
            if answer["t"] not in ANSWERS and "p" not in answer:
                raise Failed(f"an answer that is not documented: {answer}")
        elif first == 0x88 and body:
            code = int.from_bytes(body[:2])
            self.closes[code] += 1
            if code not in {*LIBRARY_CLOSES, *CLOSE.values()}:
                raise Failed(f"a close code that is not documented: {code} {body[2:]!r}")
        elif first not in (0x82, 0x88, 0x89, 0x8A):
            raise Failed(f"a frame that no client can read: {first:#x}")


async def attack(chance: random.Random, count: int) -> Counter[int]:
    """Send `count` frames over many connections; gives the close codes."""
    log = MemoryLog()
    session = create(log)
    for seg in range(3):
        speak(session, seg, pcm=True)
    session.end("done")
    limits = Limits(
        per_user=10**6, per_link=10**6, per_address=10**6, messages=Rate(1e6, 1e6), idle_s=9.0
    )
    gate = Gateway(log, book(), limits=limits)
    async with running(gate) as url:
        made = Attack(chance, int(url.split(":")[2].split("/")[0]))
        sent = 0
        while sent < count:
            tried = (made.connect(chance.randint(1, FRAMES_PER_CONNECTION)) for _ in range(20))
            sent += sum(await asyncio.gather(*tried))
        async with asyncio.timeout(20):
            while gate.peers:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.05)
        if gate.counters.errors:
            raise Failed(f"{gate.counters.errors} faults of the server; see its log")
        if gate.admission._held or gate.ledger._leases:  # type: ignore[attr-defined]
            raise Failed("leases were not given back")
        if any(channel.subscriptions for channel in gate.hub._channels.values()):
            raise Failed("somebody is still listened for")
    return made.closes


def grown_bytes(work: Callable[[], object]) -> int:
    """Memory that is still held after `work`."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def fuzz(seed: int, count: int) -> Counter[int]:
    """Try `count` messages and frames; gives the close codes that came over sockets."""
    chance = random.Random(seed)
    half = count // 2
    try_frames(chance, half // 5)
    try_tokens(chance, half // 10)
    try_state_machine(chance, half - half // 5 - half // 10)
    closes = asyncio.run(attack(chance, half // 2))
    # The first half has filled every cache there is; the second must leave nothing.
    grown = grown_bytes(lambda: closes.update(asyncio.run(attack(chance, half // 2))))
    if grown > LEAK_BYTES:
        raise Failed(f"{grown >> 10} KiB are still held after the last connection")
    return closes


def say(line: str) -> None:
    """Tell whoever runs it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run it; 1 if something failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Fuzz live listening."
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    args = parser.parse_args()
    say(f"seed {args.seed}")
    began = time.monotonic()
    try:
        closes = fuzz(args.seed, args.count)
    except (Failed, AssertionError) as error:
        say(f"FAILED: {error}\nrepeat with --seed {args.seed} --count {args.count}")
        return 1
    codes = ", ".join(f"{code} x {times}" for code, times in sorted(closes.items()))
    say(f"{args.count} in {time.monotonic() - began:.0f} s, nothing left; closes: {codes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
