"""Cloned voices on disk: a clip, who agreed to it, and nothing a model has to run for.

One folder per voice holds `clip.wav` (or the format it came in) and `voice.json`. A voice is added
only with consent: zero-shot cloning makes any other default a tool for fraud.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.base import Voice
from engine.errors import BadRequest, UnknownVoice

METHODS = ("own_voice", "recorded_statement", "signed_document")
SHORTEST_S, LONGEST_S = 3.0, 60.0
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_QUIET_DBFS, _SPEECH_BELOW_PEAK_DB = -45.0, 35.0
_CLIPPED_SHARE = 0.001
_FRAME_S = 0.02

Wave = npt.NDArray[np.float32]
"""(samples,) mono, -1..1."""


@dataclass(frozen=True, slots=True)
class Consent:
    """Who agreed to be cloned, and how that can be shown.

    Attributes:
        speaker: whose voice it is.
        method: one of METHODS.
        given_by: who entered it here.
        given_on: ISO date.
        evidence: where the statement or document lies; needed unless it is one's own voice.
    """

    speaker: str
    method: str
    given_by: str
    given_on: str
    evidence: str = ""

    def __post_init__(self) -> None:
        missing = [n for n in ("speaker", "given_by", "given_on") if not getattr(self, n).strip()]
        if self.method not in METHODS:
            raise BadRequest(
                f"consent method '{self.method}' is none of {', '.join(METHODS)}", field="consent"
            )
        if self.method != "own_voice" and not self.evidence.strip():
            missing.append("evidence")
        if missing:
            raise BadRequest(f"consent lacks: {', '.join(missing)}", field="consent")


@dataclass(frozen=True, slots=True)
class ClonedVoice:
    """A voice of the library.

    Attributes:
        voice: as callers see it.
        clip: its recording.
        digest: SHA-256 of the recording's bytes.
        consent: who agreed.
    """

    voice: Voice
    clip: Path
    digest: str
    consent: Consent


class VoiceLibrary:
    """The voices in a folder; every look goes to the disk, so other processes may add voices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[ClonedVoice]:
        """Every voice, by name."""
        if not self.folder.is_dir():
            return []
        found = sorted(p.parent.name for p in self.folder.glob("*/voice.json"))
        return [self.get(name) for name in found]

    def get(self, name: str) -> ClonedVoice:
        """One voice.

        Raises:
            UnknownVoice: names the nearest ones.
        """
        path = self.folder / name / "voice.json"
        if not _NAME.fullmatch(name) or not path.is_file():
            raise UnknownVoice(self._no_such(name), field="voice")
        raw = json.loads(path.read_text(encoding="utf-8"))
        return ClonedVoice(
            voice=Voice(id=name, name=raw["name"], lang=raw["lang"], gender=raw["gender"]),
            clip=path.parent / raw["clip"],
            digest=raw["digest"],
            consent=Consent(**raw["consent"]),
        )

    def add(
        self, name: str, clip: Path, consent: Consent, *, lang: str = "zh", gender: str = ""
    ) -> ClonedVoice:
        """Check a clip and take it into the library.

        Raises:
            BadRequest: a bad name, the name is taken, or the clip is unusable; says why and what
                helps.
        """
        if not _NAME.fullmatch(name):
            raise BadRequest(
                f"'{name}' is no voice name: lower-case letters, digits, - and _, at most 64",
                field="name",
            )
        if (self.folder / name).exists():
            raise BadRequest(f"a voice '{name}' exists already; remove it first", field="name")
        check_clip(*read_audio(clip))
        fresh = self.folder / f".{name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        stored = fresh / f"clip{clip.suffix.lower()}"
        shutil.copyfile(clip, stored)
        about = {
            "name": name,
            "lang": lang,
            "gender": gender,
            "clip": stored.name,
            "digest": hashlib.sha256(stored.read_bytes()).hexdigest(),
            "consent": asdict(consent),
        }
        (fresh / "voice.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        fresh.rename(self.folder / name)  # appears whole or not at all
        return self.get(name)

    def remove(self, name: str) -> None:
        """Delete a voice and its recording; UnknownVoice if there is none."""
        shutil.rmtree(self.get(name).clip.parent)

    def _no_such(self, name: str) -> str:
        names = [p.parent.name for p in self.folder.glob("*/voice.json")]
        if not names:
            return "no voice has been added yet: notecast voices add NAME clip.wav"
        near = get_close_matches(name, names, n=3, cutoff=0.0)
        return f"no voice '{name}' here; there are: {', '.join(near)}"


def read_audio(path: Path) -> tuple[Wave, int]:
    """Samples (mono) and sampling rate in Hz of any file FFmpeg reads.

    Raises:
        BadRequest: it is no audio file.
    """
    import av  # 0.1 s: only when a clip is read

    try:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            rate_hz = int(stream.rate)
            to_float = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate_hz)
            blocks = [
                out.to_ndarray()
                for frame in container.decode(stream)
                for out in to_float.resample(frame)
            ]
            blocks += [out.to_ndarray() for out in to_float.resample(None)]
    except (av.FFmpegError, IndexError, OSError) as error:
        raise BadRequest(f"{path} is not a readable audio file: {error}", field="clip") from error
    if not blocks:
        raise BadRequest(f"{path} holds no sound", field="clip")
    return np.concatenate(blocks, axis=1).mean(axis=0, dtype=np.float32), rate_hz


def check_clip(wave: Wave, rate_hz: int) -> float:
    """Length of the speech in a clip, in seconds, if it can be cloned from.

    Raises:
        BadRequest: too short, too long, too quiet or clipped; says what helps.
    """
    frame = max(1, int(_FRAME_S * rate_hz))
    whole = wave[: len(wave) // frame * frame].reshape(-1, frame)
    if not len(whole):
        raise BadRequest("the clip is empty", field="clip")
    level_db = 10 * np.log10(np.square(whole, dtype=np.float64).mean(1) + 1e-12)
    loudest_db = float(level_db.max())
    speech_s = float((level_db > loudest_db - _SPEECH_BELOW_PEAK_DB).sum()) * _FRAME_S
    clipped = float((np.abs(wave) >= 0.999).mean())
    if loudest_db < _QUIET_DBFS:
        raise BadRequest(
            f"the clip is too quiet ({loudest_db:.0f} dBFS); record closer to the microphone",
            field="clip",
        )
    if clipped > _CLIPPED_SHARE:
        raise BadRequest(
            f"{clipped:.1%} of the clip is clipped; record with a lower input level", field="clip"
        )
    if not SHORTEST_S <= speech_s <= LONGEST_S:
        raise BadRequest(
            f"the clip holds {speech_s:.1f} s of speech; "
            f"{SHORTEST_S:.0f} to {LONGEST_S:.0f} s are needed "
            "(5 to 15 s of one speaker without music work best)",
            field="clip",
        )
    return speech_s
