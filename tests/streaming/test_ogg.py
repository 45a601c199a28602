from __future__ import annotations

import io
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.ogg import OggOpus, checksum, last_granule, read_packets

RATE_HZ = 24_000


def opus(seconds: float, hz: float = 440.0) -> list[bytes]:
    """A tone as 20 ms packets, as a live encoder makes them."""
    codec: Any = av.CodecContext.create("libopus", "w")
    codec.sample_rate, codec.layout, codec.format = RATE_HZ, "mono", "s16"
    codec.options = {"application": "voip", "frame_duration": "20"}
    codec.open()
    packets = []
    for n in range(round(seconds * 50)):
        at = np.arange(n * 480, (n + 1) * 480) / RATE_HZ
        pcm = (9000 * np.sin(2 * np.pi * hz * at)).astype(np.int16)
        frame: Any = av.AudioFrame.from_ndarray(pcm[None, :], format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE_HZ, n * 480
        packets += [bytes(packet) for packet in codec.encode(frame)]
    return packets


def stream(packets: list[bytes], *, a_page: int = 10, **options: Any) -> bytes:
    ogg = OggOpus(0xA1B2C3D4, **options)
    parts = [ogg.head()]
    parts += [ogg.page(packets[n : n + a_page]) for n in range(0, len(packets), a_page)]
    return b"".join([*parts, ogg.end()])


def decoded(body: bytes) -> Any:
    with av.open(io.BytesIO(body)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def test_checksum_is_that_of_pages_by_another_writer() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        codec: Any = container.add_stream("libopus", rate=48_000, layout="mono")
        frame: Any = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), "s16", "mono")
        frame.sample_rate = 48_000
        container.mux(codec.encode(frame))
        container.mux(codec.encode(None))
    page = file.getvalue()[: 27 + 1 + 19]  # OpusHead stands alone on the first one

    assert struct.unpack_from("<I", page, 22)[0] == checksum(page[:22] + bytes(4) + page[26:])


def test_a_stream_is_as_long_as_its_packets_to_the_sample() -> None:
    assert len(decoded(stream(opus(1.0)))) == 48_000


def test_what_a_player_shall_drop_is_not_heard() -> None:
    packets = opus(1.0)
    whole = decoded(stream(packets))

    joined = decoded(stream(packets[10:], skip=312 + 9600))

    assert len(joined) == 48_000 - 2 * 9600
    assert np.corrcoef(joined[:9600], whole[2 * 9600 : 3 * 9600])[0, 1] > 0.999


@pytest.mark.skipif(not shutil.which("ffprobe"), reason="there is no ffprobe on this machine")
def test_ffprobe_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    path = tmp_path / "live.ogg"
    path.write_bytes(stream(opus(2.0), tags={"TITLE": "Weekly 例会"}))
    command = ["ffprobe", "-v", "warning", "-show_entries", "stream=codec_name,start_time,duration"]
    command += ["-show_entries", "stream_tags", "-of", "default=noprint_wrappers=1", str(path)]

    found = subprocess.run(command, capture_output=True, text=True, check=True)

    assert found.stderr == ""
    assert set(found.stdout.splitlines()) == {
        "codec_name=opus",
        "start_time=0.000000",
        "duration=2.006500",  # as ffprobe counts, with what is dropped at the start
        "TAG:TITLE=Weekly 例会",
    }


@given(st.lists(st.binary(min_size=1, max_size=1500), min_size=1, max_size=300), st.integers(1, 99))
def test_packets_of_any_size_come_out_as_they_went_in(packets: list[bytes], a_page: int) -> None:
    body = stream(packets, a_page=a_page)

    head, tags, *read, _last = read_packets(io.BytesIO(body))

    assert (head[:8], tags[:8], read) == (b"OpusHead", b"OpusTags", packets)
    assert last_granule(body[-65_536:]) == 960 * len(packets) + 312


def test_pages_are_numbered_and_only_the_ends_are_marked() -> None:
    body = stream(opus(0.5), a_page=5)
    marks, numbers = [], []
    at = 0
    while at < len(body):
        assert body[at : at + 4] == b"OggS"
        marks.append(body[at + 5])
        numbers.append(struct.unpack_from("<I", body, at + 18)[0])
        laces = body[at + 27 : at + 27 + body[at + 26]]
        at += 27 + len(laces) + sum(laces)

    assert numbers == list(range(len(numbers)))
    assert marks == [2, *[0] * (len(marks) - 2), 4]


@pytest.mark.parametrize("body", [b"no Ogg at all, for sure no Ogg", stream(opus(0.1))[:-1]])
def test_what_is_no_whole_ogg_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="Ogg"):
        list(read_packets(io.BytesIO(body)))
