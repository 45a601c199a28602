"""Feishu's event subscription: handshake, envelope, signature, both versions of an event."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from connectors.base import Hook, Reply
from connectors.errors import ConnectorError, Malformed, Rejected
from connectors.payload import parse_json
from connectors.signing import (
    decrypt_feishu,
    encrypt_feishu,
    proved,
    sign_feishu_event,
    verify_feishu_event,
)

MAX_BODY_BYTES = 256 << 10


class EventDoor:
    """Proves that a message comes from Feishu, and opens it; pure.

    A message is encrypted and signed with an Encrypt Key. The handshake is encrypted but carries no
    signature, so there the verification token has to fit. Without an Encrypt Key nothing is signed,
    and the token is all there is.
    """

    def __init__(self, keys: Sequence[str], tokens: Sequence[str]) -> None:
        self._keys = tuple(keys)
        self._tokens = tuple(tokens)

    def open(self, hook: Hook, *, now: datetime) -> bytes | Reply:
        """The event's JSON, or the answer to the handshake.

        Raises:
            Rejected: for everything that does not prove itself.
        """
        message = _object(hook.body)
        sealed = message.get("encrypt")
        if bool(self._keys) != isinstance(sealed, str):
            what = "not encrypted" if self._keys else "encrypted, and no Encrypt Key is configured"
            raise Rejected(f"the message is {what}")
        body = self._decrypted(str(sealed)) if self._keys else hook.body
        content = _object(body)
        if content.get("type") == "url_verification":
            self._require_token(content.get("token"))
            return Reply.of(200, {"challenge": str(content.get("challenge", ""))})
        if self._keys:
            verify_feishu_event(self._keys, hook.headers, hook.body, now=now)
        header = content.get("header")
        self._require_token((header if isinstance(header, dict) else content).get("token"))
        return body

    def as_sent(self, body: bytes, *, now: datetime) -> Hook:
        """An event as Feishu would send it, sealed and signed with the newest key."""
        headers = {"content-type": "application/json"}
        if self._keys:
            sealed = encrypt_feishu(self._keys[0], body, iv=secrets.token_bytes(16))
            body = json.dumps({"encrypt": sealed}).encode()
            at_s, nonce = int(now.timestamp()), secrets.token_hex(8)
            headers |= sign_feishu_event(self._keys[0], at_s, nonce, body)
        return Hook("POST", headers, body, now)

    def _decrypted(self, sealed: str) -> bytes:
        """Tried with each key, because the vendor changes over at once."""
        for key in self._keys:
            try:
                body = decrypt_feishu(key, sealed)
                _object(body)
            except Rejected:
                continue
            return body
        raise Rejected("no Encrypt Key opens the message")

    def _require_token(self, token: Any) -> None:
        given = token.encode("utf-8", "surrogatepass") if isinstance(token, str) else b""
        genuine = False
        for known in self._tokens:
            if hmac.compare_digest(given, known.encode()):
                genuine = True
                proved(known)
        if not genuine:
            raise Rejected("the verification token does not fit")


def read_event(body: bytes) -> tuple[str, str, Mapping[str, Any]]:
    """Type, id and content of an event, version 2.0 or 1.0.

    Raises:
        Malformed: with the field at fault.
    """
    message = parse_json(body)
    if not isinstance(message, dict):
        raise Malformed("", "the event is not an object")
    event = message.get("event")
    if not isinstance(event, dict):
        raise Malformed("/event", "/event: missing")
    header = message.get("header")
    if isinstance(header, dict):
        kind, event_id, where = header.get("event_type"), header.get("event_id"), "/header/event_id"
    else:
        kind, event_id, where = event.get("type"), message.get("uuid"), "/uuid"
    if not isinstance(event_id, str) or not event_id:
        raise Malformed(where, f"{where}: missing; it tells repetitions from new events")
    return str(kind), event_id, event


def is_of_event(error: ConnectorError) -> bool:
    """Is it an event of the service that cannot be read? Repeating it would not mend it."""
    return isinstance(error, Malformed) and error.pointer.startswith(("/event", "/header", "/uuid"))


def delivery_key(event_id: str, part: str) -> str:
    """One key for each part of an event, at most 200 characters."""
    key = f"{event_id}/{part}"
    return key if len(key) <= 200 else hashlib.sha256(key.encode()).hexdigest()


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Rejected("the message is not JSON") from None
    if not isinstance(value, dict):
        raise Rejected("the message is not an object")
    return value
