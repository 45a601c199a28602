"""`notecast say`: text to a file in this process, without any server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from engine.base import SAMPLE_RATE_HZ, Controls, Pcm, SpeechRequest, Turn
from engine.engine import Engine
from pipeline.audio import Encoder, Format, Recording, pad_to_packet, to_flac
from pipeline.errors import Refused
from pipeline.services import make_engine
from pipeline.settings import Settings

_FORMATS: dict[str, Format] = {".ogg": "opus", ".opus": "opus", ".mp3": "mp3", ".wav": "wav"}


def say_to_file(
    settings: Settings,
    text: str,
    out: Path,
    *,
    voice: str = "",
    lang: str = "auto",
    speed: float = 1.0,
    target_s: float | None = None,
    emotion: str = "",
    show_progress: bool = False,
) -> dict[str, Any]:
    """Speak `text` into `out`; its ending chooses the format.

    Returns:
        audio_s, wall_s (without loading the model), rtf, load_s, voices, and notes for a person.

    Raises:
        Refused: empty text or an ending that is no format.
        EngineError: the engine cannot speak it; the message says what can.
    """
    if not text.strip():
        raise Refused("there is nothing to say", field="/text")
    if out.suffix not in {*_FORMATS, ".flac"}:
        endings = ", ".join(sorted({*_FORMATS, ".flac"}))
        raise Refused(f"{out}: unknown ending; these work: {endings}", field="/out")
    turn = Turn(text, voice=voice, lang=lang, controls=Controls(rate=speed, emotion=emotion))
    request = SpeechRequest((turn,), target_s=target_s)
    with make_engine(settings) as engine:
        began = time.monotonic()
        plan = engine.plan(request)
        engine.warm(sorted({sentence.lang for sentence in plan.sentences}))
        load_s = time.monotonic() - began
        began = time.monotonic()
        pcm, remarks = _speak(engine, request, len(plan.sentences), show_progress=show_progress)
        wall_s = time.monotonic() - began
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(_encoded(pcm, out.suffix))
    audio_s = len(pcm) / SAMPLE_RATE_HZ
    return {
        "file": str(out),
        "audio_s": round(audio_s, 3),
        "wall_s": round(wall_s, 3),
        "load_s": round(load_s, 3),
        "rtf": round(wall_s / audio_s, 4),
        "voices": sorted({sentence.voice for sentence in plan.sentences}),
        "notes": [
            *plan.warnings,
            *(f"{name}: the nearest this engine has was used" for name in plan.degraded),
            *remarks,
        ],
    }


def _speak(
    engine: Engine, request: SpeechRequest, sentences: int, *, show_progress: bool
) -> tuple[Pcm, list[str]]:
    parts: list[Pcm] = []
    remarks: list[str] = []
    columns = (TextColumn("speaking"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), transient=True, disable=not show_progress) as bar:
        task = bar.add_task("", total=sentences)
        for chunk in engine.speak(request):
            if chunk.kept:
                parts.append(chunk.pcm)
                remarks += chunk.remarks
                bar.advance(task, int(chunk.last))
    return np.concatenate(parts), remarks


def _encoded(pcm: Pcm, ending: str) -> bytes:
    if ending == ".flac":
        return to_flac(pcm)
    encoder = Encoder()
    try:
        recording = Recording(encoder, formats=(_FORMATS[ending],), spec_hash="0" * 64)
        recording.add(pcm if ending == ".wav" else pad_to_packet(pcm))
        return recording.finish()[0].body
    finally:
        encoder.close()
