"""What can go wrong between text and sound.

EngineError
├── BadRequest            the request can never be spoken as it stands
│   ├── UnknownVoice
│   ├── UnsupportedLanguage
│   └── UnsupportedFeature
├── EngineOverloaded      no slot within the time allowed; try again
├── EngineStopped         the engine is shutting down, or the stream was cancelled
└── EngineFailed          the model broke while it spoke
"""

from __future__ import annotations


class EngineError(Exception):
    """Root of the tree; the message is written for a person."""

    retry = False  # what pipeline/retry.py reads


class BadRequest(EngineError):
    """The request cannot be spoken; trying again changes nothing."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field  # the part of the request at fault: "voice", "lang", ...


class UnknownVoice(BadRequest):
    """No voice has this name; the message names the nearest ones."""


class UnsupportedLanguage(BadRequest):
    """This engine does not speak the language; the message says which extra or engine does."""


class UnsupportedFeature(BadRequest):
    """This engine lacks what was asked for; the message names the road that works."""


class EngineOverloaded(EngineError):
    """Every slot is taken and the queue is full."""

    retry = True


class EngineStopped(EngineError):
    """The engine stops, or the caller cancelled the stream."""

    retry = True


class EngineFailed(EngineError):
    """The model raised while it spoke; the cause is chained."""

    retry = True
