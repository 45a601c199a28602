"""What can go wrong on the way of a note.

PipelineError
├── NotFound              no such episode, endpoint, voice, ...
├── Refused               the request cannot be done as it stands; `field` names the culprit
├── Ended                 the episode is over, what was asked for comes too late
├── ScriptError           the note cannot become speech; kinds in script/model.py
├── DatabaseUnavailable   SQL is away; nothing was stored
├── LostLease             another owner, a cancel or the reaper took the episode
└── Misconfigured         a setting or file is wrong; the message names the cure
"""

from __future__ import annotations


class PipelineError(Exception):
    """Root of the tree; the message is written for a person."""

    status = 500  # what web.py answers
    code = "internal"
    retry = False  # what retry.py reads


class NotFound(PipelineError):
    """There is nothing of this name."""

    status = 404
    code = "not_found"


class Refused(PipelineError):
    """The request cannot be done as it stands."""

    status = 422
    code = "bad_request"

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field  # JSON pointer, or empty


class Ended(PipelineError):
    """The episode is over, what was asked for comes too late."""

    status = 410
    code = "gone"


class ScriptError(PipelineError):
    """The note cannot become speech; `code` goes into the row, the message to a person."""

    status = 422
    code = "script"


class DatabaseUnavailable(PipelineError):
    """SQL is away or locked; the sender should come back after `after_s`."""

    status = 503
    code = "database_unavailable"
    retry = True
    after_s = 2.0


class LostLease(PipelineError):
    """This worker does not own the episode any more; it must write nothing and leave."""


class Misconfigured(PipelineError):
    """A setting or file is wrong."""
