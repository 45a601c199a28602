"""Listeners as strangers are: they come, lose the network, and go on where they were."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from engine.backends.tone import decode
from engine.base import SAMPLE_RATE_HZ
from streaming.client import Audio, Listening
from streaming.frames import unpack_packets


@dataclass
class Heard:
    """All that one listener was given, and what of it still counts."""

    chunks: list[tuple[int, int, bytes]] = field(default_factory=list)  # seq, seg, payload
    words: dict[int, str] = field(default_factory=dict)  # captions by sentence
    cuts: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    connections: int = 0

    def take(self, item: Any) -> None:
        if isinstance(item, Audio):
            self.chunks.append((item.header.seq, item.header.seg, item.payload))
        elif item["t"] == "seg":
            self.words[item["seg"]] = item["text"]
        elif item["t"] == "cut":
            self.cuts.append(item)
            self.chunks = [chunk for chunk in self.chunks if chunk[1] < item["from_seg"]]
        elif item["t"] == "end":
            self.end = item

    @property
    def sha256(self) -> str:
        return hashlib.sha256(b"".join(payload for _, _, payload in self.chunks)).hexdigest()

    def assert_exact(self) -> None:
        """Everything that counts was heard, once and in order, as `end` certifies."""
        sequence = [seq for seq, _, _ in self.chunks]
        assert sequence == sorted(set(sequence))
        assert self.end, self.errors
        assert (self.sha256, len(self.chunks)) == (self.end["sha256"], self.end["chunks"])

    def codes(self) -> list[int]:
        """The sentence codes in the sound."""
        import av

        decoder = av.CodecContext.create("libopus", "r")
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
        packets = [one for _, _, payload in self.chunks for one in unpack_packets(payload)]
        frames = [frame for packet in packets for frame in decoder.decode(av.Packet(packet))]
        parts = [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]
        return decode(np.concatenate(parts))


async def follow(link: str, heard: Heard, *, unrest: random.Random | None = None) -> None:
    """Listen to the end; with `unrest` leave after a few items, and come back for what follows."""
    start: dict[str, Any] | None = None
    while not heard.end:
        left = unrest.randint(1, 25) if unrest else -1
        heard.connections += 1
        async with Listening(link, start=start, give_up_s=90) as listening:
            async for item in listening:
                heard.take(item)
                left -= 1
                if left == 0:
                    break
            if listening.position is not None:
                start = {"seq": listening.position[0], "k": listening.position[1]}


class Audience:
    """Listeners on a thread of their own, so that a test can do harm meanwhile.

    Args:
        links: one for each listener.
        restless: how many of them come and go; the first ones.
    """

    def __init__(self, *links: str, restless: int = 0) -> None:
        self.heard = [Heard() for _ in links]
        self._links = links
        self._restless = restless
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.join(150)
        assert not self._thread.is_alive(), "somebody still listens"

    async def _listen(self) -> None:
        async with asyncio.timeout(140):
            await asyncio.gather(
                *(self._one(n, link, self.heard[n]) for n, link in enumerate(self._links))
            )

    async def _one(self, n: int, link: str, heard: Heard) -> None:
        unrest = random.Random(n) if n < self._restless else None
        try:
            await follow(link, heard, unrest=unrest)
        except Exception as error:
            heard.errors.append(f"{type(error).__name__}: {error}")
