"""The binary frame of `notecast.v1`, Opus packet lists, and WebSocket frames made once for all.

A frame is a 32-byte big-endian header and a payload. Times in it are ticks of 1/48000 s: one
24 kHz sample is 2 ticks, one 20 ms Opus packet is 960, so every position is whole in both codecs.
The header names no listener, so one byte string serves everybody who hears the session.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from streaming.errors import BadFrame

MAGIC = 0x4E
VERSION = 1
HEADER_BYTES = 32
TICKS_PER_S = 48_000
TICKS_PER_MS = 48
OPUS_RATE_HZ = 48_000
PCM_RATE_HZ = 24_000
OPUS_SKIP = 312  # samples at 48 kHz that libopus prepends; measured through PyAV
MAX_DUR_TICKS = 2 * TICKS_PER_S
U16_MAX = 0xFFFF
U32_MAX = 0xFFFF_FFFF

_HEADER = struct.Struct(">BBBBIHHIQII")
_CODEC_AT = 2


class Kind(IntEnum):
    """What a frame carries."""

    AUDIO = 1
    SILENCE = 2  # no payload: play `dur` of silence
    END = 3


class Codec(IntEnum):
    """How the payload is coded."""

    NONE = 0
    PCM = 1  # signed 16-bit little-endian, 24 kHz, mono
    OPUS = 2  # 20 ms packets, mono


class Flag(IntFlag):
    """Bits of the flags byte; a reader ignores the others."""

    EPOCH_START = 1
    DISCONTINUITY = 2  # reset the decoder, fade shortly
    SEGMENT_START = 4
    SEGMENT_END = 8


@dataclass(frozen=True, slots=True)
class Header:
    """One frame's header; `pts` and `dur` are ticks, `emit_ms` is Unix ms modulo 2**32."""

    kind: Kind
    codec: Codec
    flags: Flag
    stream: int
    epoch: int
    seg: int
    seq: int
    pts: int
    dur: int
    emit_ms: int


def pack_header(header: Header) -> bytes:
    """Return the 32 bytes of `header`.

    Raises:
        BadFrame: a field does not fit its width.
    """
    try:
        return _HEADER.pack(
            MAGIC,
            VERSION << 4 | header.kind,
            header.codec,
            header.flags,
            header.stream,
            header.epoch,
            header.seg,
            header.seq,
            header.pts,
            header.dur,
            header.emit_ms,
        )
    except struct.error as error:
        raise BadFrame(f"header field out of range: {header}") from error


def unpack_header(frame: bytes) -> Header:
    """Read the header of `frame`; flags that this version does not know are dropped.

    Raises:
        BadFrame: too short, foreign magic, other version, unknown kind or codec.
    """
    if len(frame) < HEADER_BYTES:
        raise BadFrame(f"frame has {len(frame)} bytes, its header alone needs {HEADER_BYTES}")
    magic, version_kind, codec, flags, stream, epoch, seg, seq, pts, dur, emit_ms = (
        _HEADER.unpack_from(frame)
    )
    if magic != MAGIC:
        raise BadFrame(f"magic is 0x{magic:02x}, not 0x{MAGIC:02x}")
    if version_kind >> 4 != VERSION:
        raise BadFrame(f"frame version {version_kind >> 4}, this side speaks {VERSION}")
    try:
        kind, known_codec = Kind(version_kind & 15), Codec(codec)
    except ValueError as error:
        raise BadFrame(f"kind {version_kind & 15}, codec {codec}: unknown") from error
    known_flags = Flag(flags & 15)
    return Header(kind, known_codec, known_flags, stream, epoch, seg, seq, pts, dur, emit_ms)


def parse(frame: bytes) -> tuple[Header, bytes]:
    """Split a received frame into header and payload, and check that they fit together.

    Raises:
        BadFrame: as `unpack_header`, or a payload that the header rules out.
    """
    header = unpack_header(frame)
    payload = frame[HEADER_BYTES:]
    if header.kind is not Kind.AUDIO:
        if payload:
            raise BadFrame(f"{header.kind.name} frame with {len(payload)} payload bytes")
        return header, payload
    if not 0 < header.dur <= MAX_DUR_TICKS:
        raise BadFrame(f"audio frame of {header.dur} ticks; up to 2 s are allowed")
    if header.codec is Codec.PCM and len(payload) != header.dur:
        # 2 ticks a sample, 2 bytes a sample: ticks and bytes are the same number.
        raise BadFrame(f"PCM payload of {len(payload)} bytes for {header.dur} ticks")
    if header.codec is Codec.OPUS:
        unpack_packets(payload)
    elif header.codec is Codec.NONE:
        raise BadFrame("audio frame without a codec")
    return header, payload


def as_pcm(header: bytes) -> bytes:
    """Return the packed Opus `header` with its codec byte set to PCM: the rest is the same."""
    return header[:_CODEC_AT] + bytes([Codec.PCM]) + header[_CODEC_AT + 1 :]


def pack_packets(packets: Sequence[bytes]) -> bytes:
    """Return the Opus payload: u8 count, then per packet u16 length and bytes.

    Raises:
        BadFrame: no packet, more than 255, or one that is empty or over 65,535 bytes.
    """
    if not 1 <= len(packets) <= 255:
        raise BadFrame(f"{len(packets)} packets in one frame; 1 to 255 are allowed")
    parts = [bytes([len(packets)])]
    for packet in packets:
        if not 1 <= len(packet) <= U16_MAX:
            raise BadFrame(f"Opus packet of {len(packet)} bytes; 1 to {U16_MAX} are allowed")
        parts += [len(packet).to_bytes(2), packet]
    return b"".join(parts)


def unpack_packets(payload: bytes) -> list[bytes]:
    """Return the packets of an Opus payload.

    Raises:
        BadFrame: the list is cut short, has a rest, or an empty packet.
    """
    if not payload or not payload[0]:
        raise BadFrame("Opus payload without packets")
    packets: list[bytes] = []
    at = 1
    for _ in range(payload[0]):
        size = int.from_bytes(payload[at : at + 2])
        packet = payload[at + 2 : at + 2 + size]
        if not size or len(packet) != size:
            raise BadFrame(f"Opus payload is cut short in packet {len(packets)}")
        packets.append(packet)
        at += 2 + size
    if at != len(payload):
        raise BadFrame(f"{len(payload) - at} bytes after the last Opus packet")
    return packets


def binary_message(*parts: bytes) -> bytes:
    """Return `parts` as one unmasked WebSocket binary frame, ready for a server's transport."""
    return _websocket_frame(0x82, parts)


def text_message(text: bytes) -> bytes:
    """Return UTF-8 `text` as one unmasked WebSocket text frame."""
    return _websocket_frame(0x81, (text,))


def _websocket_frame(first: int, parts: tuple[bytes, ...]) -> bytes:
    """RFC 6455 section 5.2: FIN and opcode in `first`, then the shortest length that fits."""
    size = sum(map(len, parts))
    if size < 126:
        head = bytes((first, size))
    elif size <= U16_MAX:
        head = struct.pack(">BBH", first, 126, size)
    else:
        head = struct.pack(">BBQ", first, 127, size)
    return b"".join((head, *parts))
