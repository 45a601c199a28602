"""The voice library from the command line: what can be asked for, cloned and taken back.

Adding and removing needs no model: a clone is a recording and the consent of its speaker. Where a
model is at hand, its features are computed at once, so that the first listener does not wait.
"""

from __future__ import annotations

import importlib.util
import shutil
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from engine.base import Voice
from pipeline.errors import Refused
from pipeline.services import make_engine
from pipeline.settings import Settings

if TYPE_CHECKING:
    from engine.backends.indextts2.library import VoiceLibrary

_EXTRA = ("torch", "transformers", "sentencepiece", "safetensors", "wetext")


def list_voices(settings: Settings) -> list[Voice]:
    """Every voice of the engine; cloned ones without loading their model."""
    if settings.engine == "indextts2":
        return [cloned.voice for cloned in _library(settings).all()]
    with make_engine(settings) as engine:
        return engine.voices()


def add_voice(
    settings: Settings,
    name: str,
    clip: Path,
    *,
    speaker: str,
    method: str,
    given_by: str,
    given_on: str = "",
    evidence: str = "",
    lang: str = "zh",
    gender: str = "",
) -> bool:
    """Take a clip into the library, with its speaker's consent; True if its features are ready.

    Args:
        name: the voice's id from now on.
        clip: 3 to 60 s of speech in any format FFmpeg reads.
        speaker: whose voice it is.
        method: how they agreed: `own_voice`, `recorded_statement`, `signed_document`.
        given_by: who enters it.
        given_on: ISO date of the consent; empty: today.
        evidence: where the statement or document lies; needed unless it is one's own voice.

    Raises:
        Refused: the engine has no cloned voices, or the date is none.
        EngineError: the clip, the name or the consent cannot be used, or the model cannot be
            loaded; nothing is added then.
    """
    library = _library(settings)
    from engine.backends.indextts2.library import Consent

    consent = Consent(
        speaker, method, given_by=given_by, given_on=_iso_date(given_on), evidence=evidence
    )
    if settings.model_dir is None:
        library.add(name, clip, consent, lang=lang, gender=gender)
        return False
    with make_engine(settings) as engine:  # first: a model that cannot be loaded adds nothing
        library.add(name, clip, consent, lang=lang, gender=gender)
        engine.warm()
    return True


def remove_voice(settings: Settings, name: str) -> None:
    """Delete a clone, its recording and everything computed from it.

    The features of all voices go, because they do not say whose they are; the others' are computed
    again when they are needed.

    Raises:
        Refused: the engine has no cloned voices.
        UnknownVoice: there is no such voice; the message names the nearest.
    """
    library = _library(settings)
    library.remove(name)
    shutil.rmtree(library.folder / ".features", ignore_errors=True)


def examine_release(settings: Settings) -> list[tuple[bool, str]]:
    """What the engine indextts2 needs: packages, files, a voice; (is good, what or its cure)."""
    from engine.backends.indextts2.release import missing_files

    absent = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    findings = [
        (False, f"{', '.join(absent)} not installed: pip install 'notecast[indextts2]'")
        if absent
        else (True, "packages of notecast[indextts2]")
    ]
    if settings.model_dir is None or not settings.model_dir.is_dir():
        lacking = "not set" if settings.model_dir is None else f"no folder {settings.model_dir}"
        findings.append(
            (False, f"--model-dir (NOTECAST_MODEL_DIR): {lacking}; see docs/indextts2.md")
        )
    else:
        missing = missing_files(settings.model_dir)
        findings += [
            (False, f"{settings.model_dir / file.paths[0]}: published in {file.publisher}")
            for file in missing
        ]
        if not missing:
            findings.append((True, f"all files of the release in {settings.model_dir}"))
        findings += [
            (True, f"optional {file.paths[0]} is not there; without it no {file.optional}")
            for file in missing_files(settings.model_dir, optional=True)
        ]
    names = ", ".join(cloned.voice.id for cloned in _library(settings).all())
    findings.append((bool(names), f"clones: {names or 'none yet; notecast voices add'}"))
    return [(is_good, f"voice indextts2: {text}") for is_good, text in findings]


def _library(settings: Settings) -> VoiceLibrary:
    if settings.engine != "indextts2":
        raise Refused(
            f"the voices of engine {settings.engine} are fixed; cloned voices need "
            "--engine indextts2",
            field="/engine",
        )
    from engine.backends.indextts2.library import VoiceLibrary

    return VoiceLibrary(settings.data / "voices")


def _iso_date(text: str) -> str:
    try:
        return (date.fromisoformat(text) if text else date.today()).isoformat()  # noqa: DTZ011
    except ValueError:
        raise Refused(f"{text!r} is no date like 2026-11-22", field="/given_on") from None
