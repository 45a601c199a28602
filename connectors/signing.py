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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from connectors.errors import Rejected

TOLERANCE_S = 300.0
FEISHU_TOLERANCE_S = 86_400.0

_ID = re.compile(r"[!-\-/-~]{1,128}")  # visible ASCII without the full stop, which separates
_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_NONCE = re.compile(r"[ -~]{1,128}")
_MAX_SIGNATURES = 16  # a sender in the midst of two rotations lists four

_proofs: ContextVar[set[str] | None] = ContextVar("proofs", default=None)


@contextmanager
def proofs() -> Iterator[set[str]]:
    """Collect the labels of the secrets that prove something inside the block, on this thread.

    So `connectors status` can say which of two secrets is still in use.
    """
    found: set[str] = set()
    token = _proofs.set(found)
    try:
        yield found
    finally:
        _proofs.reset(token)


def proved(secret: str) -> None:
    """Every `verify_...` says so of the secret that fitted."""
    found = _proofs.get()
    if found is not None:
        found.add(secret_label(secret))


def secret_label(secret: str) -> str:
    """A name for a secret that tells nothing of it: 8 hex digits of its SHA-256."""
    return hashlib.sha256(secret.strip().encode("utf-8", "surrogatepass")).hexdigest()[:8]


class WebhookKey(ABC):
    """A secret of Standard Webhooks; `repr` shows its kind only."""

    scheme: str
    text = ""

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
    key: WebhookKey | None = None
    if prefix == "whsec" and raw is not None and 24 <= len(raw) <= 64:
        key = _SharedKey(raw)
    elif prefix == "whsk" and raw is not None and len(raw) in (32, 64):
        private = Ed25519PrivateKey.from_private_bytes(raw[:32])
        key = _PublicKey(private.public_key(), private)
    elif prefix == "whpk" and raw is not None and len(raw) == 32:
        key = _PublicKey(Ed25519PublicKey.from_public_bytes(raw))
    if key is not None:
        key.text = text.strip()
        return key
    raise ValueError(
        "not a webhook secret: expected whsec_ and base64 of 24 to 64 bytes "
        '(make one: echo "whsec_$(openssl rand -base64 32)"), or whpk_ and an ed25519 public key'
    )


