from __future__ import annotations

import asyncio
import struct
from typing import Any

from streaming.channel import Channel
from streaming.chunk_log import BEGINNING, MemoryLog
from streaming.counters import Counters
from streaming.frames import U32_MAX
from streaming.hls import LEAD_S, Part, Playlist, segment, timestamp
from streaming.renditions import MP3_FRAME_S, Renditions
from streaming.session import LiveSession
from tests.streaming.speaking import CHUNK_TICKS, SID, create, packets
from tests.streaming.test_ogg import opus

START_MS = 1_790_000_000_000


class Studio:
    """A session that is spoken at times which the test sets, and a gateway that reads it."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.session: LiveSession = create(self.log)
        self.channel = Channel(SID, Counters())
        self.playlist = Playlist()
        self.shown: list[str] = []

    def speak(self, seg: int, chunks: int, at_s: float, *, is_whole: bool = True) -> None:
        for n in range(chunks):
            self.session.audio(
                seg,
                CHUNK_TICKS,
                packets(seg, n),
                first=n == 0,
                last=is_whole and n == chunks - 1,
                emit_ms=(START_MS + int(at_s * 1000)) & U32_MAX,
            )

    def read(self, at_s: float) -> list[str]:
        """The lines of the playlist, which must go on from those that were read before."""
        now_ms = START_MS + at_s * 1000
        self.channel.extend(self.log.read(SID, self.channel.head, 10_000))
        self.playlist.read(self.channel, now_ms=now_ms)
        lines = lines_of(self.playlist, now_ms)
        assert lines[: len(self.shown)] == self.shown
        self.shown = lines
        return lines

    def another(self, at_s: float) -> list[str]:
        """What a gateway shows that did not look before."""
        now_ms = START_MS + at_s * 1000
        channel, playlist = Channel(SID, Counters()), Playlist()
        channel.extend(self.log.read(SID, BEGINNING, 10_000))
        playlist.read(channel, now_ms=now_ms)
        return lines_of(playlist, now_ms)


def lines_of(playlist: Playlist, now_ms: float) -> list[str]:
    return playlist.text(lambda part: part.name, now_ms=now_ms).splitlines()


def names(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("#") or "DISCON" in line]


def test_segments_are_two_seconds_of_whole_chunks_and_the_last_one_is_the_rest() -> None:
    studio = Studio()
    studio.speak(0, 23, 0.0)
    studio.session.end("done")

    lines = studio.read(60)

    assert lines[:5] == [
        "#EXTM3U",
        "#EXT-X-VERSION:3",
        "#EXT-X-TARGETDURATION:2",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-PLAYLIST-TYPE:EVENT",
    ]
    assert names(lines) == ["0-9", "10-19", "20-22.last"]
    assert lines[-1] == "#EXT-X-ENDLIST"
    lengths = [float(line[8:-1]) for line in lines if line.startswith("#EXTINF:")]
    assert abs(sum(lengths) - 4.6) < 4 * MP3_FRAME_S
    assert max(lengths) < 2.5  # rounds to the target


def test_while_it_is_spoken_segments_come_as_a_listener_needs_them() -> None:
    studio = Studio()
    studio.speak(0, 100, 0.0)  # twenty seconds at once

    shown = [len(names(studio.read(at))) for at in (0.0, 1.9, 2.1, 8.0)]

    assert shown == [4, 4, 5, 8]  # six seconds ahead, and then one in two seconds
    assert "#EXT-X-ENDLIST" not in studio.shown


def test_what_a_cut_makes_void_before_its_time_is_left_out() -> None:
    studio = Studio()
    studio.speak(0, 10, 0.0)
    studio.speak(1, 90, 0.0)
    studio.read(0.5)
    studio.session.cut(1, "voice")
    studio.read(0.7)
    studio.speak(1, 10, 1.0)
    studio.session.end("done")

    lines = studio.read(1.2)

    kept = int(LEAD_S // 2) + 1
    assert names(lines) == [
        *[f"{n * 10}-{n * 10 + 9}" for n in range(kept)],
        "#EXT-X-DISCONTINUITY",
        "100-109.last",
    ]
    assert studio.another(30) == lines


def test_a_part_that_a_cut_goes_through_keeps_what_counts() -> None:
    studio = Studio()
    studio.speak(0, 4, 0.0)
    studio.speak(1, 5, 0.0, is_whole=False)  # nine chunks: no segment yet
    assert names(studio.read(0.1)) == []
    studio.session.cut(1, "retry")
    studio.speak(1, 6, 15.0)
    studio.session.end("done")

    lines = studio.read(16)

    assert names(lines) == ["0-3.last", "#EXT-X-DISCONTINUITY", "9-14.last"]
    assert studio.another(16) == lines


def test_two_gateways_show_the_same_whatever_they_have_seen() -> None:
    studio = Studio()
    for n in range(6):
        studio.speak(n, 13, n * 1.5)
        for at in (n * 1.5 + 0.2, n * 1.5 + 1.1):
            assert studio.read(at) == studio.another(at)
        if n % 2:
            studio.session.cut(n, "speed")
            studio.speak(n, 9, n * 1.5 + 1.2)
    studio.session.end("done")

    assert studio.read(60) == studio.another(90)


def test_a_session_that_fails_has_a_list_that_ends() -> None:
    studio = Studio()
    studio.speak(0, 5, 0.0, is_whole=False)
    studio.session.fail("engine_failed", "The voice broke.")

    lines = studio.read(1)

    assert names(lines) == ["0-4.last"]
    assert lines[-1] == "#EXT-X-ENDLIST"


def test_a_segment_is_its_time_and_its_frames_wherever_it_is_made() -> None:
    log = MemoryLog()
    session = create(log)
    sound = opus(3.0)
    for n in range(0, len(sound), 10):
        session.audio(0, CHUNK_TICKS, sound[n : n + 10], first=n == 0, last=n == len(sound) - 10)
    session.end("done")
    channel = Channel(SID, Counters())
    channel.extend(log.read(SID, BEGINNING))
    playlist = Playlist()
    playlist.read(channel, now_ms=START_MS)
    parts: list[Part] = playlist.published(now_ms=START_MS)

    async def made() -> list[bytes | None]:
        renditions = Renditions()
        found = [await segment(renditions, channel, part.name) for part in parts]
        renditions.close()
        return found

    first, second = asyncio.run(made()), asyncio.run(made())

    assert first == second
    assert [part.name for part in parts] == ["0-9", "10-14.last"]
    for part, body in zip(parts, first, strict=True):
        assert body is not None
        ticks, head = private_time(body)
        frames = (len(body) - head) // 192
        assert frames == part.frames + 4 * part.is_last
        assert abs(ticks / 90_000 - 10 - part.slots[0].begin / 48_000) <= 3 * MP3_FRAME_S


def private_time(body: bytes) -> tuple[int, int]:
    """(MPEG timestamp, length) of the ID3 tag that RFC 8216 wants before packed audio."""
    assert body[:5] == b"ID3\x04\x00"
    length = 10 + int.from_bytes(body[6:10])
    owner = b"com.apple.streaming.transportStreamTimestamp\0"
    assert body[10:14] == b"PRIV"
    assert body[20 : 20 + len(owner)] == owner
    (ticks,) = struct.unpack(">Q", body[20 + len(owner) : length])
    return ticks, length


def test_time_is_of_33_bits_and_begins_above_zero() -> None:
    found: list[Any] = [private_time(timestamp(frame))[0] for frame in (-1, 0, 1 << 40)]

    assert found[0] == 900_000 - 2160
    assert found[1] == 900_000
    assert found[2] < 1 << 33


def test_names_of_no_segment_give_nothing() -> None:
    studio = Studio()
    studio.speak(0, 30, 0.0)
    studio.read(60)

    async def look() -> list[bytes | None]:
        renditions = Renditions()
        wanted = ("0-29", "5-4", "28-31", "x-1", "99-99", "0-9.mp3", "-1-3")
        found = [await segment(renditions, studio.channel, name) for name in wanted]
        renditions.close()
        return found

    assert asyncio.run(look()) == [None] * 7
