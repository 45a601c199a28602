"""pipeline/voices.py and its commands: cloned voices come with consent and go without a trace."""

from __future__ import annotations

import json
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from engine.backends.indextts2.library import VoiceLibrary
from engine.backends.indextts2.release import RELEASE
from engine.errors import BadRequest, UnknownVoice
from pipeline import operate
from pipeline.errors import Misconfigured, Refused
from pipeline.services import make_engine
from pipeline.settings import Settings
from pipeline.voices import add_voice, list_voices, remove_voice
from tests.pipeline.test_cli import notecast

CONSENT = {"speaker": "Ann Lee", "method": "own_voice", "given_by": "Ann"}


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds that look like speech to level checks."""
    t = np.arange(5 * 24_000) / 24_000
    tone = 0.3 * np.sin(2 * np.pi * 180 * t) * (1 + np.sin(2 * np.pi * 3 * t)) / 2
    path = tmp_path_factory.mktemp("clip") / "ann.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes((tone * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete release with random weights."""
    pytest.importorskip("torch", reason="needs notecast[indextts2]")
    from engine.backends.indextts2 import tiny

    return tiny.write(tmp_path_factory.mktemp("tiny"))


def cloning(data: Path, model_dir: Path | None = None) -> Settings:
    return Settings(data=data, engine="indextts2", model_dir=model_dir, device="cpu")


def doctor(settings: Settings) -> dict[bool, str]:
    findings = [one for one in operate.examine(settings) if "voice " in one[1]]
    return {good: "\n".join(t for is_good, t in findings if is_good == good) for good in (1, 0)}


def test_the_command_line_adds_lists_and_removes_a_clone(tmp_path: Path, clip: Path) -> None:
    where = ("--data", str(tmp_path), "--engine", "indextts2")
    words = ("--speaker", "Ann Lee", "--consent", "signed_document", "--evidence", "drawer 4")
    added = notecast(
        "voices", "add", "ann", str(clip), *words, "--given-on", "2026-11-01", "--lang", "en",
        *where, cwd=tmp_path,
    )  # fmt: skip
    listed = notecast("voices", "list", "--json", *where, cwd=tmp_path)
    consent = VoiceLibrary(tmp_path / "voices").get("ann").consent
    removed = notecast("voices", "remove", "ann", *where, cwd=tmp_path)
    again = notecast("voices", "remove", "ann", *where, cwd=tmp_path)

    assert added.returncode == 0 and "a worker learns it" in added.stdout
    assert [(v["id"], v["lang"]) for v in json.loads(listed.stdout)] == [("ann", "en")]
    assert (consent.speaker, consent.method, consent.evidence, consent.given_on) == (
        "Ann Lee", "signed_document", "drawer 4", "2026-11-01",
    )  # fmt: skip
    assert consent.given_by, "whoever ran the command"
    assert (removed.returncode, again.returncode) == (0, 2)
    assert not (tmp_path / "voices" / "ann").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--consent", "own_voice"), "--speaker"),
        (("--speaker", "Ann"), "--consent"),
        (("--speaker", "Ann", "--consent", "trust_me"), "own_voice"),
        (("--speaker", "Ann", "--consent", "signed_document"), "lacks: evidence"),
        (("--speaker", "Ann", "--consent", "own_voice", "--given-on", "soon"), "no date"),
    ],
)
def test_a_clone_without_consent_is_not_added(
    tmp_path: Path, clip: Path, words: tuple[str, ...], said: str
) -> None:
    where = ("--data", str(tmp_path), "--engine", "indextts2")
    done = notecast("voices", "add", "ann", str(clip), *words, *where, cwd=tmp_path, COLUMNS="200")

    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "voices").exists()


def test_voices_of_other_engines_are_fixed(tmp_path: Path, clip: Path) -> None:
    settings = Settings(data=tmp_path, engine="tone")

    with pytest.raises(Refused, match="--engine indextts2"):
        add_voice(settings, "ann", clip, **CONSENT)
    with pytest.raises(Refused, match="--engine indextts2"):
        remove_voice(settings, "tone_a")
    assert [voice.id for voice in list_voices(settings)][:1] == ["tone_a"]


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("words")

    with pytest.raises(BadRequest, match="not a readable audio file"):
        add_voice(cloning(tmp_path), "ann", tmp_path / "a.wav", **CONSENT)
    with pytest.raises(BadRequest, match="not a readable audio file"):
        add_voice(cloning(tmp_path), "ann", tmp_path / "none.wav", **CONSENT)


def test_with_a_model_the_voice_is_learnt_at_once_and_unlearnt_with_the_clip(
    tmp_path: Path, clip: Path, tiny_dir: Path
) -> None:
    settings = cloning(tmp_path, tiny_dir)
    learnt = add_voice(settings, "ann", clip, **CONSENT)
    features = list((tmp_path / "voices").rglob("*.safetensors"))
    remove_voice(settings, "ann")

    assert learnt and len(features) == 1
    assert not list((tmp_path / "voices").rglob("*.*"))
    assert list_voices(settings) == []
    with pytest.raises(UnknownVoice):
        remove_voice(settings, "ann")


def test_without_the_extra_nothing_is_added_and_the_cure_is_named(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "engine.backends.indextts2.backend", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(BadRequest, match=r"pip install 'notecast\[indextts2\]'"):
        add_voice(cloning(tmp_path, tmp_path), "ann", clip, **CONSENT)
    assert not (tmp_path / "voices").exists()


def test_the_doctor_names_missing_files_and_who_publishes_them(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    unset = doctor(cloning(tmp_path))
    empty = doctor(cloning(tmp_path, tmp_path / "model"))

    assert "NOTECAST_MODEL_DIR): not set" in unset[False]
    assert "notecast voices add" in unset[False]
    for file in RELEASE:
        line = f"{file.paths[0]}: published in {file.publisher}"
        assert (line in empty[False]) == (not file.optional)
    assert "without it no emotion from a text description" in empty[True]


def test_the_doctor_is_content_with_a_whole_release(
    tmp_path: Path, clip: Path, tiny_dir: Path
) -> None:
    add_voice(cloning(tmp_path), "ann", clip, **CONSENT)
    findings = doctor(cloning(tmp_path, tiny_dir))

    assert findings[False] == ""
    assert f"all files of the release in {tiny_dir}" in findings[True]
    assert "clones: ann" in findings[True]


def test_the_doctor_asks_the_speech_server(tmp_path: Path) -> None:
    nowhere = Settings(data=tmp_path, engine="remote")
    away = Settings(
        data=tmp_path, engine="remote", remote_url="http://127.0.0.1:9", remote_voice="nova"
    )

    with pytest.raises(Misconfigured, match="NOTECAST_REMOTE_URL"):
        make_engine(nowhere)
    assert "NOTECAST_REMOTE_URL" in doctor(nowhere)[False]
    assert "nobody listens at http://127.0.0.1:9/v1" in doctor(away)[False]


def test_the_speech_servers_key_is_masked(tmp_path: Path) -> None:
    done = notecast("config", "--json", cwd=tmp_path, NOTECAST_REMOTE_KEY="hunter2")

    assert "remote_key" in json.loads(done.stdout)
    assert "hunter2" not in done.stdout
