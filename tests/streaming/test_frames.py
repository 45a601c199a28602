from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from streaming.errors import BadFrame
from streaming.frames import (
    Codec,
    Flag,
    Header,
    Kind,
    as_pcm,
    binary_message,
    pack_header,
    pack_packets,
    parse,
    text_message,
    unpack_header,
    unpack_packets,
)

OPUS = Header(
    kind=Kind.AUDIO,
    codec=Codec.OPUS,
    flags=Flag.EPOCH_START | Flag.SEGMENT_START,
    stream=0xA1B2C3D4,
    epoch=3,
    seg=17,
    seq=812,
    pts=7795200,
    dur=1920,
    emit_ms=0x19AABBCC,
)
PCM = Header(Kind.AUDIO, Codec.PCM, Flag(0), 0xA1B2C3D4, 3, 17, 813, 7797120, 8, 0x19AABC94)
END = Header(Kind.END, Codec.NONE, Flag(0), 0xA1B2C3D4, 3, 17, 814, 7797128, 0, 0x19AABC95)
VECTORS = [
    (
        OPUS,
        pack_packets([b"\xf8\xff\xfe"] * 2),
        "4e110205a1b2c3d4000300110000032c000000000076f2000000078019aabbcc020003f8fffe0003f8fffe",
    ),
    (
        PCM,
        b"\x00\x00\x01\x00\xff\xff\xff\x7f",
        "4e110100a1b2c3d4000300110000032d000000000076f9800000000819aabc9400000100ffffff7f",
    ),
    (END, b"", "4e130000a1b2c3d4000300110000032e000000000076f9880000000019aabc95"),
]


@pytest.mark.parametrize(("header", "payload", "vector"), VECTORS)
def test_published_vectors_are_made_and_read(header: Header, payload: bytes, vector: str) -> None:
    assert (pack_header(header) + payload).hex() == vector
    assert parse(bytes.fromhex(vector)) == (header, payload)


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=255))
def test_packets_survive_the_payload(packets: list[bytes]) -> None:
    assert unpack_packets(pack_packets(packets)) == packets


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_a_clear_error(data: bytes) -> None:
    for frame in (data, bytes.fromhex(VECTORS[0][2])[:32] + data, bytes(data[:4]) + data):
        try:
            header, payload = parse(frame)
        except BadFrame as error:
            assert str(error)
        else:
            assert pack_header(header)[4:] + payload == frame[4:]


@pytest.mark.parametrize(
    ("frame", "cause"),
    [
        (b"", "header alone needs 32"),
        (b"\x4f" + bytes(31), "magic is 0x4f"),
        (b"\x4e\x21" + bytes(30), "frame version 2"),
        (b"\x4e\x17" + bytes(30), "kind 7"),
        (pack_header(END) + b"x", "END frame with 1 payload bytes"),
        (pack_header(PCM) + b"abc", "3 bytes for 8 ticks"),
        (pack_header(OPUS) + b"\x01\x00\x05abc", "cut short in packet 0"),
        (pack_header(OPUS) + b"\x01\x00\x01abc", "2 bytes after the last"),
        (pack_header(OPUS), "without packets"),
    ],
)
def test_broken_frames_are_refused_with_their_cause(frame: bytes, cause: str) -> None:
    with pytest.raises(BadFrame, match=cause):
        parse(frame)


@pytest.mark.parametrize("packets", [[], [b""], [b"x" * 65_536], [b"x"] * 256])
def test_packet_lists_that_do_not_fit_are_refused(packets: list[bytes]) -> None:
    with pytest.raises(BadFrame):
        pack_packets(packets)


def test_a_field_out_of_range_is_refused() -> None:
    with pytest.raises(BadFrame, match="out of range"):
        pack_header(Header(Kind.AUDIO, Codec.OPUS, Flag(0), 1, 65_536, 0, 0, 0, 960, 0))


def test_unknown_flags_are_dropped() -> None:
    frame = bytearray(bytes.fromhex(VECTORS[2][2]))
    frame[3] = 0xF2

    assert unpack_header(bytes(frame)).flags == Flag.DISCONTINUITY


def test_a_pcm_header_differs_in_the_codec_only() -> None:
    assert unpack_header(as_pcm(pack_header(OPUS))).codec is Codec.PCM
    assert as_pcm(pack_header(OPUS))[3:] == pack_header(OPUS)[3:]


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_websocket_frames_are_those_of_the_library(size: int) -> None:
    body = b"a" * size

    assert binary_message(body[: size // 2], body[size // 2 :]) == Frame(
        Opcode.BINARY, body
    ).serialize(mask=False)
    assert text_message(body) == Frame(Opcode.TEXT, body).serialize(mask=False)
