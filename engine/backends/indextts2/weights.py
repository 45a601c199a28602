"""Published checkpoint files -> tensors under the names our modules use.

Our modules keep the published key names, so a key map only says what changes on the way in: a
prefix is stripped, weight norm is folded (w = g v / |v|, norm over all dims but the first), GPT-2's
[in, out] matrices are transposed, keys that inference does not need are left in the file. Files are
opened `weights_only` and memory-mapped; tensors are assigned, not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.backends.indextts2.errors import WeightsWrong

State = dict[str, Tensor]
ModuleT = TypeVar("ModuleT", bound=nn.Module)
_SHOWN = 12  # keys in an error message


def read_state(path: Path) -> Any:
    """Whatever a `.pth`, `.pt`, `.bin` or `.safetensors` file holds, tensors only.

    Raises:
        WeightsWrong: the file is no checkpoint, is cut short, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of torch before 1.6 are no zip archives and cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for broken files
        raise WeightsWrong(f"{path} cannot be read as a checkpoint: {error}") from error


def flat_state(raw: Any, path: Path, *, inside: str = "") -> State:
    """The tensors of a checkpoint, which may lie under the key `inside`; `module.` prefixes go."""
    if isinstance(raw, Mapping) and inside and isinstance(raw.get(inside), Mapping):
        raw = raw[inside]
    if not isinstance(raw, Mapping):
        raise WeightsWrong(f"{path} holds a {type(raw).__name__}, a map of tensors was expected")
    return {k.removeprefix("module."): v for k, v in raw.items() if isinstance(v, Tensor)}


def fold_weight_norm(state: State) -> State:
    """Replace each (`weight_g`, `weight_v`) pair by the `weight` it stands for."""
    folded: State = {}
    for key, value in state.items():
        if key.endswith("weight_v"):
            stem = key.removesuffix("weight_v")
            g = state.get(stem + "weight_g")
            if g is None:
                raise WeightsWrong(f"{key} has no {stem}weight_g beside it")
            shape = (len(value), *[1] * (value.dim() - 1))
            # torch's own kernel, so that rounding is that of a model that folds its own weights
            folded[stem + "weight"] = torch._weight_norm(value.float(), g.float().reshape(shape), 0)
        elif not key.endswith("weight_g"):
            folded[key] = value
    return folded


def build(make: Callable[[], ModuleT], state: State, *, part: str) -> ModuleT:
    """Make a module without memory of its own and give it the tensors of `state`.

    Keys of `state` that the module does not have are ignored. Floating tensors become float32 (a
    release may store halves), contiguous where the file's are not.

    Raises:
        WeightsWrong: names every key that is missing or has another shape.
    """
    with torch.device("meta"):
        module = make()
    wanted = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    taken: State = {}
    problems: list[str] = []
    for key, like in wanted.items():
        value = state.get(key)
        if value is None:
            problems.append(f"{key} {list(like.shape)} is missing")
        elif value.shape != like.shape:
            problems.append(f"{key} has shape {list(value.shape)}, {list(like.shape)} is needed")
        else:
            taken[key] = value.float() if value.is_floating_point() else value
    if problems:
        raise WeightsWrong(f"{part}: {_listed(problems)}")
    module.load_state_dict(taken, strict=False, assign=True)
    for name, buffer in module.named_buffers():
        if buffer.is_meta:  # batch counters of BatchNorm: never read in eval mode
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, torch.zeros((), dtype=torch.long))
    return module.eval().requires_grad_(False)


def gpt_state(raw: Any, path: Path) -> State:
    """Key map of `gpt.pth`: flat or under `model`; attention and MLP matrices transposed."""
    state = flat_state(raw, path, inside="model")
    return {
        key: value.t() if _is_in_out(key) and value.dim() == 2 else value
        for key, value in state.items()
    }


def s2mel_states(raw: Any, path: Path) -> dict[str, State]:
    """Key map of `s2mel.pth`: parts `cfm`, `length_regulator`, `gpt_layer` under `net`."""
    net = raw.get("net") if isinstance(raw, Mapping) else None
    if not isinstance(net, Mapping):
        raise WeightsWrong(f"{path} has no part 'net'")
    parts: dict[str, State] = {}
    for name in ("cfm", "length_regulator", "gpt_layer"):
        if name not in net:
            raise WeightsWrong(f"{path} has no part 'net.{name}'")
        parts[name] = fold_weight_norm(flat_state(net[name], path))
    parts["cfm"] = {k.removeprefix("estimator."): v for k, v in parts["cfm"].items()}
    return parts


def folded_state(raw: Any, path: Path) -> State:
    """Key map of plain checkpoints (codec, CAMPPlus, w2v-bert): weight norm folded."""
    return fold_weight_norm(flat_state(raw, path))


def vocoder_state(raw: Any, path: Path) -> State:
    """Key map of `bigvgan_generator.pt`: under `generator`, with weight norm or already without."""
    return fold_weight_norm(flat_state(raw, path, inside="generator"))


def tensor(raw: Any, path: Path, shape: tuple[int, ...]) -> Tensor:
    """A file that holds one tensor of a known shape, as float32."""
    if not isinstance(raw, Tensor) or tuple(raw.shape) != shape:
        found = list(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
        raise WeightsWrong(f"{path} holds {found}, a tensor of shape {list(shape)} is needed")
    return raw.float()


def _is_in_out(key: str) -> bool:
    return key.endswith(".weight") and (".attn.c_" in key or ".mlp.c_" in key)


def _listed(problems: Iterable[str]) -> str:
    lines = list(problems)
    more = f"\n  ... and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"{len(lines)} tensor(s) unusable:\n  " + "\n  ".join(lines[:_SHOWN]) + more
