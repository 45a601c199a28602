"""One connection of `notecast.v1` as a state machine: no socket, no clock.

Messages and times go in, actions come out; `peer.py` does them. A connection is

    greeting   until the first frame, which must be `hello` and must come within 5 s
    checking   its token has been handed out with `Check`; the answer comes by `granted`
    ready      sessions may be opened; one that opens none for 60 s is closed
    closed     nothing is answered any more

and what a message does in a state is the table `MESSAGES` below. A client's mistake gets a
non-fatal `error` that names it; only what makes the rest of the talk meaningless closes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, NoReturn

from streaming import orders
from streaming.errors import TokenError
from streaming.fields import MAX_MS as _MAX_MS
from streaming.fields import Fault as _Fault
from streaming.fields import is_sid as _is_sid
from streaming.fields import req as _req
from streaming.fields import sid as _sid
from streaming.fields import whole as _whole
from streaming.frames import Codec
from streaming.limits import Bucket, Limits
from streaming.orders import Order, Say
from streaming.tokens import MAX_TOKEN_CHARS, SKEW_S, Grant, Role

VERSION = 1
SUBPROTOCOL = "notecast.v1"
MAX_MESSAGE_BYTES = 16_384
MAX_FAULTS = 20  # mistakes one connection may make before it is closed
MAX_FLOODS = 3  # messages beyond the rate before it is closed
PING_MS = 15_000
# Acks are what a listener costs beside its frames. One with ten minutes of allowance needs them
# rarely; one with 20 s, or that wants to be at the live edge, must be seen falling behind.
ACK_MS = 15_000
CLOSE_ACK_MS = 5_000
MAX_CLIENT_ID = 64  # characters
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
    "rate_limited": 429,
    "too_many_listeners": 429,
    "no_capacity": 503,
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
    "replaced": 4409,
    "too_large": 4413,
    "version": 4426,
    "rate_limited": 4429,
    "too_many_listeners": 4429,
    "slow_consumer": 4488,
    "internal": 4500,
    "drain": 1001,
}


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


class Ack(NamedTuple):
    """The client has all frames up to `seq`, has played to `play_ms` and holds `buf_ms` of sound.

    `play_ms` is None where it did not say; `under` are its underruns (number, ms) since `open`;
    `ttfa_ms` is the time from the listener's click to the first sound, said once.
    """

    sid: str
    seq: int
    play_ms: int | None
    buf_ms: int
    under: tuple[int, int] | None
    ttfa_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Allow:
    """The client wants no more than `ahead_ms` beyond what it has played."""

    sid: str
    ahead_ms: int


Action = Send | Close | Check | Open | Leave | Ack | Allow | Order | Say


def error(code: str, message: str, *, fatal: bool = False, **more: Any) -> Send:
    """Return the `error` message of the protocol; `more` are its optional fields."""
    fields = {name: value for name, value in more.items() if value is not None}
    head = {"t": "error", "code": code, "status": STATUS[code], "message": message}
    return Send({**head, **fields, "fatal": fatal})


@dataclass
class Listener:
    """The state of one connection; `now` is always Unix time in seconds.

    `due` is the earliest time at which `tick` has something to do.
    """

    conn: str
    node: str
    connected_at: float
    bearer: str | None = None  # token from the handshake's Authorization header
    state: Literal["greeting", "checking", "ready", "closed"] = "greeting"
    grants: dict[str, Grant] = field(default_factory=dict)  # by link id
    sids: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)  # sessions that `say` made on this connection
    codecs: list[Codec] = field(default_factory=list)
    faults: int = 0
    limits: Limits = field(default_factory=Limits)
    client: str | None = None  # its name for itself; a second connection of it replaces the first
    due: float = 0.0
    floods: int = 0
    idle_since: float = 0.0

    def __post_init__(self) -> None:
        """Fill the buckets, and wait for `hello`."""
        self._messages = Bucket(self.limits.messages)
        self._controls = Bucket(self.limits.controls)
        self.due = self.connected_at + self.limits.hello_s

    def receive(self, data: str | bytes, now: float) -> list[Action]:
        """Take one message of the client."""
        if self.state == "closed":
            return []
        if isinstance(data, bytes):
            return self._fatal("bad_message", "clients send text frames only")
        size = len(data) if data.isascii() else len(data.encode(errors="replace"))
        if size > MAX_MESSAGE_BYTES:
            return self._fatal("too_large", f"a message may have {MAX_MESSAGE_BYTES} bytes")
        try:
            message = _JSON.decode(data)
        except (ValueError, RecursionError):
            return self._fatal("bad_message", "the frame holds no JSON")
        if not isinstance(message, dict) or not isinstance(message.get("t"), str):
            return self._fatal("bad_message", "a message is an object with a type `t`")
        return self._count(message, now)

    def receive_quick(self, data: str, now: float) -> list[Action] | None:
        """As `receive`, for small messages that need no waiting; None if it must be `receive`."""
        if self.state != "ready":
            return None
        try:
            message = _JSON.decode(data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(message, dict) or message.get("t") not in ("ack", "ping", "flow"):
            return None
        return self._count(message, now)

    def granted(self, grant: Grant, now: float) -> list[Action]:
        """The token of the last `Check` is good and grants this."""
        if self.state == "closed":
            return []
        self.grants[grant.link] = grant
        if self.state == "checking":
            self.idle_since = now
        self.state = "ready"
        self.due = now
        return [Send(self._welcome(now))]

    def refused(self, reason: TokenError) -> list[Action]:
        """The token of the last `Check` opens nothing; without another grant the talk ends."""
        if self.grants and self.state == "ready":
            return [error(reason.code, str(reason))]
        return self._fatal(reason.code, str(reason))

    def accepted(self, say: Say, sid: str, queue: dict[str, Any], now: float) -> list[Action]:
        """What was said is session `sid` from now on, and waits at `queue`."""
        if self.state != "ready":
            return []
        self.own.add(sid)
        answer = {"t": "accepted", "req": say.req, "sid": sid, "queue": queue}
        opening = {"t": "open", "req": say.req, "sid": sid, **say.opening}
        return [Send(answer), *(self._dispatch(opening, now) if say.open else [])]

    def check_open(self, wish: dict[str, Any]) -> None:
        """Raise the fault that an `open` with these fields would be answered with."""
        if len(self.sids) >= self.limits.streams:
            raise _Fault("too_many_streams", f"{self.limits.streams} sessions are open already")
        codec = self._codec(wish.get("codec"))
        _whole(wish, "ahead_ms", default=AHEAD_MS[codec])
        if not isinstance(wish.get("words", True), bool):
            raise _Fault("bad_message", "`words` is true or false")

    def answer(self, message: dict[str, Any]) -> list[Action]:
        """What an order of this connection came to."""
        return [] if self.state == "closed" else [Send(message)]

    def regret(self, code: str, text: str, **more: Any) -> list[Action]:
        """An order of this connection came to nothing."""
        return [] if self.state == "closed" else [error(code, text, **more)]

    def crowded(self, text: str, retry_ms: int) -> list[Action]:
        """The grant of the last `Check` is good, but there is no place left for it."""
        if self.grants and self.state == "ready":
            return [error("too_many_listeners", text, retry_ms=retry_ms)]
        return self._fatal("too_many_listeners", text, retry_ms=retry_ms)

    def replaced(self) -> list[Action]:
        """The same client has connected again."""
        if self.state == "closed":
            return []
        self.state = "closed"
        return [Close(CLOSE["replaced"], "replaced")]

    def silent(self) -> list[Action]:
        """Nothing has come for too long, not even the answer to a ping."""
        if self.state == "closed":
            return []
        self.state = "closed"
        return [Close(CLOSE["timeout"], "timeout")]

    def left(self, sid: str, now: float) -> None:
        """Session `sid` is not open any more, or could not be opened."""
        self.sids.discard(sid)
        self.idle_since = self.due = now

    def revoked(self, link: str) -> list[Action]:
        """A link was switched off."""
        if self.state == "closed" or link not in self.grants:
            return []
        del self.grants[link]
        return self._fatal("forbidden", "the link was revoked")

    def kicked(self) -> list[Action]:
        """Whoever runs the place has ended the listening."""
        return self._fatal("forbidden", "the connection was ended by an administrator")

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
        """Look at the clock; call about once a second, once `due` is over."""
        if self.state == "greeting":
            return self.silent() if now > self.due else []
        if self.state != "ready":
            return []
        old = [link for link, grant in self.grants.items() if now > grant.expires + SKEW_S]
        for link in old:
            del self.grants[link]
        if old and not (self.grants and all(map(self._covers, self.sids))):
            return self._fatal("token_expired", "the link has expired; ask for a new one")
        self.due = min(grant.expires + SKEW_S for grant in self.grants.values())
        if not (self.sids or self._may_speak):  # whoever speaks may think for as long as they like
            idle_until = self.idle_since + self.limits.idle_s
            if now > idle_until:
                return self.silent()
            self.due = min(self.due, idle_until)
        return []

    @property
    def _may_speak(self) -> bool:
        return any(orders.GEN_SCOPE in grant.scopes for grant in self.grants.values())

    def _count(self, message: dict[str, Any], now: float) -> list[Action]:
        bucket = self._controls if message["t"] == "control" else self._messages
        if wait_s := bucket.take(now):
            return self._flooded(message, wait_s)
        return self._dispatch(message, now)

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
            sid = message.get("sid")
            sid = sid if _is_sid(sid) else None
            return [error(fault.code, str(fault), req=_short(message.get("req")), sid=sid)]

    def _flooded(self, message: dict[str, Any], wait_s: float) -> list[Action]:
        self.floods += 1
        text, retry_ms = "messages come too fast", math.ceil(wait_s * 1000)
        if self.floods >= MAX_FLOODS:
            return self._fatal("rate_limited", text, retry_ms=retry_ms)
        return [error("rate_limited", text, req=_short(message.get("req")), retry_ms=retry_ms)]

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
        client = message.get("client")
        name = client.get("id") if isinstance(client, dict) else None
        if name is not None and not (isinstance(name, str) and len(name) <= MAX_CLIENT_ID):
            raise _Fault(
                "bad_message", f"`client.id` is a text of up to {MAX_CLIENT_ID} characters"
            )
        self.client = name or None
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
        if len(self.sids) >= self.limits.streams:
            raise _Fault("too_many_streams", f"{self.limits.streams} sessions are open already")
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
        self.left(sid, now)
        return [Leave(sid)]

    def _ack(self, message: dict[str, Any], now: float) -> list[Action]:
        sid = self._opened(message)
        ack = Ack(
            sid,
            _whole(message, "seq", default=0),
            _whole(message, "play_ms", default=0) if "play_ms" in message else None,
            _whole(message, "buf_ms", default=0),
            _under(message.get("under")),
            _whole(message, "ttfa_ms", default=0) if "ttfa_ms" in message else None,
        )
        return [ack, *self._ping(message, now)] if "ts" in message else [ack]

    def _flow(self, message: dict[str, Any], now: float) -> list[Action]:
        sid = self._opened(message)
        if "ahead_ms" not in message:
            raise _Fault("bad_message", "`flow` names `ahead_ms`")
        return [Allow(sid, _whole(message, "ahead_ms", default=0))]

    def _ping(self, message: dict[str, Any], now: float) -> list[Action]:
        ts = message.get("ts")
        if not (ts is None or (type(ts) in (int, float) and abs(ts) < _MAX_MS << 13)):
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

    def grant_for(self, sid: str) -> Grant | None:
        """The grant by which session `sid` may be opened."""
        fitting = [grant for grant in self.grants.values() if grant.covers(sid)]
        return next(iter(fitting or self.grants.values()), None)

    def role_on(self, sid: str) -> Role | None:
        """What the connection may do with session `sid`; None: nothing."""
        try:
            return orders.right_on(self, sid)[0]
        except _Fault:
            return None

    def _covers(self, sid: str) -> bool:
        return sid in self.own or any(grant.covers(sid) for grant in self.grants.values())

    def _bytes_per_s(self) -> int:
        """What a session behind its live edge is sent at most; a link may say less."""
        rates = [grant.bytes_per_s for grant in self.grants.values() if grant.bytes_per_s]
        return int(min([self.limits.egress.per_s, *rates]))

    def _welcome(self, now: float) -> dict[str, Any]:
        grants = [
            {"sid": grant.sid, "role": grant.role, "exp": grant.expires}
            | ({"scopes": list(grant.scopes)} if grant.scopes else {})
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
            "limits": {
                "streams": self.limits.streams,
                "ctl_per_s": self.limits.session_controls.per_s,
                "bytes_per_s": self._bytes_per_s(),
            },
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
    ("ready", "control"): orders.control,
    ("ready", "say"): orders.say,
}


def _under(value: object) -> tuple[int, int] | None:
    """The underruns of an ack: {"n", "ms"}."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _Fault("bad_message", '`under` is {"n", "ms"}')
    return _whole(value, "n", default=0), _whole(value, "ms", default=0)


def _short(req: object) -> int | str | None:
    """A `req` that an answer can repeat."""
    return req if isinstance(req, int | str) and len(str(req)) <= 64 else None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_JSON = json.JSONDecoder(parse_constant=_no_constant)


def _token(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TOKEN_CHARS:
        raise _Fault("bad_message", f"`token` is a text of up to {MAX_TOKEN_CHARS} characters")
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
