"""The voices that can be chosen by name, imported only when they are."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import NamedTuple

from engine.base import Backend
from engine.errors import BadRequest


class Entry(NamedTuple):
    """Where a backend lives and what people are told about it."""

    module: str
    cls: str
    help: str
    extra: str = ""  # the pip extra that brings what it imports, if any


BACKENDS = {
    "kokoro": Entry(
        "engine.backends.kokoro", "Kokoro", "the embedded voice: CPU, offline, the default"
    ),
    "indextts2": Entry(
        "engine.backends.indextts2.backend",
        "IndexTTS2",
        "IndexTTS-2: cloned voices on a GPU; needs the release's files (docs/indextts2.md)",
        extra="indextts2",
    ),
    "remote": Entry(
        "engine.backends.remote", "Remote", "an OpenAI-shaped speech server (docs/remote-engine.md)"
    ),
    "tone": Entry(
        "engine.backends.tone", "Tone", "coded beeps instead of speech, for tests and drills"
    ),
}


def make_backend(name: str, **options: object) -> Backend:
    """Build the backend `name`; `options` are its own keyword arguments.

    Raises:
        BadRequest: no such backend, an option it does not have, or a package it needs is missing.
    """
    entry = BACKENDS.get(name)
    if entry is None:
        near = get_close_matches(name, BACKENDS, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(sorted(BACKENDS))}"
        raise BadRequest(f"no engine is called '{name}'; {hint}", field="engine")
    try:
        cls: type[Backend] = getattr(import_module(entry.module), entry.cls)
        _check_options(name, cls, options)
        return cls(**options)
    except ModuleNotFoundError as error:
        wanted = f"notecast[{entry.extra}]" if entry.extra else "notecast"
        raise BadRequest(
            f"engine '{name}' needs the package '{error.name}', which is not installed; "
            f"pip install '{wanted}'",
            field="engine",
        ) from error


def _check_options(name: str, cls: type[Backend], options: dict[str, object]) -> None:
    try:
        signature(cls).bind(**options)
    except TypeError as error:
        raise BadRequest(f"engine '{name}': {error}", field="engine") from error
