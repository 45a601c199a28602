"""One connection of `notecast.v1` as a state machine: no socket, no clock.

Messages and times go in, actions come out; `server.py` does them. A connection is

    greeting   until the first frame, which must be `hello` and must come within 5 s
    checking   its token has been handed out with `Check`; the answer comes by `granted`
    ready      sessions may be opened
    closed     nothing is answered any more

and what a message does in a state is the table `MESSAGES` below. A client's mistake gets a
non-fatal `error` that names it; only what makes the rest of the talk meaningless closes it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from streaming.errors import TokenError
from streaming.frames import Codec
from streaming.tokens import MAX_TOKEN_CHARS, SKEW_S, Grant

VERSION = 1
SUBPROTOCOL = "notecast.v1"
HELLO_TIMEOUT_S = 5.0
MAX_MESSAGE_BYTES = 16_384
MAX_STREAMS = 8
MAX_FAULTS = 20  # mistakes one connection may make before it is closed
PING_MS = 10_000
CODECS = {"opus": Codec.OPUS, "pcm": Codec.PCM}
AHEAD_MS = {Codec.OPUS: 600_000, Codec.PCM: 20_000}
STATUS = {
    "bad_message": 400,
    "unknown_type": 400,
    "unauthenticated": 401,
    "token_expired": 401,
    "forbidden": 403,
    "not_found": 404,
    "gone": 410,
    "too_large": 413,
    "too_many_streams": 429,
    "unsupported_codec": 415,
    "engine_failed": 502,
    "slow_consumer": 408,
    "internal": 500,
}
# The close code that a fatal error brings.
CLOSE = {
    "bad_message": 4400,
    "unsupported_codec": 4400,
    "unauthenticated": 4401,
    "token_expired": 4401,
    "forbidden": 4403,
    "timeout": 4408,
    "too_large": 4413,
    "version": 4426,
    "slow_consumer": 4488,
    "internal": 4500,
    "drain": 1001,
}
_SID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_MS = 1 << 40


@dataclass(frozen=True, slots=True)
class Start:
    """Where a listener wants to begin: exactly one of the three ways."""

    at: Literal["start", "live"] | None = None
    position: tuple[int, int] | None = None  # go on after it
    ms: int | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Send this JSON message."""

    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Close:
    """Close with `code`; the reason on the wire is `{"code": why, "retry_ms": ...}`."""

    code: int
    why: str
    retry_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """Check this token, then call `granted` or `refused`."""

    token: str


@dataclass(frozen=True, slots=True)
class Open:
    """Begin to send session `sid`; call `left` if that is not possible."""

    req: int | str | None
    sid: str
    codec: Codec
    fallback: bool  # the client can do Opus too
    start: Start
    policy: str
    words: bool
    ahead_ms: int


@dataclass(frozen=True, slots=True)
class Leave:
    """Send nothing more of `sid`."""

    sid: str


@dataclass(frozen=True, slots=True)
class Allow:
    """The client has played to `play_ms` (None: it did not say) and wants `ahead_ms` more."""

    sid: str
    play_ms: int | None = None
    ahead_ms: int | None = None


Action = Send | Close | Check | Open | Leave | Allow


