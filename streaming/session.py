"""The worker's side of a live session: chunks and events go into the log in order.

A session is spoken as segments (sentences). What a `cut` makes void stays in the log, but no longer
counts: the *effective* timeline is what a listener who joins at the end would hear.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from streaming.chunk_log import BEGINNING, ChunkLog, Entry, LogInfo, Position
from streaming.errors import LogUnavailable
from streaming.frames import (
    TICKS_PER_MS,
    TICKS_PER_S,
    U32_MAX,
    Codec,
    Flag,
    Header,
    Kind,
    pack_header,
    pack_packets,
    unpack_header,
)

PCM_KEEP_TICKS = 60 * TICKS_PER_S
# A rebuilt log must use sequence numbers and epochs above those of the lost one, which nobody knows
# any more. Owners have growing fences, so each gets a range of its own.
SEQS_PER_FENCE = 1 << 16  # 3.6 h of chunks
EPOCHS_PER_FENCE = 1 << 6
# A restarting store is back within seconds; until then the writer waits between these attempts.
RETRY_AFTER_S = (0.1, 0.4, 1.5, 1.5)

CutWhy = Literal["speed", "emotion", "voice", "skip", "retry"]
State = Literal["generating", "paused", "ended", "failed"]
Actor = Literal["owner", "admin", "system"]
Quality = Literal["model", "align", "estimate"]


@dataclass(slots=True)
class Segment:
    """Where a sentence begins on the effective timeline, and whether all of it is there."""

    seq: int
    pts: int  # ticks
    chunks_before: int
    digest_before: hashlib._Hash
    complete: bool = False


def stream_handle(sid: str) -> int:
    """Return the u32 that marks the frames of `sid`.

    It follows from the name, so a log that is built again keeps it.
    """
    return int.from_bytes(hashlib.sha256(sid.encode()).digest()[:4])


class LiveSession:
    """One writer of one session; not for several threads at once.

    Any method may raise `Fenced` (stop: somebody else speaks this session now), `LogLost` (call
    `rebuild` and speak from segment 0) or `LogUnavailable` (the store is down).
    """

    def __init__(self, log: ChunkLog, sid: str, fence: int, meta: Mapping[str, str]) -> None:
        """Use `create` or `take_over` instead."""
        self.sid = sid
        self.meta = dict(meta)
        self.epoch = 1
        self.pts = 0  # ticks: where the next chunk begins
        self.segments: dict[int, Segment] = {}
        self.chunks = 0
        self.ended = False
        self._log = log
        self._fence = fence
        self._stream = stream_handle(sid)
        self._head: Position = (-1, 0)
        self._digest = hashlib.sha256()
        self._flags = Flag.EPOCH_START | Flag.DISCONTINUITY  # of the next chunk
        self._held: list[Entry] = []
        self._pcm: deque[tuple[int, int]] = deque()  # (seq, end pts) of the kept samples

    @classmethod
    def create(
        cls,
        log: ChunkLog,
        sid: str,
        fence: int,
        *,
        meta: Mapping[str, str],
        rebuilt: bool = False,
    ) -> Self:
        """Start the log of a session; `meta` may name `title`, `lang` and `voice`.

        Args:
            rebuilt: the session was spoken before and its log is lost. Listeners are told to go
                back to segment 0 in a new epoch, whose segments the caller appends again.

        Raises:
            SessionExists: there is a log; take it over.
        """
        session = cls(log, sid, fence, meta)
        if rebuilt:
            session._start_again(
                seq=min(fence, U32_MAX // SEQS_PER_FENCE) * SEQS_PER_FENCE,
                epoch=min(fence, 0xFFFF // EPOCHS_PER_FENCE) * EPOCHS_PER_FENCE,
            )
        else:
            log.create(sid, fence, session.meta, epoch=session.epoch, start=session._head)
            session.state("generating", "system")
        return session

    @classmethod
    def take_over(
        cls, log: ChunkLog, sid: str, fence: int, *, meta: Mapping[str, str] | None = None
    ) -> Self:
        """Become the owner of a session whose writer is gone; older fences are shut out at once.

        `segments`, `last_full_seg` and `pts` then say what the log holds. If it ends inside a
        sentence, `cut` from that sentence before going on.

        Raises:
            LogLost: no log; `create` it with `rebuilt=True`.
            Fenced: somebody newer owns it.
        """
        info = log.take_over(sid, fence)
        session = cls(log, sid, fence, {**info.meta, **(meta or {})})
        session._recover(info)
        return session

    @property
    def head_seq(self) -> int:
        """The last sequence number in the log; one less than the first if there is no chunk."""
        return self._head[0]

    @property
    def last_full_seg(self) -> int:
        """The last sentence of the unbroken run of complete ones from 0 on; -1 for none."""
        seg = -1
        while (place := self.segments.get(seg + 1)) and place.complete:
            seg += 1
        return seg

    @property
    def dur_ms(self) -> int:
        """Length of the effective timeline so far."""
        return self.pts // TICKS_PER_MS

    def audio(
        self,
        seg: int,
        dur_ticks: int,
        packets: Sequence[bytes],
        pcm: bytes = b"",
        *,
        first: bool,
        last: bool,
        emit_ms: int | None = None,
    ) -> int:
        """Append one chunk of sentence `seg` and return its sequence number.

        Args:
            dur_ticks: length in ticks of 1/48000 s, at most 2 s.
            packets: Opus, 20 ms each, mono. The encoder runs on from chunk to chunk; a new one
                starts with each epoch and each owner.
            pcm: the same as s16le at 24 kHz, for listeners without Opus; may be empty.
            first: the sentence begins with this chunk; `last`: it ends with it.
            emit_ms: Unix ms at which the engine had finished the chunk; now, if None.
        """
        payload = pack_packets(packets)
        return self._chunk(Kind.AUDIO, seg, dur_ticks, payload, pcm, first, last, emit_ms)

    def silence(self, seg: int, dur_ticks: int, *, first: bool = False, last: bool = False) -> int:
        """Append `dur_ticks` of silence to sentence `seg` without a payload; return its seq."""
        return self._chunk(Kind.SILENCE, seg, dur_ticks, b"", b"", first, last, None)

    def sentence(self, seg: int, text: str, *, chapter: str = "") -> None:
        """Announce the text of sentence `seg`, which begins with the next chunk.

        It is written together with that chunk, in one round trip.

        Args:
            chapter: title of the chapter that the sentence begins, if it begins one.
        """
        event = {"t": "seg", "seg": seg, "text": text, "ms": self.dur_ms}
        self._held.append(self._event(event | ({"chapter": chapter} if chapter else {})))

    def words(self, seg: int, words: Sequence[tuple[str, int, int]], q: Quality) -> None:
        """Append word times of sentence `seg`: (word, start, end) in ms from the session start."""
        self._write([self._event({"t": "w", "seg": seg, "q": q, "w": [list(w) for w in words]})])

    def state(self, state: State, by: Actor) -> None:
        """Tell listeners that generation goes on, pauses, or has failed, and who wanted it."""
        event = {"t": "state", "state": state, "by": by, "play_ms": self.dur_ms}
        self._write([self._event(event)])

    def cut(self, from_seg: int, why: CutWhy) -> int:
        """Make sentence `from_seg` and all later ones void; return the new epoch.

        The next chunk begins where `from_seg` began.
        """
        self._held.clear()
        self._rewind(from_seg)
        event = {"t": "cut", "from_seg": from_seg, "cut_ms": self.dur_ms, "why": why}
        entry = self._event(event, epoch=self.epoch + 1)
        self._write([entry], next_epoch=self.epoch + 1)
        return self.epoch

    def end(self, why: str, *, url: str | None = None) -> None:
        """Finish the session: end frame and `end` event, after which the log expires in 6 hours."""
        header = Header(
            kind=Kind.END,
            codec=Codec.NONE,
            flags=Flag(0),
            stream=self._stream,
            epoch=self.epoch,
            seg=max(self.segments, default=0),
            seq=self.head_seq + 1,
            pts=self.pts,
            dur=0,
            emit_ms=_now_ms(),
        )
        event: dict[str, object] = {"t": "end", "seq": header.seq, "dur_ms": self.dur_ms}
        event |= {"chunks": self.chunks, "sha256": self._digest.hexdigest(), "why": why}
        frame = Entry(header.seq, 0, pack_header(header), b"")
        ended = self._event(event | ({"url": url} if url else {}), at=(header.seq, 1))
        self._write([frame, ended], finish=True)
        self.ended = True

    def file(self, url: str, format: str, size_bytes: int, vtt: str, chapters: str) -> None:
        """Name the recording and its captions and chapters (URLs); may come after `end`."""
        event = {"t": "file", "url": url, "format": format, "bytes": size_bytes}
        self._write([self._event(event | {"vtt": vtt, "chapters": chapters})])

    def fail(self, code: str, message: str) -> None:
        """Tell listeners that the session failed and why, then end it."""
        error = {"t": "error", "code": code, "status": 500, "message": message, "fatal": False}
        state = {"t": "state", "state": "failed", "by": "system", "play_ms": self.dur_ms}
        seq, k = self._next_k()
        entries = [self._event(error, at=(seq, k)), self._event(state, at=(seq, k + 1))]
        self._write(entries, finish=True)

    def rebuild(self) -> None:
        """Start the lost log again: the next epoch, numbers go on, nothing is spoken yet.

        Append the segments again from 0, as if they were new.
        """
        # One number is left out: the cut must stand after every event that was ever published.
        self._start_again(seq=self.head_seq + 2, epoch=self.epoch + 1, replace=True)

    def _start_again(self, *, seq: int, epoch: int, replace: bool = False) -> None:
        self._held.clear()
        self._pcm.clear()
        self._rewind(0)
        start = (seq - 1, 0)
        self._log.create(
            self.sid, self._fence, self.meta, epoch=epoch, start=start, replace=replace
        )
        self.epoch, self._head = epoch, start
        self._flags = Flag.EPOCH_START | Flag.DISCONTINUITY
        cut = {"t": "cut", "from_seg": 0, "cut_ms": 0, "why": "retry"}
        self._write([self._event(cut)])

    def _chunk(
        self,
        kind: Kind,
        seg: int,
        dur_ticks: int,
        payload: bytes,
        pcm: bytes,
        first: bool,
        last: bool,
        emit_ms: int | None,
    ) -> int:
        flags = self._flags
        if first:
            flags |= Flag.SEGMENT_START
        if last:
            flags |= Flag.SEGMENT_END
        header = Header(
            kind=kind,
            codec=Codec.OPUS if payload else Codec.NONE,
            flags=flags,
            stream=self._stream,
            epoch=self.epoch,
            seg=seg,
            seq=self.head_seq + 1,
            pts=self.pts,
            dur=dur_ticks,
            emit_ms=(_now_ms() if emit_ms is None else emit_ms) & U32_MAX,
        )
        entry = Entry(header.seq, 0, pack_header(header), payload)
        while self._pcm and self._pcm[0][1] < self.pts + dur_ticks - PCM_KEEP_TICKS:
            self._pcm.popleft()
        self._write([entry], pcm={header.seq: pcm} if pcm else None)
        if pcm:
            self._pcm.append((header.seq, self.pts + dur_ticks))
        self._flags = Flag(0)
        self._count(header, payload)
        return header.seq

    def _count(self, header: Header, payload: bytes) -> None:
        """Take a chunk that is in the log into the effective timeline."""
        if header.seg not in self.segments:
            digest = self._digest.copy()
            self.segments[header.seg] = Segment(header.seq, header.pts, self.chunks, digest)
        if header.flags & Flag.SEGMENT_END:
            self.segments[header.seg].complete = True
        self._digest.update(payload)
        self.chunks += 1
        self.pts = header.pts + header.dur

    def _rewind(self, from_seg: int) -> None:
        """Drop sentences from `from_seg` on from the effective timeline."""
        void = [seg for seg in self.segments if seg >= from_seg]
        if void:
            first = self.segments[min(void)]
            self.pts, self.chunks, self._digest = (
                first.pts,
                first.chunks_before,
                first.digest_before,
            )
        for seg in void:
            del self.segments[seg]

    def _recover(self, info: LogInfo) -> None:
        spoken_epoch = 0
        for entry in self._entries():
            if entry.header:
                header = unpack_header(entry.header)
                if header.kind is Kind.END:
                    self.ended = True
                else:
                    spoken_epoch = header.epoch
                    self._count(header, entry.body)
            elif (event := json.loads(entry.body))["t"] == "cut":
                self._rewind(event["from_seg"])
        self.epoch, self._head = info.epoch, info.head
        if spoken_epoch == info.epoch:  # our encoder is new, the epoch is not
            self._flags = Flag.DISCONTINUITY

    def _entries(self) -> Iterator[Entry]:
        after = BEGINNING
        while page := self._log.read(self.sid, after):
            yield from page
            after = page[-1].position

    def _next_k(self) -> Position:
        """The position of the next event."""
        seq, k = self._held[-1].position if self._held else self._head
        return (seq, k + 1)

    def _event(
        self, fields: Mapping[str, object], *, at: Position | None = None, epoch: int | None = None
    ) -> Entry:
        seq, k = at or self._next_k()
        event = {"t": fields["t"], "sid": self.sid, "p": [seq, k], "e": epoch or self.epoch}
        text = json.dumps(event | dict(fields), ensure_ascii=False, separators=(",", ":"))
        return Entry(seq, k, b"", text.encode("utf-8", "replace"))

    def _write(
        self,
        entries: list[Entry],
        *,
        pcm: Mapping[int, bytes] | None = None,
        next_epoch: int | None = None,
        finish: bool = False,
    ) -> None:
        """Append what was held and `entries`; repeat while the store is away for a moment."""
        batch = self._held + entries
        pcm_from = self._pcm[0][0] if self._pcm else 0
        for wait_s in (*RETRY_AFTER_S, None):
            try:
                self._log.append(
                    self.sid,
                    self._fence,
                    self.epoch,
                    self._head,
                    batch,
                    pcm=pcm,
                    pcm_from=pcm_from,
                    next_epoch=next_epoch,
                    finish=finish,
                )
                break
            except LogUnavailable:
                if wait_s is None:
                    raise
                time.sleep(wait_s)
        self._held.clear()
        self._head = batch[-1].position
        if next_epoch:
            self.epoch = next_epoch
            self._flags = Flag.EPOCH_START | Flag.DISCONTINUITY


def _now_ms() -> int:
    """Unix ms modulo 2**32, as the header carries it."""
    return time.time_ns() // 1_000_000 & U32_MAX
