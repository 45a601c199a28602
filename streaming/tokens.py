"""Link tokens: `nc1.` payload `.` HMAC-SHA256, both base64url without padding.

The algorithm is fixed, so a token cannot choose a weaker one; keys live in a ring, so they can be
changed while old tokens are still about.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from streaming.errors import BadToken, TokenExpired

PREFIX = "nc1."
SKEW_S = 30.0
MAX_TOKEN_CHARS = 2048
MIN_KEY_BYTES = 32
Role = Literal["owner", "listener", "admin"]


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token allows: `role` on session `sid` (`*`: every session) until `expires` (Unix s).

    `scopes` adds rights (`gen`, `fork`); `feed` is set instead of `sid` in feed tokens; `user` is
    whom the token was made for, where that is one person.
    """

    link: str
    role: Role
    expires: int
    sid: str | None = None
    feed: str | None = None
    scopes: tuple[str, ...] = ()
    max_listeners: int | None = None
    bytes_per_s: int | None = None
    user: str | None = None

    @property
    def person(self) -> str | None:
        """Whose connections are counted together; None for a link that anybody may hold."""
        return self.user or (None if self.role == "listener" else self.link)

    def covers(self, sid: str) -> bool:
        """Say if session `sid` may be listened to with this grant."""
        return self.sid in (sid, "*")


class KeyRing:
    """Signing keys by id: `current` signs, all of them verify.

    Raises:
        ValueError: `current` is missing or a key is shorter than 32 bytes.
    """

    def __init__(self, keys: Mapping[str, bytes], current: str) -> None:
        if current not in keys:
            raise ValueError(f"key ring has no key {current!r} to sign with")
        for name, key in keys.items():
            if len(key) < MIN_KEY_BYTES:
                raise ValueError(f"key {name!r} has {len(key)} bytes; {MIN_KEY_BYTES} are needed")
        self._keys = dict(keys)
        self._current = current

    def sign(self, grant: Grant) -> str:
        """Return the token of `grant`."""
        payload: dict[str, object] = {"k": self._current, "j": grant.link}
        optional = {"s": grant.sid, "f": grant.feed}
        payload |= {name: value for name, value in optional.items() if value is not None}
        payload |= {"r": grant.role, "x": grant.expires}
        limits = {"g": list(grant.scopes), "n": grant.max_listeners, "b": grant.bytes_per_s}
        more: dict[str, object] = {**limits, "u": grant.user}
        payload |= {name: value for name, value in more.items() if value}
        signed = PREFIX + _encode(json.dumps(payload, separators=(",", ":")).encode())
        return f"{signed}.{_encode(_mac(self._keys[self._current], signed))}"

    def verify(self, token: str, *, now: float) -> Grant:
        """Return what `token` grants at `now` (Unix s).

        Raises:
            BadToken: malformed, unknown key id or wrong signature.
            TokenExpired: more than 30 s past its expiry.
        """
        if not token.startswith(PREFIX) or len(token) > MAX_TOKEN_CHARS or not token.isascii():
            raise BadToken("this is no link token of ours")
        signed, _, signature = token.rpartition(".")
        payload = _payload(signed.removeprefix(PREFIX))
        key = self._keys.get(str(payload.get("k")))
        if key is None:
            raise BadToken("the link was signed with a key that is no longer in use")
        if not hmac.compare_digest(_encode(_mac(key, signed)), signature):
            raise BadToken("the signature of the link does not match")
        grant = _grant(payload)
        if now > grant.expires + SKEW_S:
            raise TokenExpired("the link has expired; ask for a new one")
        return grant


def token_sid(token: str) -> str:
    """Return the session that `token` names; nothing is verified.

    Raises:
        BadToken: it is malformed, or good for more than one session.
    """
    sid = _payload(token.removeprefix(PREFIX).rpartition(".")[0]).get("s")
    if not isinstance(sid, str) or sid == "*":
        raise BadToken("the token does not say which session: name it")
    return sid


def _mac(key: bytes, signed: str) -> bytes:
    return hmac.new(key, signed.encode(), hashlib.sha256).digest()


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _payload(text: str) -> dict[str, Any]:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        payload = json.loads(raw)
    except (binascii.Error, ValueError, RecursionError) as error:
        raise BadToken("the link is damaged: was it cut when it was copied?") from error
    if not isinstance(payload, dict):
        raise BadToken("the link is damaged: its payload is no object")
    return payload


def _grant(payload: dict[str, Any]) -> Grant:
    """Read a payload that we have signed; a wrong type there is a fault of the signer."""
    role: Any = payload.get("r")
    expires, link = payload.get("x"), payload.get("j")
    if role not in get_args(Role) or type(expires) is not int or not isinstance(link, str):
        raise BadToken("the link's payload lacks role, expiry or id")
    return Grant(
        link=link,
        role=role,
        expires=expires,
        sid=payload.get("s"),
        feed=payload.get("f"),
        scopes=tuple(payload.get("g", ())),
        max_listeners=payload.get("n"),
        bytes_per_s=payload.get("b"),
        user=payload.get("u"),
    )