class _Fault(Exception):
    """A message that cannot be followed; becomes an `error`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def error(code: str, message: str, *, fatal: bool = False, **more: Any) -> Send:
    """Return the `error` message of the protocol; `more` are its optional fields."""
    fields = {name: value for name, value in more.items() if value is not None}
    head = {"t": "error", "code": code, "status": STATUS[code], "message": message}
    return Send({**head, **fields, "fatal": fatal})


@dataclass
class Listener:
    """The state of one connection; `now` is always Unix time in seconds."""

    conn: str
    node: str
    connected_at: float
    bearer: str | None = None  # token from the handshake's Authorization header
    state: Literal["greeting", "checking", "ready", "closed"] = "greeting"
    grants: dict[str, Grant] = field(default_factory=dict)  # by link id
    sids: set[str] = field(default_factory=set)
    codecs: list[Codec] = field(default_factory=list)
    faults: int = 0

    def receive(self, data: str | bytes, now: float) -> list[Action]:
        """Take one message of the client."""
        if self.state == "closed":
            return []
        if isinstance(data, bytes):
            return self._fatal("bad_message", "clients send text frames only")
        if len(data) > MAX_MESSAGE_BYTES or len(data.encode(errors="replace")) > MAX_MESSAGE_BYTES:
            return self._fatal("too_large", f"a message may have {MAX_MESSAGE_BYTES} bytes")
        try:
            message = json.loads(data, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return self._fatal("bad_message", "the frame holds no JSON")
        if not isinstance(message, dict) or not isinstance(message.get("t"), str):
            return self._fatal("bad_message", "a message is an object with a type `t`")
        return self._dispatch(message, now)

    def granted(self, grant: Grant, now: float) -> list[Action]:
        """The token of the last `Check` is good and grants this."""
        self.grants[grant.link] = grant
        if self.state == "closed":
            return []
        self.state = "ready"
        return [Send(self._welcome(now))]

    def refused(self, reason: TokenError) -> list[Action]:
        """The token of the last `Check` opens nothing; without another grant the talk ends."""
        if self.grants and self.state == "ready":
            return [error(reason.code, str(reason))]
        return self._fatal(reason.code, str(reason))

    def left(self, sid: str) -> None:
        """Session `sid` is not open any more, or could not be opened."""
        self.sids.discard(sid)

    def revoked(self, link: str) -> list[Action]:
        """A link was switched off."""
        if self.state == "closed" or link not in self.grants:
            return []
        del self.grants[link]
        return self._fatal("forbidden", "the link was revoked")

    def failed(self) -> list[Action]:
        """Something on our side broke."""
        return self._fatal("internal", "the server failed; try again", retry_ms=1000)

    def slow(self, sid: str) -> list[Action]:
        """The client has taken nothing of `sid` for too long."""
        return self._fatal("slow_consumer", "the connection is too slow; resume", sid=sid)

    def drain(self, retry_ms: int) -> list[Action]:
        """The server goes away; `retry_ms` spreads the reconnects."""
        if self.state == "closed":
            return []
        self.state = "closed"
        goaway = Send({"t": "goaway", "retry_ms": retry_ms, "why": "drain"})
        return [goaway, Close(CLOSE["drain"], "drain", retry_ms)]

    def tick(self, now: float) -> list[Action]:
        """Look at the clock; call about once a second."""
        if self.state == "greeting" and now > self.connected_at + HELLO_TIMEOUT_S:
            self.state = "closed"
            return [Close(CLOSE["timeout"], "timeout")]
        if self.state != "ready":
            return []
        old = [link for link, grant in self.grants.items() if now > grant.expires + SKEW_S]
        for link in old:
            del self.grants[link]
        if old and not (self.grants and all(map(self._covers, self.sids))):
            return self._fatal("token_expired", "the link has expired; ask for a new one")
        return []

    def _dispatch(self, message: dict[str, Any], now: float) -> list[Action]:
        method = MESSAGES.get((self.state, message["t"]))
        if method is None and self.state == "greeting":
            return self._fatal("bad_message", "the first message must be `hello`")
        try:
            if method is None:
                raise _Fault("unknown_type", f"no message of type {message['t'][:40]!r} here")
            return method(self, message, now)
        except _Fault as fault:
            self.faults += 1
            if self.faults >= MAX_FAULTS:
                return self._fatal("bad_message", "too many faulty messages")
            req, sid = message.get("req"), message.get("sid")
            req = req if isinstance(req, int | str) and len(str(req)) <= 64 else None
            sid = sid if isinstance(sid, str) and _SID.fullmatch(sid) else None
            return [error(fault.code, str(fault), req=req, sid=sid)]

    def _fatal(self, code: str, text: str, **more: Any) -> list[Action]:
        if self.state == "closed":
            return []
        self.state = "closed"
        close = Close(CLOSE[code], code, more.get("retry_ms"))
        return [error(code, text, fatal=True, **more), close]

    def _hello(self, message: dict[str, Any], now: float) -> list[Action]:
        if message.get("v") != VERSION:
            self.state = "closed"
            return [Close(CLOSE["version"], "version")]
        wished = message.get("codecs", ["opus"])
        if not isinstance(wished, list):
            raise _Fault("bad_message", "`codecs` is a list of names")
        self.codecs = [CODECS[name] for name in wished if isinstance(name, str) and name in CODECS]
        if not self.codecs:
            return self._fatal("unsupported_codec", "this server sends opus and pcm")
        token = message.get("token", self.bearer)
        if token is None:
            return self._fatal("unauthenticated", "`hello` brings a link's token")
        self.state = "checking"
        return [Check(_token(token))]

    def _auth(self, message: dict[str, Any], now: float) -> list[Action]:
        return [Check(_token(message.get("token")))]

    def _open(self, message: dict[str, Any], now: float) -> list[Action]:
        sid = _sid(message)
        if not self._covers(sid):
            raise _Fault("forbidden", "the link is for another session")
        if sid in self.sids:
            raise _Fault("bad_message", "the session is open on this connection already")
        if len(self.sids) >= MAX_STREAMS:
            raise _Fault("too_many_streams", f"{MAX_STREAMS} sessions are open already")
        codec = self._codec(message.get("codec"))
        policy = message.get("policy", "complete")
        if policy not in ("complete", "live"):
            raise _Fault("bad_message", "`policy` is complete or live")
        words = message.get("words", True)
        if not isinstance(words, bool):
            raise _Fault("bad_message", "`words` is true or false")
        ahead_ms = _whole(message, "ahead_ms", default=AHEAD_MS[codec])
        start = _start(message.get("from", {"at": "start"}))
        self.sids.add(sid)
        fallback = Codec.OPUS in self.codecs
        return [Open(_req(message), sid, codec, fallback, start, policy, words, ahead_ms)]

    def _close(self, message: dict[str, Any], now: float) -> list[Action]:
        sid = self._opened(message)
        self.sids.discard(sid)
        return [Leave(sid)]

    def _ack(self, message: dict[str, Any], now: float) -> list[Action]:
        sid = self._opened(message)
        fields = {name: _whole(message, name, default=0) for name in ("play_ms", "seq", "buf_ms")}
        play_ms = fields["play_ms"] if "play_ms" in message else None
        return [Allow(sid, play_ms=play_ms), *self._ping(message, now)]

    def _flow(self, message: dict[str, Any], now: float) -> list[Action]:
        sid = self._opened(message)
        if "ahead_ms" not in message:
            raise _Fault("bad_message", "`flow` names `ahead_ms`")
        return [Allow(sid, ahead_ms=_whole(message, "ahead_ms", default=0))]

    def _ping(self, message: dict[str, Any], now: float) -> list[Action]:
        ts = message.get("ts")
        if not (ts is None or (isinstance(ts, int | float) and abs(ts) < _MAX_MS << 13)):
            raise _Fault("bad_message", "`ts` is a number")
        return [Send({"t": "pong", "ts": ts, "now": int(now * 1000)})]

    def _codec(self, name: object) -> Codec:
        if name is None:
            return self.codecs[0]
        if not isinstance(name, str) or name not in CODECS:
            raise _Fault("unsupported_codec", "this server sends opus and pcm")
        return CODECS[name]

    def _opened(self, message: dict[str, Any]) -> str:
        sid = _sid(message)
        if sid not in self.sids:
            raise _Fault("not_found", "the session is not open on this connection")
        return sid

    def _covers(self, sid: str) -> bool:
        return any(grant.covers(sid) for grant in self.grants.values())

    def _welcome(self, now: float) -> dict[str, Any]:
        grants = [
            {"sid": grant.sid, "role": grant.role, "exp": grant.expires}
            for grant in self.grants.values()
        ]
        return {
            "t": "welcome",
            "v": VERSION,
            "conn": self.conn,
            "node": self.node,
            "now": int(now * 1000),
            "role": grants[-1]["role"],
            "grants": grants,
            "codecs": list(CODECS),
            "limits": {"streams": MAX_STREAMS},
            "ping_ms": PING_MS,
        }


MESSAGES: dict[tuple[str, str], Callable[[Listener, dict[str, Any], float], list[Action]]] = {
    ("greeting", "hello"): Listener._hello,
    ("ready", "auth"): Listener._auth,
    ("ready", "open"): Listener._open,
    ("ready", "close"): Listener._close,
    ("ready", "ack"): Listener._ack,
    ("ready", "flow"): Listener._flow,
    ("ready", "ping"): Listener._ping,
}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _token(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TOKEN_CHARS:
        raise _Fault("bad_message", f"`token` is a text of up to {MAX_TOKEN_CHARS} characters")
    return value


def _sid(message: dict[str, Any]) -> str:
    sid = message.get("sid")
    if not isinstance(sid, str) or not _SID.fullmatch(sid):
        raise _Fault("bad_message", "`sid` names a session")
    return sid


def _req(message: dict[str, Any]) -> int | str | None:
    req = message.get("req")
    if req is None or (isinstance(req, int | str) and len(str(req)) <= 64):
        return req
    raise _Fault("bad_message", "`req` is a number or a short text")


def _whole(message: dict[str, Any], name: str, *, default: int) -> int:
    """A time or count: a number from 0 on; fractions are cut off."""
    value = message.get(name, default)
    if isinstance(value, float) and math.isfinite(value):
        value = int(value)
    if type(value) is not int or not 0 <= value < _MAX_MS:
        raise _Fault("bad_message", f"`{name}` is a number from 0 on")
    return value


def _start(value: object) -> Start:
    if isinstance(value, dict):
        if (at := value.get("at")) in ("start", "live"):
            return Start(at=at)
        if "ms" in value:
            return Start(ms=_whole(value, "ms", default=0))
        seq = value.get("seq")
        if type(seq) is int and -1 <= seq < 1 << 32:
            return Start(position=(seq, _whole(value, "k", default=0)))
    raise _Fault("bad_message", '`from` is {"at": "start" or "live"}, {"seq", "k"} or {"ms"}')
