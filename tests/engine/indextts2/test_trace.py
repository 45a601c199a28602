"""Every stage against the reference's outputs: the parity table.

Tolerances are maximal errors relative to the largest reference value. Waveforms of random weights
are clipped on nearly all samples: what is left of them lies on slopes so steep that one unit in the
last place of a weight moves it by 5e-4, so they get 2e-3, and the vocoder's parts are compared by
themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from engine.backends.indextts2 import sizes  # noqa: E402
from engine.backends.indextts2.trace import FIXTURES, trace  # noqa: E402

if TYPE_CHECKING:
    from engine.backends.indextts2.model import Model

STORED = Path(__file__).parents[2] / "fixtures" / "indextts2"
EXACT = 0.0
TOLERANCES = {
    "gpt_conditioning": {
        "conformer": 1e-4,
        "latents": 1e-4,
        "emovec_speaker": 1e-4,
        "emovec_emotion": 1e-4,
        "merged_alpha_0_65": 1e-4,
        "second_latents_unpadded": 1e-4,
    },
    "gpt_generate": {
        "text": EXACT,
        "cond_latents": 1e-4,
        "prefix_embeds": 1e-5,
        "greedy_codes": EXACT,
        "greedy_step_logits": 1e-4,
        "leftpadded_batch_text": EXACT,
        "leftpadded_batch_greedy_codes": EXACT,
        "latent_second_forward": 1e-4,
        "latent_codes": EXACT,
    },
    "semantic_codec": {"codes": EXACT, "s_ref": 1e-5, "vq2emb": 1e-5},
    "gpt_layer_and_length_regulator": {
        "gpt_layer": 1e-5,
        "regulated_17_to_29": 1e-5,
        "first9_to_15": 1e-5,
    },
    "cfm": {"estimator_single": 1e-4, "t_embedding": 1e-4, "solve_euler_5_steps": 1e-4},
    "bigvgan": {"wav": 2e-3, "activation_out": 1e-6, "up_filter": 1e-6, "down_filter": 1e-6},
    "speaker": {
        "campplus_style": 1e-4,
        "mel_80": 1e-4,
        "resample_22050_to_16000": 1e-4,
        "kaldi_fbank_80": 1e-4,
    },
    "w2v_bert": {"input_features": 1e-4, "attention_mask": EXACT, "hidden_layer_used": 1e-4},
    "chain": {
        "target_frames": EXACT,
        "mel": 1e-5,
        "wav": 2e-3,
        "frames_for_1_to_1500_codes": EXACT,
    },
}


@pytest.fixture(scope="module")
def outputs(parity_model: Model) -> dict[str, dict[str, Any]]:
    return {name: trace(name, 0, parity_model) for name in FIXTURES}


@pytest.mark.parametrize(
    ("fixture", "name"), [(f, n) for f, names in TOLERANCES.items() for n in names]
)
def test_outputs_equal_the_reference(
    outputs: dict[str, dict[str, Any]], fixture: str, name: str
) -> None:
    with np.load(STORED / f"{fixture}.npz") as stored:
        wanted = stored[name].astype(np.float64)
    ours = outputs[fixture][name].astype(np.float64)

    assert ours.shape == wanted.shape
    limit = TOLERANCES[fixture][name] * np.abs(wanted).max()
    assert np.abs(ours - wanted).max() <= limit


def test_another_seed_gives_another_network_of_the_same_shapes(
    outputs: dict[str, dict[str, Any]],
) -> None:
    other = trace("gpt_layer_and_length_regulator", 7)

    ours = outputs["gpt_layer_and_length_regulator"]
    assert {k: v.shape for k, v in other.items()} == {k: v.shape for k, v in ours.items()}
    assert not np.allclose(other["gpt_layer"], ours["gpt_layer"])


def test_command_line_writes_the_named_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.backends.indextts2 import trace as module

    out = tmp_path / "out.npz"
    monkeypatch.setattr("sys.argv", ["trace", "semantic_codec", "--seed", "3", "--out", str(out)])
    module.main()

    with np.load(out) as stored:
        assert set(stored.files) == {"codes", "s_ref", "vq2emb"}


def test_comparison_prints_an_error_for_every_stored_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from engine.backends.indextts2 import trace as module

    monkeypatch.setattr("sys.argv", ["trace", "semantic_codec", "--compare", str(STORED)])
    module.main()

    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| semantic_codec | codes | equal |"
    assert len(lines) == 5


def test_vocoder_equals_the_reference_before_clipping_hides_it(parity_model: Model) -> None:
    """Where the reference is not clipped, ours is not either, and signs agree everywhere."""
    with np.load(STORED / "bigvgan.npz") as stored:
        wanted = stored["wav"]
    ours = trace("bigvgan", 0, parity_model)["wav"]

    assert np.array_equal(np.abs(ours) >= 1, np.abs(wanted) >= 1)
    assert np.array_equal(np.sign(ours), np.sign(wanted))


def test_published_latent_width_is_the_parity_width() -> None:
    assert sizes.FULL.gpt["model_dim"] == 1280
