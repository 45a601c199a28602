"""What can go wrong at the edge to another tool.

ConnectorError
├── Rejected         401: the sender did not prove who it is
├── Malformed        422: authentic, but not what was agreed; names the field
├── ConfigError      an endpoint cannot be set up as written
├── ToolUnavailable  the tool is down or limits us; again later
└── ToolRefused      the tool understood and said no; again changes nothing
    └── WrongColumn  a column is missing or of another type

`status` is what the door answers, `retry` is what the retry rule reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConnectorError(Exception):
    """Root of the tree; the message is written for a person and holds no secret."""

    status = 500
    retry = False


class Rejected(ConnectorError):
    """The signature or token does not fit. The reason is for our log, never for the sender."""

    status = 401


class Malformed(ConnectorError):
    """The body is authentic and wrong.

    Attributes:
        pointer: JSON pointer (RFC 6901) to the field at fault; empty for the whole body.
        offset_bytes: where parsing stopped, for a body that is not JSON at all.
    """

    status = 422

    def __init__(self, pointer: str, message: str, *, offset_bytes: int | None = None) -> None:
        super().__init__(message)
        self.pointer = pointer
        self.offset_bytes = offset_bytes


class ConfigError(ConnectorError):
    """`key` of an endpoint is missing, unknown or wrong; the message names the cure."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key


class ToolUnavailable(ConnectorError):
    """The tool is down or limits us.

    Attributes:
        after_s: the wait it asked for, None if it named none.
        unanswered: the call was made and no answer came, so it may have worked all the same;
            what must not be done twice is not tried again.
    """

    status = 503
    retry = True

    def __init__(
        self, message: str, *, after_s: float | None = None, unanswered: bool = False
    ) -> None:
        super().__init__(message)
        self.after_s = after_s
        self.unanswered = unanswered


class ToolRefused(ConnectorError):
    """The tool said no for good; `code` is its own word for why."""

    status = 502

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class WrongColumn(ToolRefused):
    """A column named in the configuration does not exist, or cannot hold the value."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown key: the nearest known one, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
