"""Run modules of the tiny release on rule-made inputs: `python -m ...indextts2.trace FIXTURE --seed
N`.

Weights and inputs come from the seed rule, so the outputs can be compared with any other
implementation of the same network. Everything runs through the loader that real weights use;
outputs carry the names of the parity fixtures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.backends.indextts2 import seeds, tiny, weights
from engine.backends.indextts2.campplus import CamPlus
from engine.backends.indextts2.cfm import Window
from engine.backends.indextts2.config import SAMPLE_RATE_HZ
from engine.backends.indextts2.emotion import merge
from engine.backends.indextts2.features import SEMANTIC_RATE_HZ, kaldi_fbank, log_mel, resample
from engine.backends.indextts2.gpt import KvCache, code_position
from engine.backends.indextts2.model import Model
from engine.backends.indextts2.s2mel import frame_count
from engine.backends.indextts2.sampling import penalise
from engine.backends.indextts2.semantic import SemanticEncoder

Outputs = dict[str, Tensor]
PARITY_LATENT_DIM = 1280  # the fixtures feed latents of the full width to the tiny mel stage
EULER_STEPS = 5
MAX_CODES = 40


def trace(
    fixture: str, seed: int, model: Model | None = None
) -> dict[str, npt.NDArray[np.generic]]:
    """Outputs of one fixture by name; without `model` a tiny release is made for it."""
    if model is None:
        with tempfile.TemporaryDirectory() as folder:
            return trace(fixture, seed, parity_model(Path(folder), seed))
    with torch.inference_mode():
        outputs = FIXTURES[fixture](model, seed)
    return {name: value.cpu().numpy() for name, value in outputs.items()}


def parity_model(folder: Path, seed: int) -> Model:
    """The tiny release of a seed, as the fixtures have it, written to `folder` and loaded."""
    return Model(tiny.write(folder, seed=seed, latent_dim=PARITY_LATENT_DIM))


def _normal(seed: int, name: str, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    return torch.from_numpy(seeds.normal_input(seed, name, shape, scale))


def _integers(seed: int, name: str, shape: tuple[int, ...], low: int, high: int) -> Tensor:
    return torch.from_numpy(seeds.integer_input(seed, name, shape, low, high))


def _references(seed: int) -> tuple[Tensor, Tensor]:
    """Semantic features of a speaker and of an emotion."""
    return _normal(seed, "w2v_feat", (1, 41, 1024)), _normal(seed, "w2v_feat_emo", (1, 27, 1024))


def _gpt_conditioning(model: Model, seed: int) -> Outputs:
    speaker, emotion = _references(seed)
    gpt = model.gpt
    base, other = gpt.emotion_vector(speaker), gpt.emotion_vector(emotion)
    return {
        "conformer": gpt.conditioning_encoder(speaker)[0],
        "latents": gpt.speaker_latents(speaker),
        "emovec_speaker": base,
        "emovec_emotion": other,
        "merged_alpha_0_65": merge(base, other, 0.65),
        "second_latents_unpadded": gpt.speaker_latents(emotion),
    }


def _gpt_generate(model: Model, seed: int) -> Outputs:
    speaker, emotion = _references(seed)
    gpt, cfg = model.gpt, model.config.gpt
    merged = merge(gpt.emotion_vector(speaker), gpt.emotion_vector(emotion), 0.65)[0]
    text = _integers(seed, "text", (1, 11), 2, cfg.text_tokens)
    latents = gpt.speaker_latents(speaker)[0]
    prefix = gpt.prefix(latents, merged, text[0].tolist())
    (codes,), (logits,) = greedy(model, [prefix], MAX_CODES)
    first = codes[:12]
    padded = torch.full(
        (2, 11), cfg.stop_text
    )  # the reference pads with the stop mark, which is dropped
    padded[0], padded[1, :7] = text[0], text[0, :7]
    together, _ = greedy(
        model, [gpt.prefix(latents, merged, row.tolist()) for row in padded], MAX_CODES
    )
    return {
        "text": text,
        "cond_latents": latents[None],
        "prefix_embeds": prefix[None],
        "greedy_codes": codes[None],
        "greedy_step_logits": logits[:24],
        "leftpadded_batch_text": padded,
        "leftpadded_batch_greedy_codes": torch.nn.utils.rnn.pad_sequence(
            together, batch_first=True, padding_value=cfg.stop_mel
        ),
        "latent_second_forward": gpt.latents(prefix, first)[None],
        "latent_codes": first[None],
    }


def greedy(
    model: Model, prefixes: Sequence[Tensor], count: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The likeliest codes under the repetition penalty, with the reference's code positions.

    Args:
        model: the release.
        prefixes: (n, D) of each row; rows are decoded together.
        count: most codes of a row.

    Returns:
        For each row its (n,) codes, the stop code last if it came, and the (n, V) raw logits they
        were taken from.
    """
    cfg = model.config.gpt
    longest = max(len(prefix) for prefix in prefixes)
    cache = KvCache(cfg, slots=len(prefixes), positions=longest + count + 1)
    pending = [model.gpt.prefill(prefix, cache, i)[0] for i, prefix in enumerate(prefixes)]
    seen = torch.zeros(len(prefixes), cfg.mel_tokens, dtype=torch.bool)
    seen[:, [1, cfg.start_mel]] = True  # ids that stand for the prefix in the reference's history
    codes: list[list[int]] = [[] for _ in prefixes]
    steps: list[list[Tensor]] = [[] for _ in prefixes]
    going = list(range(len(prefixes)))
    for k in range(1, count + 1):
        raw = torch.stack([pending[row] for row in going])
        best = penalise(raw, seen[going], torch.full((len(going),), 10.0)).argmax(-1)
        for row, code, logits in zip(going, best.tolist(), raw, strict=True):
            codes[row].append(code)
            steps[row].append(logits)
            seen[row, code] = True
        going = [row for row in going if codes[row][-1] != cfg.stop_mel]
        if not going or k == count:
            break
        last = torch.tensor([codes[row][-1] for row in going])
        positions = torch.full((len(going),), code_position(k, "upstream"))
        logits, _ = model.gpt.step(last, positions, cache, going)
        for row, row_logits in zip(going, logits, strict=True):
            pending[row] = row_logits
    return [torch.tensor(row) for row in codes], [torch.stack(row) for row in steps]


