from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from engine.backends.indextts2 import emotion, seeds  # noqa: E402
from engine.errors import BadRequest, UnsupportedFeature  # noqa: E402

if TYPE_CHECKING:
    from engine.backends.indextts2.model import Model
    from engine.backends.indextts2.voice import VoiceFeatures

STORED = json.loads(
    (Path(__file__).parents[2] / "fixtures" / "indextts2" / "emotion.json").read_text()
)


def no_voice(name: str) -> bool:
    return False


@pytest.mark.parametrize("row", STORED["normalize_emo_vec"])
def test_weights_are_limited_as_in_the_reference(row: dict[str, list[float]]) -> None:
    assert emotion.limit(row["in"]) == pytest.approx(row["bias"], abs=1e-6)
    assert emotion.limit(row["in"], bias=False) == pytest.approx(row["no_bias"], abs=1e-6)


def test_nearest_rows_equal_the_reference() -> None:
    rows = torch.from_numpy(seeds.normal_input(0, "spk_matrix", (73, 192)))
    style = torch.from_numpy(seeds.normal_input(0, "style_vec", (1, 192)))[0]

    ours = emotion.nearest_rows(style, rows, STORED["rows_per_emotion"])
    assert ours == STORED["nearest_row_per_emotion"]


@pytest.mark.parametrize("row", STORED["qwen_convert"])
def test_scores_become_weights_as_in_the_reference(row: dict[str, dict[str, float]]) -> None:
    assert emotion.to_vector(row["in"]) == pytest.approx(list(row["out"].values()), abs=1e-6)


def test_strength_cuts_to_four_places() -> None:
    assert emotion.weaken([1 / 3] * 8, 0.5) == (0.1666,) * 8
    assert emotion.weaken([1 / 3] * 8, 1.0) == (1 / 3,) * 8


@pytest.mark.parametrize(
    ("asked", "index", "weight"),
    [
        ("happy", 0, 0.8),
        ("悲伤", 2, 0.8),
        ("happy:0.5, calm:0.2", 0, 0.46875),
        ("[0,0,0.4,0,0,0,0,0]", 2, 0.4),
    ],
)
def test_names_weights_and_vectors_are_understood(asked: str, index: int, weight: float) -> None:
    vector = emotion.parse(asked, "neutral", no_voice).vector

    assert vector is not None
    assert vector[index] == pytest.approx(weight)
    assert sum(vector) <= 0.8 + 1e-9


def test_emotion_is_weakened_by_its_suffix() -> None:
    whole = emotion.parse("happy:0.5", "neutral", no_voice).vector
    half = emotion.parse("happy:0.5@0.5", "neutral", no_voice).vector
    described = emotion.parse("full of hope@0.3", "neutral", no_voice)

    assert whole is not None and half is not None
    assert half[0] == pytest.approx(whole[0] / 2, abs=1e-4)
    assert (described.text, described.strength) == ("full of hope", 0.3)


def test_other_words_are_a_description_and_a_voice_is_borrowed_by_manner() -> None:
    assert emotion.parse("tired but hopeful", "neutral", no_voice).text == "tired but hopeful"
    borrowed = emotion.parse("", "bob@0.9", lambda name: name == "bob")
    assert (borrowed.voice, borrowed.strength) == ("bob", 0.9)
    assert emotion.parse("", "neutral", no_voice) == emotion.OWN
    assert emotion.parse("", "lively", no_voice).vector is not None


@pytest.mark.parametrize("asked", ["happy:9", "[1,2]", "jolly:0.5"])
def test_weights_that_make_no_sense_are_refused(asked: str) -> None:
    with pytest.raises(BadRequest):
        emotion.parse(asked, "neutral", no_voice)
    with pytest.raises(BadRequest, match="neither a preset"):
        emotion.parse("", "nobody", no_voice)


def test_what_weights_leave_is_the_speakers_own(tiny_model: Model, voice: VoiceFeatures) -> None:
    nothing = emotion.apply(tiny_model, voice, (0.0,) * 8)
    happy = emotion.apply(tiny_model, voice, (0.8, *[0.0] * 7))

    assert torch.equal(nothing, voice.own_emotion)
    assert not torch.allclose(happy, voice.own_emotion)


def test_description_without_the_language_model_names_what_works(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeature, match=r"happy:0\.6"):
        emotion.Describer(tmp_path)


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ('{"高兴": 0.6, "自然": 0.2}', {"高兴": 0.6, "自然": 0.2}),
        ('{"emotion": "恐惧"}', {"恐惧": 1.0}),
        ("高兴: 0.4，悲伤：0.1", {"高兴": 0.4, "悲伤": 0.1}),
        ("惊讶", {"惊讶": 1.0}),
        ("no idea", {}),
    ],
)
def test_answers_of_the_language_model_are_read(answer: str, scores: dict[str, float]) -> None:
    assert emotion.read_scores(answer) == scores


def test_gloomy_descriptions_swap_sad_and_melancholic() -> None:
    assert emotion.swap_gloom("feeling depressed", {"悲伤": 0.7})["低落"] == 0.7
    assert emotion.swap_gloom("feeling fine", {"悲伤": 0.7}) == {"悲伤": 0.7}
