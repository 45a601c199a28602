"""Names for rows and links. None carries a meaning; the public ones cannot be guessed."""

from __future__ import annotations

import secrets
import threading
import time

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


_last = 0
_making = threading.Lock()


def ulid() -> str:
    """A new ULID: 26 characters that sort by creation time (github.com/ulid/spec).

    Those of one process sort in the order they were made, also within a millisecond.
    """
    global _last
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(79)
    with _making:
        number = _last = number if number > _last else _last + 1
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def session_key() -> str:
    """The public name of an episode, `sid` on the wire: `ses_` and 100 random bits."""
    return "ses_" + _random_base32(20)


def slug() -> str:
    """The readable part of a live link, 50 random bits; the token beside it is what protects."""
    return _random_base32(10)


def secret(bits: int = 256) -> str:
    """A key for a person to paste; URL-safe."""
    return secrets.token_urlsafe(bits // 8)


def _random_base32(length: int) -> str:
    return "".join(secrets.choice(_BASE32) for _ in range(length))