def _semantic_codec(model: Model, seed: int) -> Outputs:
    codes, vectors = model.codec.quantise(_normal(seed, "codec_feat", (1, 19, 1024)))
    return {"codes": codes, "s_ref": vectors, "vq2emb": model.codec.embed(codes).transpose(1, 2)}


def _gpt_layer_and_length_regulator(model: Model, seed: int) -> Outputs:
    semantic = _normal(seed, "s_infer", (1, 17, 1024))
    return {
        "gpt_layer": model.projection(_normal(seed, "latent1280", (1, 5, 1280))),
        "regulated_17_to_29": model.regulator(semantic, 29),
        "first9_to_15": model.regulator(semantic[:, :9], 15),
    }


def _cfm(model: Model, seed: int) -> Outputs:
    frames, prompt_frames = 44, 15
    mu = _normal(seed, "mu", (1, frames, 32))
    prompt = _normal(seed, "prompt_mel", (1, 80, prompt_frames))
    style = _normal(seed, "style", (1, 192))
    x = _normal(seed, "x_t", (1, 80, frames))
    noise = _normal(seed, "cfm_noise", (1, 80, frames))
    given = torch.nn.functional.pad(prompt, (0, frames - prompt_frames))
    dit = model.dit
    velocity = dit(x, dit.constant(given, mu, style), dit.modulation(torch.tensor([0.36])))
    window = _window(model, prompt[0], mu[0], style[0], noise[0])
    model.solver.solve(window)
    return {
        "estimator_single": velocity,
        "t_embedding": dit.t_embedder(torch.tensor([0.0, 0.36, 1.0])),
        "solve_euler_5_steps": window.x[None],
    }


def _window(model: Model, prompt: Tensor, mu: Tensor, style: Tensor, noise: Tensor) -> Window:
    """A window from noise over all frames, as the reference draws it."""
    return Window(
        model.dit,
        prompt=prompt,
        condition=mu,
        style=style,
        noise=noise[:, prompt.shape[1] :],
        steps=EULER_STEPS,
    )


def _bigvgan(model: Model, seed: int) -> Outputs:
    blocks: Any = model.vocoder.resblocks
    first = blocks[0].activations[0]
    wave = model.vocoder(_normal(seed, "mel_for_vocoder", (1, 80, 24), 0.5))
    return {
        "wav": wave[:, None],
        "activation_out": first(_normal(seed, "act_in", (1, 64, 20))),
        "up_filter": first.upsample.filter,
        "down_filter": first.downsample.lowpass.filter,
    }


