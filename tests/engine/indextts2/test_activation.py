"""The vocoder's activation: torch operations against the definition, the kernel against torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from engine.backends.indextts2 import activation  # noqa: E402
from engine.backends.indextts2.activation import TAPS, Activation, lowpass_taps  # noqa: E402

F = torch.nn.functional
KERNEL = Path(activation.__file__).with_name("activation_triton.py")
LENGTHS = [1, 2, 3, 5, 11, 12, 40, 300]


def by_definition(x: Any, slope: Any, height: Any, up: Any, down: Any) -> Any:
    """Zero-stuff, filter, bend, filter, drop every second sample."""
    channels = x.shape[1]
    padded = F.pad(x, (5, 5), mode="replicate")
    y = 2 * F.conv_transpose1d(padded, up.expand(channels, 1, -1), stride=2, groups=channels)
    y = y[..., 15:-15]
    y = y + height[:, None] * (y * slope[:, None]).sin().square()
    y = F.pad(y, (5, 6), mode="replicate")
    return F.conv1d(y, down.expand(channels, 1, -1), stride=2, groups=channels)


def setting(channels: int = 3) -> tuple[Any, ...]:
    """Taps that are not symmetric, so that none can change places unseen."""
    random = torch.Generator().manual_seed(1)
    slope, height = (torch.rand(channels, generator=random) + 0.5 for _ in range(2))
    up, down = (
        lowpass_taps().view(-1) + 0.05 * torch.randn(TAPS, generator=random) for _ in range(2)
    )
    return slope, height, up, down


@pytest.mark.parametrize("length", LENGTHS)
def test_two_signals_at_the_plain_rate_give_what_the_definition_gives(length: int) -> None:
    x = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(length))
    wanted = by_definition(x, *setting())

    assert (activation.anti_aliased_snake(x, *setting(), None) - wanted).abs().max() < 3e-6


@pytest.mark.parametrize("length", LENGTHS)
def test_rows_end_where_they_end(length: int) -> None:
    x = torch.randn(3, 3, 300, generator=torch.Generator().manual_seed(length))
    lengths = torch.tensor([length, 300, max(1, length // 2)])
    together = activation.anti_aliased_snake(x, *setting(), lengths)

    for row, samples, n in zip(together, x, lengths.tolist(), strict=True):
        alone = activation.anti_aliased_snake(samples[None, :, :n], *setting(), None)[0]
        assert (row[:, :n] - alone).abs().max() < 3e-6
        assert not row[:, n:].any()


def test_input_is_left_as_it_was() -> None:
    x = torch.randn(1, 4, 20)
    before = x.clone()
    with torch.inference_mode():
        Activation(4)(x)

    assert torch.equal(x, before)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The kernel, run by triton's interpreter."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the compiled kernel is tested instead")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spec = importlib.util.spec_from_file_location("interpreted_kernel", KERNEL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("length", LENGTHS)
def test_kernel_gives_what_torch_gives(kernel: Any, length: int) -> None:
    x = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(length))
    for lengths in (None, torch.tensor([length, -(-length // 2)])):
        ours = kernel.anti_aliased_snake(x, *setting(), lengths)
        wanted = activation.anti_aliased_snake(x, *setting(), lengths)
        assert (ours - wanted).abs().max() < 3e-6


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_compiled_kernel_gives_what_torch_gives() -> None:
    pytest.importorskip("triton")
    from engine.backends.indextts2 import activation_triton

    for length in LENGTHS:
        x = torch.randn(2, 3, length).cuda()
        given = [part.cuda() for part in setting()]
        ours = activation_triton.anti_aliased_snake(x, *given, None)
        assert (ours - activation.anti_aliased_snake(x, *given, None)).abs().max() < 3e-6
