"""Proofs of identity: pure functions on bytes.

Standard Webhooks (standardwebhooks.com): a signature over `{id}.{timestamp}.{body}`.
`v1` is HMAC-SHA256 with a shared secret (`whsec_`), `v1a` is ed25519 (`whsk_` signs, `whpk_`
verifies). Every comparison is of bytes, in constant time, against every secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from connectors.errors import Rejected

TOLERANCE_S = 300.0

_ID = re.compile(r"[!-\-/-~]{1,128}")  # visible ASCII without the full stop, which separates
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_MAX_SIGNATURES = 16  # a sender in the midst of two rotations lists four


class WebhookKey(ABC):
    """A secret of Standard Webhooks; `repr` shows its kind only."""

    scheme: str

    @abstractmethod
    def sign(self, message: bytes) -> bytes:
        """The raw signature of `message`."""

    @abstractmethod
    def fits(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` was made with this key."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.scheme}>"


class _SharedKey(WebhookKey):
    scheme = "v1"

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, message: bytes) -> bytes:
        return hmac.digest(self._secret, message, hashlib.sha256)

    def fits(self, signature: bytes, message: bytes) -> bool:
        return hmac.compare_digest(signature, self.sign(message))


class _PublicKey(WebhookKey):
    scheme = "v1a"

    def __init__(self, public: Ed25519PublicKey, private: Ed25519PrivateKey | None = None) -> None:
        self._public = public
        self._private = private

    def sign(self, message: bytes) -> bytes:
        if self._private is None:
            raise ValueError("a whpk_ key only verifies; signing takes the whsk_ key")
        return self._private.sign(message)

    def fits(self, signature: bytes, message: bytes) -> bool:
        try:
            self._public.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def webhook_key(text: str) -> WebhookKey:
    """Read a secret as it is handed around.

    Args:
        text: `whsec_` + base64 of 24 to 64 bytes; `whsk_` + base64 of a 32-byte seed (or seed and
            public key, 64 bytes); `whpk_` + base64 of 32 bytes.

    Raises:
        ValueError: says what is wrong without showing the secret.
    """
    prefix, _, encoded = text.strip().partition("_")
    raw = _base64(encoded)
    if prefix == "whsec" and raw is not None and 24 <= len(raw) <= 64:
        return _SharedKey(raw)
    if prefix == "whsk" and raw is not None and len(raw) in (32, 64):
        private = Ed25519PrivateKey.from_private_bytes(raw[:32])
        return _PublicKey(private.public_key(), private)
    if prefix == "whpk" and raw is not None and len(raw) == 32:
        return _PublicKey(Ed25519PublicKey.from_public_bytes(raw))
    raise ValueError(
        "not a webhook secret: expected whsec_ and base64 of 24 to 64 bytes "
        '(make one: echo "whsec_$(openssl rand -base64 32)"), or whpk_ and an ed25519 public key'
    )


def sign_webhook(secret: str, msg_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Headers that prove `body` to whoever holds `secret` (or its public half).

    Args:
        secret: `whsec_...` or `whsk_...`.
        msg_id: stays the same when the same message is sent again; at most 128 visible ASCII
            characters, no full stop.
        timestamp: whole seconds since 1970.

    Raises:
        ValueError: bad secret or id.
    """
    if not _ID.fullmatch(msg_id):
        raise ValueError("msg_id: 1 to 128 visible ASCII characters without a full stop")
    key = webhook_key(secret)
    signature = base64.b64encode(key.sign(_message(msg_id, str(timestamp), body))).decode()
    return {
        "webhook-id": msg_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"{key.scheme},{signature}",
    }


def verify_webhook(
    keys: Sequence[WebhookKey], headers: Mapping[str, str], body: bytes, *, now: datetime
) -> str:
    """Check a Standard Webhooks message; gives its id.

    Args:
        keys: current and previous.
        headers: names in lower case.
        now: with time zone.

    Raises:
        Rejected: for every message that does not prove itself, however odd.
    """
    msg_id = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    if not _ID.fullmatch(msg_id):
        raise Rejected("webhook-id is missing or malformed")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise Rejected("webhook-timestamp is not whole seconds")
    if abs(now.timestamp() - int(timestamp)) > TOLERANCE_S:
        raise Rejected("webhook-timestamp is outside the tolerance")
    message = _message(msg_id, timestamp, body)
    genuine = False
    for token in headers.get("webhook-signature", "").split(" ")[:_MAX_SIGNATURES]:
        scheme, _, encoded = token.partition(",")
        signature = _base64(encoded)
        for key in keys:
            if signature and key.scheme == scheme:
                genuine |= key.fits(signature, message)
    if not genuine:
        raise Rejected("no signature fits")
    return msg_id


def verify_bearer(tokens: Sequence[str], headers: Mapping[str, str]) -> None:
    """Check `Authorization: Bearer TOKEN` against the current and the previous token.

    Raises:
        Rejected: missing or wrong.
    """
    scheme, _, given = headers.get("authorization", "").strip().partition(" ")
    offered = given.strip().encode("utf-8", "surrogatepass")
    genuine = False
    for token in tokens:
        genuine |= hmac.compare_digest(offered, token.encode())
    if not genuine or scheme.lower() != "bearer":
        raise Rejected("no bearer token fits")


def _message(msg_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{msg_id}.{timestamp}.".encode() + body


def _base64(text: str) -> bytes | None:
    """Decode, with or without padding; None for anything that is not base64."""
    try:
        return base64.b64decode(
            text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True
        )
    except (binascii.Error, ValueError):
        return None
