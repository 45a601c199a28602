"""Again, and when; or never. Nothing else decides."""

from __future__ import annotations

import random
from dataclasses import dataclass

from connectors.errors import ConnectorError, ToolUnavailable
from engine.errors import BadRequest, EngineError
from pipeline.errors import PipelineError, Refused, ScriptError
from pipeline.storage import StorageUnavailable

DAY_MS = 86_400_000

_FAREWELLS = ("410", "unsafe_address", "no_secret")


@dataclass(frozen=True, slots=True)
class Rule:
    """How an error is treated.

    Attributes:
        base_ms, cap_ms: first delay and longest one; each try doubles it.
        tries: at most so many; None while `within_ms` lasts.
        within_ms: no try later than this after the first.
    """

    base_ms: int
    cap_ms: int
    tries: int | None = None
    within_ms: int = DAY_MS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do after an error: again in `after_ms`, or None for never.

    Attributes:
        code: short reason for rows and reports, at most 32 characters.
        message: one sentence for a person, at most 500 characters.
    """

    after_ms: int | None
    code: str
    message: str


NEVER = Rule(0, 0, tries=1)
TOOL_AWAY = Rule(2_000, 900_000)
STORE_AWAY = Rule(1_000, 300_000)
UNKNOWN = Rule(5_000, 300_000, tries=3)

KNOWN = (ConnectorError, EngineError, PipelineError)
"""Errors that are raised on purpose: they say what happened."""

# Waits after each failed delivery of an event: the example table of Standard Webhooks, 75.6 h.
_EVENT_S = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)


def decide(
    error: Exception, *, tries: int, age_ms: int, within_ms: int = DAY_MS, attempts: int = 3
) -> Verdict:
    """Judge an error.

    Args:
        tries: how many tries have failed, this one included (1 or more).
        age_ms: time since the first try.
        within_ms: how long a tool that is away is asked again.
        attempts: tries for errors of unknown kind.
    """
    rule = _rule(error, attempts)
    code, message = _code(error), _message(error)
    is_spent = rule.tries is not None and tries >= rule.tries
    if is_spent or age_ms > min(rule.within_ms, within_ms):
        return Verdict(None, code, message)
    if isinstance(error, ToolUnavailable) and error.after_s is not None:
        return Verdict(int(error.after_s * 1000), code, message)
    delay = min(rule.cap_ms, rule.base_ms * 2 ** (tries - 1)) * random.uniform(0.5, 1.5)  # noqa: S311
    return Verdict(int(delay), code, message)


def decide_event(error: Exception, *, tries: int) -> Verdict:
    """Judge a failed delivery of an event: any refusal may pass, but "410 Gone" is final.

    Args:
        tries: how many tries have failed, this one included (1 or more).
    """
    code, message = _code(error), _message(error)
    is_final = not isinstance(error, ConnectorError) or code in _FAREWELLS
    if is_final or tries > len(_EVENT_S):
        return Verdict(None, code, message)
    jitter = random.uniform(1.0, 1.2)  # noqa: S311
    return Verdict(int(_EVENT_S[tries - 1] * 1_000 * jitter), code, message)


def _rule(error: Exception, attempts: int) -> Rule:
    if isinstance(error, StorageUnavailable):
        return STORE_AWAY
    if isinstance(error, ConnectorError):
        return TOOL_AWAY if error.retry else NEVER
    if isinstance(error, (BadRequest, ScriptError, Refused)):
        return NEVER
    return Rule(UNKNOWN.base_ms, UNKNOWN.cap_ms, tries=attempts)


def _code(error: Exception) -> str:
    """The error's own code, or its class name in snake case."""
    own = getattr(error, "code", "")
    if isinstance(own, str) and own:
        return own[:32]
    name = type(error).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")[:32]


def _message(error: Exception) -> str:
    """Our own errors are written for people; a foreign one shows its kind, not its insides."""
    if isinstance(error, KNOWN):
        return str(error)[:500]
    if isinstance(error, StorageUnavailable):
        return str(error)[:500]
    return f"unexpected {type(error).__name__}; see the worker's log"
