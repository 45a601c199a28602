"""The WAV of a finished episode whose recording is only kept compressed.

Its bytes are decoded in blocks, each by a decoder of its own that began a second earlier: so a
range is cut out of the middle at little cost, and is what the whole file has there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO, cast

import numpy as np
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from pipeline import episode_view
from pipeline.services import Services
from pipeline.storage import Storage
from pipeline.web.files import byte_range, file_headers
from streaming.ogg import PACKET_TICKS, last_granule, read_packets
from streaming.renditions import HALVE_TICKS, decode, halve, wav_header

BLOCK_SAMPLES = 240_000  # 10 s
_RUN_UP = 50  # packets
_END_BYTES = 65_536  # holds the last page of any Ogg
_IN_MEMORY_BYTES = 4 << 20


def wav_file(services: Services, key: str, request: Request) -> Response:
    """The WAV of an episode, whole or a range of it, decoded on the way; blocks.

    Raises:
        NotFound: the episode has no recording that it could be made from.
    """
    found = episode_view.file_of(services.database, key, "ogg")
    skip, samples = _measure(services.storage, found.object_key, found.size_bytes)
    head = wav_header(2 * samples)
    size_bytes = len(head) + 2 * samples
    part = byte_range(request.headers.get("range"), size_bytes)
    start, end = part or (0, size_bytes)
    if start >= end:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size_bytes}"})
    headers = file_headers(f"{key}.wav", size_bytes, part)
    if request.method == "HEAD":
        return Response(headers=headers, media_type="audio/wav")

    def stream() -> Iterator[bytes]:
        yield head[start:end]
        first, last = max(0, start - len(head)), end - len(head)
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as file:
            with services.storage.open(found.object_key) as body:
                file.writelines(body)
            file.seek(0)
            yield from _cut(cast(BinaryIO, file), skip, samples, first, last)

    return StreamingResponse(
        stream(), 206 if part else 200, headers=headers, media_type="audio/wav"
    )


def _measure(storage: Storage, object_key: str, size_bytes: int) -> tuple[int, int]:
    """(samples at 48 kHz that a player drops, samples at 24 kHz that it plays) of an Ogg."""
    with storage.open(object_key, 0, min(size_bytes, 64)) as body:
        skip = int.from_bytes(b"".join(body).partition(b"OpusHead")[2][2:4], "little")
    with storage.open(object_key, max(0, size_bytes - _END_BYTES), size_bytes) as body:
        granule = last_granule(b"".join(body))
    return skip, (granule - skip) // 2


def _cut(file: BinaryIO, skip: int, samples: int, first: int, last: int) -> Iterator[bytes]:
    """Bytes `first` to `last` of the samples of an Ogg."""
    packets = islice(read_packets(file), 2, None)
    window: list[bytes] = []
    begin = 0  # number of the first packet in the window
    for block in range(first // 2 // BLOCK_SAMPLES, -(-last // 2 // BLOCK_SAMPLES)):
        start = block * BLOCK_SAMPLES
        end = min(samples, start + BLOCK_SAMPLES)
        # ticks of the stream, with what the filter sees on both sides
        from_tick, to_tick = skip + 2 * start - HALVE_TICKS, skip + 2 * end + HALVE_TICKS
        wanted = max(0, from_tick // PACKET_TICKS - _RUN_UP)
        passed = max(0, wanted - begin - len(window))
        next(islice(packets, passed, passed), None)
        window, begin = window[wanted - begin :], wanted
        window += islice(packets, to_tick // PACKET_TICKS + 1 - begin - len(window))
        sound = decode(window)[from_tick - begin * PACKET_TICKS :]
        sound = np.pad(sound, (0, max(0, to_tick - from_tick - len(sound))))
        pcm = halve(sound)[HALVE_TICKS : HALVE_TICKS + end - start].astype("<i2").tobytes()
        yield pcm[max(0, first - 2 * start) : last - 2 * start]
