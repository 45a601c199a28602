"""One prepared cache and one backend for all of these tests; the cache survives between runs."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.backends.kokoro import Kokoro
from engine.backends.kokoro.prepare import prepared_graphs
from engine.backends.kokoro.stages import Stages
from engine.base import AudioChunk, SpeechRequest, Turn
from engine.utterance import Utterance

THREADS = min(2, os.cpu_count() or 1)


@pytest.fixture(scope="session")
def cache_dir(pytestconfig: pytest.Config) -> Path:
    return Path(pytestconfig.cache.mkdir("kokoro"))


@pytest.fixture(scope="session")
def stages(cache_dir: Path) -> Stages:
    return Stages(prepared_graphs(cache_dir, threads=THREADS), threads=THREADS)


@pytest.fixture(scope="session")
def backend(cache_dir: Path) -> Iterator[Kokoro]:
    kokoro = Kokoro(cache_dir=cache_dir, threads=THREADS)
    yield kokoro
    kokoro.close()


@pytest.fixture(scope="session")
def speak(backend: Kokoro):
    """Speak turns without an engine around: every chunk, in the order it was made."""

    def speak(*turns: Turn | str, backend: Kokoro = backend, **options) -> list[AudioChunk]:
        wanted = tuple(Turn(turn) if isinstance(turn, str) else turn for turn in turns)
        request = SpeechRequest(wanted, **options)
        utterance = Utterance(request, backend.plan(request), ahead_s=1e9)
        while not utterance.is_done:
            backend.step([utterance])
        return list(utterance)

    return speak


@pytest.fixture(scope="session")
def recording():
    """What is kept of the chunks, in the order of the sentences."""

    def recording(chunks: list[AudioChunk]) -> np.ndarray:
        kept = sorted((chunk for chunk in chunks if chunk.kept), key=lambda chunk: chunk.seg)
        return np.concatenate([chunk.pcm for chunk in kept])

    return recording


@pytest.fixture(scope="session")
def by_sentence():
    """The live chunks of each sentence."""

    def by_sentence(chunks: list[AudioChunk]) -> dict[int, list[AudioChunk]]:
        live = sorted((chunk for chunk in chunks if chunk.live), key=lambda chunk: chunk.seg)
        return {seg: list(own) for seg, own in itertools.groupby(live, key=lambda c: c.seg)}

    return by_sentence