def _speaker(model: Model, seed: int) -> Outputs:
    encoder = model.part("campplus", CamPlus, weights.folded_state)
    wave = _normal(seed, "wav22k", (1, 9000), 0.1)
    at_16k = resample(wave, SAMPLE_RATE_HZ, SEMANTIC_RATE_HZ)
    return {
        "campplus_style": encoder(_normal(seed, "fbank", (1, 131, 80))),
        "mel_80": log_mel(wave),
        "resample_22050_to_16000": at_16k,
        "kaldi_fbank_80": kaldi_fbank(at_16k[0]),
    }


def _w2v_bert(model: Model, seed: int) -> Outputs:
    encoder = SemanticEncoder(model)
    features, mask = encoder.features(_normal(seed, "wav16k", (1, 8000), 0.1)[0])
    return {
        "input_features": features,
        "attention_mask": mask,
        "hidden_layer_used": encoder.states(features, mask),
    }


def _chain(model: Model, seed: int) -> Outputs:
    codes = _integers(seed, "chain_codes", (1, 23), 0, model.config.codec.codebook)
    latent = _normal(seed, "chain_latent", (1, 23, 1280))
    ref_mel = _normal(seed, "chain_ref_mel", (1, 80, 26))
    style = _normal(seed, "chain_style", (1, 192))
    reference = _normal(seed, "chain_s_ref", (1, 15, 1024))
    semantic = model.codec.embed(codes) + model.projection(latent)
    frames = frame_count(23)
    mu = torch.cat([model.regulator(reference, 26), model.regulator(semantic, frames)], 1)
    noise = _normal(seed, "chain_noise", (1, 80, mu.shape[1]))
    mel = model.solver.solve(_window(model, ref_mel[0], mu[0], style[0], noise[0]))[None]
    return {
        "target_frames": torch.tensor([frames]),
        "mel": mel,
        "wav": model.vocoder(mel)[:, None],
        "frames_for_1_to_1500_codes": torch.tensor([frame_count(n) for n in range(1, 1501)]),
    }


FIXTURES: dict[str, Callable[[Model, int], Outputs]] = {
    "gpt_conditioning": _gpt_conditioning,
    "gpt_generate": _gpt_generate,
    "semantic_codec": _semantic_codec,
    "gpt_layer_and_length_regulator": _gpt_layer_and_length_regulator,
    "cfm": _cfm,
    "bigvgan": _bigvgan,
    "speaker": _speaker,
    "w2v_bert": _w2v_bert,
    "chain": _chain,
}


def compare(fixtures: Sequence[str], stored: Path, seed: int) -> Iterator[str]:
    """Lines of a Markdown table: largest error of each output against stored fixtures.

    Errors are relative to the largest stored value; whole numbers must be equal.
    """
    yield "| fixture | output | largest error |"
    yield "|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        model = parity_model(Path(folder), seed)
        for fixture in fixtures:
            outputs = trace(fixture, seed, model)
            with np.load(stored / f"{fixture}.npz") as wanted:
                for name in (n for n in wanted.files if n in outputs):
                    yield f"| {fixture} | {name} | {_error(outputs[name], wanted[name])} |"


def _error(ours: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> str:
    if ours.shape != wanted.shape:
        return f"shape {ours.shape}, {wanted.shape} wanted"
    if wanted.dtype.kind in "iub":
        return "equal" if np.array_equal(ours, wanted) else "different"
    scale = float(np.abs(wanted).max()) or 1.0
    return f"{float(np.abs(ours.astype(np.float64) - wanted).max()) / scale:.1e}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Outputs of a parity fixture, or their errors.")
    parser.add_argument("fixture", choices=[*sorted(FIXTURES), "all"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the outputs as .npz")
    parser.add_argument("--compare", type=Path, metavar="DIR", help="folder of stored fixtures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.compare:
        fixtures = sorted(FIXTURES) if args.fixture == "all" else [args.fixture]
        for line in compare(fixtures, args.compare, args.seed):
            sys.stdout.write(line + "\n")
    if args.out:
        if args.fixture == "all":
            parser.error("--out takes one fixture")
        outputs = trace(args.fixture, args.seed)
        with args.out.open("wb") as file:  # by handle: savez would append .npz to other names
            np.savez_compressed(file, **outputs)  # type: ignore[arg-type]
    elif not args.compare:
        parser.error("give --out FILE or --compare DIR")


if __name__ == "__main__":
    main()
