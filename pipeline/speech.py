"""Speech for programs: one text in one voice, word for word, and which voice a name means.

A speech is an episode like any other, so it is spoken by any worker, survives it, and has a
recording; only its script is the text itself, with nothing read into it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from connectors.base import Note, NoteRef
from engine.base import Voice
from pipeline import ids, intake
from pipeline.database import now_ms
from pipeline.models import episode, note
from pipeline.notes import note_to_json
from pipeline.script import Chapter, Script, Segment
from pipeline.script.casting import by_grade
from pipeline.script.model import NARRATOR
from pipeline.script.words import language_of
from pipeline.services import Services, make_engine
from pipeline.settings import Settings
from pipeline.voices import list_voices

TITLE_CHARS = 40
SPEEDS = (0.5, 2.0)
"""What the engines can do; a wish beyond it gets the nearest."""

WELL_KNOWN: Mapping[str, tuple[str, int]] = {
    "alloy": ("female", 0),
    "ash": ("male", 0),
    "ballad": ("male", 1),
    "cedar": ("male", 2),
    "coral": ("female", 1),
    "echo": ("male", 3),
    "fable": ("male", 4),
    "marin": ("female", 2),
    "nova": ("female", 3),
    "onyx": ("male", 5),
    "sage": ("female", 4),
    "shimmer": ("female", 5),
    "verse": ("male", 6),
}
"""OpenAI's names: gender, and which of that gender in the order of quality."""

_KEEP_S = 60.0
_SHARE = re.compile(r"([^:,]+):[\d.]+")  # of a blend: af_heart:0.6,af_bella:0.4


@dataclass(frozen=True, slots=True)
class Speech:
    """What is asked for.

    Attributes:
        voice: an id of the engine.
        emotion: a name or free text; empty for none.
        speed: times the natural pace, within `SPEEDS`.
    """

    text: str
    voice: str
    emotion: str = ""
    speed: float = 1.0


def language(text: str) -> str:
    """The language a text is in, as its script tells."""
    return language_of(text, "")


def order(services: Services, speech: Speech, *, asked_by: str) -> str:
    """Store a speech and wake a worker; returns the key of its episode. Blocks.

    Args:
        asked_by: who pays for it, for limits and reports.

    Raises:
        DatabaseUnavailable: nothing was stored, as far as can be known.
    """
    door = services.doors["api"]
    content = _note(speech)
    with services.database.write() as connection:
        note_id = ids.ulid()
        connection.execute(
            note.insert().values(
                id=note_id,
                tenant_id=door.tenant_id,
                endpoint_id=door.endpoint_id,
                fingerprint=content.fingerprint,
                title=content.title,
                content=note_to_json(content),
                created_ms=now_ms(),
                changed_ms=now_ms(),
            )
        )
        taken = intake.create_episode(
            connection,
            services.links,
            door,
            notes=[(note_id, 1)],
            content=content,
            casting={"default": speech.voice},
            asked_by=asked_by[:80],
        )
        connection.execute(
            episode.update()
            .where(episode.c.id == taken.episode_id)
            .values(script=_script(speech, content.title).kept())
        )
    services.sender.committed(taken.wake_ups)
    return taken.accepted.episode


def _note(speech: Speech) -> Note:
    words = " ".join(speech.text.split())
    title = words if len(words) <= TITLE_CHARS else words[: TITLE_CHARS - 1].rstrip() + "…"
    return Note(
        ref=NoteRef("api"),
        text=speech.text,
        title=title,
        lang=language(speech.text),
        emotion=speech.emotion,
        duration="" if speech.speed == 1 else f"speed:{speech.speed:.4f}",
        detail="verbatim",
    )


def _script(speech: Speech, title: str) -> Script:
    said = Segment("prose", NARRATOR, speech.text, emotion=speech.emotion)
    return Script(title, language(speech.text), (Chapter(title, (said,)),))


class Catalogue:
    """The voices of an installation, asked for at most once a minute; for any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._voices: list[Voice] = []
        self._asked_at = float("-inf")
        self._narrators: dict[str, str] = {}  # by language

    def voices(self) -> list[Voice]:
        """Every voice that can be asked for. May block.

        Raises:
            EngineError: a remote engine cannot be asked, or its model is missing.
        """
        with self._lock:
            if time.monotonic() > self._asked_at + _KEEP_S:
                self._voices = list_voices(self._settings)
                self._asked_at = time.monotonic()
            return self._voices

    def find(self, name: str, lang: str) -> str | None:
        """The id of the voice that `name` means for a text in `lang`; None if nobody has it.

        An id or a blend of ids means itself. One of OpenAI's names means a voice of this language
        and of its gender, always the same one; Kokoro's own voice of that name, if it speaks it.
        `alloy`, which most programs ask for, is the narrator of the installation.
        """
        voices = self.voices()
        known = {voice.id for voice in voices}
        parts = [_SHARE.fullmatch(part.strip()) for part in name.split(",")]
        if name in known or all(part and part[1].strip() in known for part in parts):
            return name
        if name not in WELL_KNOWN:
            return None
        if name == "alloy" and (narrator := self._narrator(lang)) in known:
            return narrator
        return _like(name, [voice for voice in voices if voice.lang in (lang, "")] or voices)

    def _narrator(self, lang: str) -> str:
        """The voice that speaks `lang` when nobody asks for one."""
        settings = self._settings
        wished = {"en": settings.voice_en, "zh": settings.voice_zh}.get(lang, "")
        if wished or settings.engine == "indextts2":  # whose model takes gigabytes to ask
            return wished
        if lang not in self._narrators:
            with make_engine(settings) as engine:
                self._narrators[lang] = engine.default_voice(lang)
        return self._narrators[lang]


def _like(name: str, voices: Sequence[Voice]) -> str | None:
    gender, rank = WELL_KNOWN[name]
    namesake = [voice.id for voice in voices if voice.id.partition("_")[2] == name]
    fitting = sorted((voice for voice in voices if voice.gender == gender), key=by_grade)
    ids_ = namesake or [voice.id for voice in fitting or voices]
    return ids_[rank % len(ids_)] if ids_ else None
