"""HLS of a session (RFC 8216): an EVENT playlist of MP3 segments of about two seconds.

Playlist and segments are pure functions of the log and the clock, so any gateway serves the same
ones, and caches may keep them:

- A segment is whole chunks, as many as fit into two seconds; its name says which. Its bytes are
  the frames of those chunks behind an ID3 tag with their time (RFC 8216, section 3.4).
- A playlist may never lose a line. So while a session is spoken, segments are published as if
  somebody played them one after the other, and only `LEAD_S` ahead: what a cut makes void before
  its time is left out, what it makes void later stays.
- What does not continue the sound before it (after a cut, or with a new speaker after a crash)
  stands behind `EXT-X-DISCONTINUITY`.

MP3 and not AAC: every player that knows HLS knows both, and these frames are there already for
`audio.mp3`.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from streaming.channel import Channel, Slot
from streaming.frames import TICKS_PER_S, Flag, unpack_header
from streaming.renditions import MP3_FRAME, MP3_FRAME_S, Renditions, frame_span
from streaming.tap import body_of, header_of

TARGET_S = 2
LEAD_S = 6.0  # three segments: what players keep between them and the end of the list

_TARGET_TICKS = TARGET_S * TICKS_PER_S
_NAME = re.compile(r"(\d{1,10})-(\d{1,10})(\.last)?")
_MPEG_TICKS = 90_000 * MP3_FRAME // 24_000  # of a frame
_MPEG_START = 10 * 90_000  # frames may begin a moment before the session does
_OWNER = b"com.apple.streaming.transportStreamTimestamp\0"


@dataclass(frozen=True, slots=True)
class Part:
    """One segment.

    Attributes:
        slots: its chunks, in order.
        breaks: it does not continue the sound of the one before it.
        is_last: the sound does not go on after it, so it holds what the encoder still owes.
        plays_at, due_at: Unix ms at which a listener who heard everything would come to it, and at
            which it is published.
    """

    slots: tuple[Slot, ...]
    breaks: bool
    is_last: bool
    plays_at: float
    due_at: float

    @property
    def name(self) -> str:
        """The numbers of its first and last chunk."""
        end = ".last" if self.is_last else ""
        return f"{self.slots[0].seq}-{self.slots[-1].seq}{end}"

    @property
    def frames(self) -> int:
        """How many MP3 frames its chunks have."""
        return frame_span(self.slots[-1])[1] - frame_span(self.slots[0])[0]


class Playlist:
    """The segments of one session, from its log, entry by entry."""

    def __init__(self) -> None:
        self.has_ended = False
        self._taken = 0  # slots
        self._parts: list[Part] = []
        self._open: list[Slot] = []
        self._breaks = False  # the open part begins anew
        self._clock = 0.0  # Unix ms at which the open part will be played
        self._cuts: list[int] = []  # `from_seg`; nothing was spoken since

    def read(self, channel: Channel, *, now_ms: float) -> None:
        """Take what is new in a channel."""
        for slot in channel.slots[self._taken :]:
            if slot.audio:
                self._chunk(slot, now_ms)
            elif slot.kind == "cut":
                self._cuts.append(json.loads(body_of(slot))["from_seg"])
            elif slot.kind == "" or (slot.kind == "state" and _says(slot, "failed")):
                self._apply_cuts(now_ms)
                self._close(now_ms, is_last=True)
                self.has_ended = True
        self._taken = len(channel.slots)

    def published(self, *, now_ms: float) -> list[Part]:
        """What the list holds at `now_ms` (Unix)."""
        if self.has_ended:
            return list(self._parts)
        return [part for part in self._parts if part.due_at <= now_ms]

    def text(self, address: Callable[[Part], str], *, now_ms: float) -> str:
        """The playlist; `address` gives each segment's, relative to the list's."""
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{TARGET_S}"]
        lines += ["#EXT-X-MEDIA-SEQUENCE:0", "#EXT-X-PLAYLIST-TYPE:EVENT"]
        for part in self.published(now_ms=now_ms):
            if part.breaks:
                lines.append("#EXT-X-DISCONTINUITY")
            lines += [f"#EXTINF:{part.frames * MP3_FRAME_S:.3f},", address(part)]
        if self.has_ended:
            lines.append("#EXT-X-ENDLIST")
        return "\n".join([*lines, ""])

    def _chunk(self, slot: Slot, now_ms: float) -> None:
        if self._cuts:
            self._apply_cuts(_emitted(slot, now_ms))
        if unpack_header(header_of(slot)).flags & Flag.DISCONTINUITY:
            self._close(now_ms, is_last=True)
            self._breaks = bool(self._parts)
        elif self._open and slot.end - self._open[0].begin > _TARGET_TICKS:
            self._close(now_ms, is_last=False)
        self._open.append(slot)

    def _close(self, now_ms: float, *, is_last: bool) -> None:
        if not self._open:
            return
        made = _emitted(self._open[-1], now_ms)
        plays = max(made, self._clock)
        due = max(made, plays - LEAD_S * 1000)
        part = Part(tuple(self._open), self._breaks, is_last, plays, due)
        ticks = self._open[-1].end - self._open[0].begin
        self._open.clear()
        if part.frames > 0:  # else a rest too short for a frame
            self._parts.append(part)
            self._clock = plays + ticks * 1000 / TICKS_PER_S
            self._breaks = False

    def _apply_cuts(self, at: float) -> None:
        """Take back what is not published at `at`, when the first chunk after a cut was made.

        Not at the cut itself, whose time the log does not tell: until then some gateway may still
        have published what it makes void.
        """
        for from_seg in self._cuts:
            while self._parts and self._parts[-1].due_at > at:
                part = self._parts[-1]
                if part.slots[-1].seg < from_seg:
                    break
                self._parts.pop()
                self._clock, self._breaks = part.plays_at, part.breaks
                self._open[:0] = part.slots
            self._open = [slot for slot in self._open if slot.seg < from_seg]
        self._cuts.clear()


async def segment(renditions: Renditions, channel: Channel, name: str) -> bytes | None:
    """The bytes of the segment of that name, None if there can be none."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    first, last = int(found[1]), int(found[2])
    indices = [
        i for i, slot in enumerate(channel.slots) if slot.audio and first <= slot.seq <= last
    ]
    slots = [channel.slots[i] for i in indices]
    if not slots or (slots[0].seq, slots[-1].seq) != (first, last):
        return None
    if len(slots) > 1 and slots[-1].end - slots[0].begin > _TARGET_TICKS:
        return None
    frames = [await renditions.of(channel, index, "mp3") for index in indices]
    if found[3]:
        frames.append(await renditions.of(channel, indices[-1], "mp3_tail"))
    return timestamp(frame_span(slots[0])[0]) + b"".join(frames)


def timestamp(frame: int) -> bytes:
    """An ID3v2.4 tag that says when MP3 frame number `frame` of a session is played."""
    ticks = (_MPEG_START + frame * _MPEG_TICKS) % (1 << 33)
    body = _OWNER + struct.pack(">Q", ticks)
    private = b"PRIV" + struct.pack(">IH", len(body), 0) + body
    return b"ID3\x04\x00\x00" + bytes([0, 0, 0, len(private)]) + private


def _emitted(slot: Slot, now_ms: float) -> float:
    """Unix ms at which a chunk was made; its header has the last 32 bits of it."""
    age = (int(now_ms) - unpack_header(header_of(slot)).emit_ms) % (1 << 32)
    if age > 1 << 31:  # made a moment after `now_ms`, by another machine's clock
        age -= 1 << 32
    return int(now_ms) - age


def _says(slot: Slot, state: str) -> bool:
    return bool(json.loads(body_of(slot))["state"] == state)
