from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
from engine.backends.indextts2.library import (
    Consent,
    VoiceLibrary,
    check_clip,
    read_audio,
)
from engine.errors import BadRequest, UnknownVoice

CONSENT = Consent("Ann", "own_voice", given_by="Ann", given_on="2026-11-22")


@pytest.fixture
def library(tmp_path: Path) -> VoiceLibrary:
    return VoiceLibrary(tmp_path / "voices")


def test_added_voice_is_there_with_its_consent(library: VoiceLibrary, clip: Path) -> None:
    library.add("ann", clip, CONSENT, lang="en", gender="female")

    (cloned,) = VoiceLibrary(library.folder).all()
    assert (cloned.voice.id, cloned.voice.lang, cloned.consent) == ("ann", "en", CONSENT)
    assert cloned.clip.read_bytes() == clip.read_bytes()


def test_removed_voice_takes_its_recording_with_it(library: VoiceLibrary, clip: Path) -> None:
    stored = library.add("ann", clip, CONSENT).clip
    library.remove("ann")

    assert not stored.exists()
    with pytest.raises(UnknownVoice, match="no voice has been added yet"):
        library.get("ann")


def test_unknown_voice_names_the_nearest(library: VoiceLibrary, clip: Path) -> None:
    library.add("ann", clip, CONSENT)

    with pytest.raises(UnknownVoice, match="there are: ann"):
        library.get("anne")


@pytest.mark.parametrize("name", ["", "Ann", "../x", "a b", "a" * 65])
def test_names_that_are_no_folder_names_are_refused(
    library: VoiceLibrary, clip: Path, name: str
) -> None:
    with pytest.raises(BadRequest, match="no voice name"):
        library.add(name, clip, CONSENT)


def test_taken_name_is_refused_and_nothing_changes(library: VoiceLibrary, clip: Path) -> None:
    library.add("ann", clip, CONSENT)
    with pytest.raises(BadRequest, match="exists already"):
        library.add("ann", clip, replace(CONSENT, speaker="Eve"))

    assert library.get("ann").consent.speaker == "Ann"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"speaker": " "}, "lacks: speaker"),
        ({"given_by": ""}, "lacks: given_by"),
        ({"method": "trust_me"}, "none of own_voice"),
        ({"method": "signed_document"}, "lacks: evidence"),
    ],
)
def test_voice_without_consent_cannot_be_described(change: dict[str, str], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        replace(CONSENT, **change)


def speech(seconds: float, level: float = 0.3) -> np.ndarray:
    t = np.arange(int(seconds * 16_000)) / 16_000
    return (level * np.sin(2 * np.pi * 200 * t)).astype(np.float32)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (speech(2), "2.0 s of speech; 3 to 60 s"),
        (speech(70), "70.0 s of speech"),
        (speech(5, 0.001), "too quiet"),
        (np.clip(speech(5, 3.0), -1, 1), "is clipped"),
        (np.concatenate([speech(2), np.zeros(16_000 * 10, np.float32)]), "2.0 s of speech"),
        (np.zeros(0, np.float32), "is empty"),
    ],
)
def test_unusable_clips_are_refused_with_the_cure(samples: np.ndarray, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        check_clip(samples, 16_000)


def test_usable_clip_tells_its_speech() -> None:
    padded = np.concatenate([speech(4), np.zeros(16_000, np.float32)])

    assert check_clip(padded, 16_000) == pytest.approx(4.0, abs=0.05)


def test_stereo_is_mixed_and_the_rate_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    left = (speech(1) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.stack([left, np.zeros_like(left)], 1).tobytes())

    samples, rate = read_audio(path)
    assert rate == 16_000 and len(samples) == 16_000
    assert np.abs(samples).max() == pytest.approx(0.15, abs=0.01)


def test_file_that_is_no_audio_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "notes.wav"
    path.write_text("not audio")

    with pytest.raises(BadRequest, match=r"notes\.wav is not a readable audio file"):
        read_audio(path)