def sign_webhook(
    secret: str | Sequence[str], msg_id: str, timestamp: int, body: bytes
) -> dict[str, str]:
    """Headers that prove `body` to whoever holds `secret` (or its public half).

    Args:
        secret: `whsec_...` or `whsk_...`; several while changing over, each signs.
        msg_id: stays the same when the same message is sent again; at most 128 visible ASCII
            characters, no full stop.
        timestamp: whole seconds since 1970.

    Raises:
        ValueError: bad secret or id.
    """
    if not _ID.fullmatch(msg_id):
        raise ValueError("msg_id: 1 to 128 visible ASCII characters without a full stop")
    message = _message(msg_id, str(timestamp), body)
    signatures = []
    for one in [secret] if isinstance(secret, str) else secret:
        key = webhook_key(one)
        signatures.append(f"{key.scheme},{base64.b64encode(key.sign(message)).decode()}")
    return {
        "webhook-id": msg_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
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
            if signature and key.scheme == scheme and key.fits(signature, message):
                genuine = True
                proved(key.text)
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
        if hmac.compare_digest(offered, token.encode()):
            genuine = True
            proved(token)
    if not genuine or scheme.lower() != "bearer":
        raise Rejected("no bearer token fits")


def sign_airtable(secret: str, body: bytes) -> dict[str, str]:
    """The header of a ping from Airtable; `secret` is base64, as the new webhook's answer has it.

    Raises:
        ValueError: the secret is not base64.
    """
    key = _base64(secret)
    if not key:
        raise ValueError("not the base64 secret of an Airtable webhook")
    mac = hmac.digest(key, body, hashlib.sha256).hex()
    return {"x-airtable-content-mac": f"hmac-sha256={mac}"}


def verify_airtable(secrets: Sequence[str], headers: Mapping[str, str], body: bytes) -> None:
    """Check `X-Airtable-Content-MAC`: hex HMAC-SHA256 of the body. No time is signed.

    Raises:
        Rejected: no secret fits.
    """
    name = "x-airtable-content-mac"
    _require_one({s: sign_airtable(s, body)[name] for s in secrets}, headers.get(name, ""))


def sign_notion(token: str, body: bytes) -> dict[str, str]:
    """The header of an event from Notion; the verification token is the key."""
    mac = hmac.digest(token.encode(), body, hashlib.sha256).hex()
    return {"x-notion-signature": f"sha256={mac}"}


def verify_notion(tokens: Sequence[str], headers: Mapping[str, str], body: bytes) -> None:
    """Check `X-Notion-Signature`: hex HMAC-SHA256 of the body, which holds the time.

    Raises:
        Rejected: no token fits.
    """
    name = "x-notion-signature"
    _require_one({t: sign_notion(t, body)[name] for t in tokens}, headers.get(name, ""))


def sign_slack(secret: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a request from Slack: hex HMAC-SHA256 of `v0:{timestamp}:{body}`."""
    mac = hmac.digest(secret.encode(), b"v0:%d:" % timestamp + body, hashlib.sha256).hex()
    return {"x-slack-request-timestamp": str(timestamp), "x-slack-signature": f"v0={mac}"}


def verify_slack(
    secrets: Sequence[str], headers: Mapping[str, str], body: bytes, *, now: datetime
) -> None:
    """Check `X-Slack-Signature`, made within five minutes of `now`.

    Raises:
        Rejected: no signing secret fits, or the time is another.
    """
    timestamp = headers.get("x-slack-request-timestamp", "")
    if not _TIMESTAMP.fullmatch(timestamp) or timestamp != str(int(timestamp)):
        raise Rejected("x-slack-request-timestamp is not whole seconds")
    if abs(now.timestamp() - int(timestamp)) > TOLERANCE_S:
        raise Rejected("x-slack-request-timestamp is outside the tolerance")
    name = "x-slack-signature"
    at = int(timestamp)
    _require_one({s: sign_slack(s, at, body)[name] for s in secrets}, headers.get(name, ""))


def sign_feishu_event(key: str, timestamp: int, nonce: str, body: bytes) -> dict[str, str]:
    """The headers of an event from Feishu: hex SHA-256 of timestamp, nonce, Encrypt Key and body.

    A plain hash, no HMAC; `body` is the envelope as it is sent, still encrypted.
    """
    digest = hashlib.sha256(f"{timestamp}{nonce}{key}".encode() + body).hexdigest()
    return {
        "x-lark-request-timestamp": str(timestamp),
        "x-lark-request-nonce": nonce,
        "x-lark-signature": digest,
    }


def verify_feishu_event(
    keys: Sequence[str], headers: Mapping[str, str], body: bytes, *, now: datetime
) -> str:
    """Check an event from Feishu; gives the Encrypt Key that fits.

    The time may lie 24 h back, because Feishu tries again for 7 h and does not say whether it
    signs anew, and 5 minutes ahead.

    Raises:
        Rejected: no key fits, or the time is another.
    """
    timestamp = headers.get("x-lark-request-timestamp", "")
    nonce = headers.get("x-lark-request-nonce", "")
    if not _TIMESTAMP.fullmatch(timestamp) or timestamp != str(int(timestamp)):
        raise Rejected("x-lark-request-timestamp is not whole seconds")
    if not -TOLERANCE_S <= now.timestamp() - int(timestamp) <= FEISHU_TOLERANCE_S:
        raise Rejected("x-lark-request-timestamp is outside the tolerance")
    if not _NONCE.fullmatch(nonce):
        raise Rejected("x-lark-request-nonce is missing or malformed")
    given = headers.get("x-lark-signature", "").encode("utf-8", "surrogatepass")
    fitting = None
    for key in keys:
        expected = sign_feishu_event(key, int(timestamp), nonce, body)["x-lark-signature"]
        if hmac.compare_digest(given, expected.encode()):
            fitting = key
            proved(key)
    if fitting is None:
        raise Rejected("no signature fits")
    return fitting


def encrypt_feishu(key: str, content: bytes, *, iv: bytes) -> str:
    """What Feishu puts into `{"encrypt": ...}`: AES-256-CBC, the key's SHA-256, IV in front.

    Args:
        iv: 16 bytes, new for every message.
    """
    pad_bytes = 16 - len(content) % 16
    padded = content + bytes([pad_bytes]) * pad_bytes
    sealing = _feishu_cipher(key, iv).encryptor()
    return base64.b64encode(iv + sealing.update(padded) + sealing.finalize()).decode()


def decrypt_feishu(key: str, text: str) -> bytes:
    """The content of `{"encrypt": text}`.

    Raises:
        Rejected: not base64 of whole blocks, or not made with this key.
    """
    sealed = _base64(text)
    if sealed is None or len(sealed) < 32 or len(sealed) % 16:
        raise Rejected("the envelope is no encrypted message")
    opening = _feishu_cipher(key, sealed[:16]).decryptor()
    padded = opening.update(sealed[16:]) + opening.finalize()
    pad_bytes = padded[-1]
    if not 1 <= pad_bytes <= 16 or padded[-pad_bytes:] != bytes([pad_bytes]) * pad_bytes:
        raise Rejected("the envelope was not made with this Encrypt Key")
    return padded[:-pad_bytes]


def _feishu_cipher(key: str, iv: bytes) -> Cipher[modes.CBC]:
    return Cipher(algorithms.AES256(hashlib.sha256(key.encode()).digest()), modes.CBC(iv))


def sign_feishu_robot(secret: str, timestamp_s: int) -> str:
    """`sign` of a card for a Feishu robot: the text to sign is the KEY, and nothing is signed."""
    mac = hmac.digest(f"{timestamp_s}\n{secret}".encode(), b"", hashlib.sha256)
    return base64.b64encode(mac).decode()


def sign_dingtalk_robot(secret: str, timestamp_ms: int) -> str:
    """`sign` of a message for a DingTalk robot: the secret is the key, and time is in ms.

    The other way round than Feishu's above; a robot that is given the one for the other refuses.
    Goes into the query, where it has to be percent-encoded.
    """
    mac = hmac.digest(secret.encode(), f"{timestamp_ms}\n{secret}".encode(), hashlib.sha256)
    return base64.b64encode(mac).decode()


def _require_one(expected: Mapping[str, str], given: str) -> None:
    """Compare with what every secret expects, in constant time, whatever characters were given."""
    offered = given.encode("utf-8", "surrogatepass")
    genuine = False
    for secret, value in expected.items():
        if hmac.compare_digest(offered, value.encode()):
            genuine = True
            proved(secret)
    if not genuine:
        raise Rejected("no signature fits")


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
