"""A tiny release, written and loaded once, and a voice; torch is imported only when a test asks."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

if TYPE_CHECKING:
    from engine.backends.indextts2.model import Model
    from engine.backends.indextts2.voice import VoiceFeatures

FIXTURES = Path(__file__).parents[2] / "fixtures" / "indextts2"


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """More threads than free cores make tiny operations hundreds of times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_dir(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny release that can speak."""
    from engine.backends.indextts2 import tiny

    return tiny.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model(tiny_dir: Path) -> Model:
    from engine.backends.indextts2.model import Model

    return Model(tiny_dir)


@pytest.fixture(scope="session")
def parity_model(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny release of the parity fixtures (seed 0)."""
    from engine.backends.indextts2.trace import parity_model

    return parity_model(tmp_path_factory.mktemp("parity"), 0)


@pytest.fixture(scope="session")
def reference() -> npt.NDArray[np.float32]:
    """Five seconds at 24 kHz that look like speech to level checks: a tone that comes and goes."""
    t = np.arange(5 * 24_000) / 24_000
    noise = np.random.default_rng(0).standard_normal(len(t))
    tone = np.sin(2 * np.pi * 180 * t) * (1 + np.sin(2 * np.pi * 3 * t)) / 2
    return (0.3 * tone + 0.01 * noise).astype(np.float32)


@pytest.fixture(scope="session")
def clip(reference: npt.NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference as a WAV file."""
    path = tmp_path_factory.mktemp("clip") / "ann.wav"
    write_wav(path, reference, 24_000)
    return path


@pytest.fixture(scope="session")
def voice(tiny_model: Model, reference: npt.NDArray[np.float32]) -> VoiceFeatures:
    from engine.backends.indextts2.voice import VoiceCache

    return VoiceCache(tiny_model).of_wave(reference, 24_000)


def write_wav(path: Path, samples: npt.NDArray[np.float32], rate_hz: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
