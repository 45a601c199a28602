"""The fields of a client's message: read, checked, and refused with a sentence that says why."""

from __future__ import annotations

import math
import re
from typing import Any

MAX_MS = 1 << 40
_SID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Fault(Exception):
    """A message that cannot be followed; becomes an `error` with this code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def is_sid(value: object) -> bool:
    """Say if `value` can name a session."""
    return isinstance(value, str) and _SID.fullmatch(value) is not None


def sid(message: dict[str, Any]) -> str:
    """The session that a message is about."""
    value = message.get("sid")
    if not is_sid(value):
        raise Fault("bad_message", "`sid` names a session")
    return str(value)


def req(message: dict[str, Any]) -> int | str | None:
    """What the answer is marked with."""
    value = message.get("req")
    if value is None or (isinstance(value, int | str) and len(str(value)) <= 64):
        return value
    raise Fault("bad_message", "`req` is a number or a short text")


def whole(message: dict[str, Any], name: str, *, default: int) -> int:
    """A time or count: a number from 0 on; fractions are cut off."""
    value = message.get(name, default)
    if isinstance(value, float) and math.isfinite(value):
        value = int(value)
    if type(value) is not int or not 0 <= value < MAX_MS:
        raise Fault("bad_message", f"`{name}` is a number from 0 on")
    return value


def text(message: dict[str, Any], name: str, *, most: int) -> str:
    """A text of up to `most` characters; empty when it is not there."""
    value = message.get(name, "")
    if not isinstance(value, str) or len(value) > most:
        raise Fault("bad_message", f"`{name}` is a text of up to {most} characters")
    return value


def flag(message: dict[str, Any], name: str, *, default: bool) -> bool:
    """True or false."""
    value = message.get(name, default)
    if not isinstance(value, bool):
        raise Fault("bad_message", f"`{name}` is true or false")
    return value


def number(value: object, name: str, low: float, high: float) -> float:
    """A number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Fault("bad_message", f"`{name}` is a number from {low:g} to {high:g}")
    return float(value)
