"""Opus packets into an endless Ogg stream (RFC 3533, RFC 7845), one page for each chunk.

A stream stays one logical bitstream from its first byte to its last, whatever is cut on the way:
browsers and cast devices stop where a chained one begins anew. Its clock is therefore the
listener's own: granule positions count what was sent, and never what the session's timeline says.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from streaming.frames import OPUS_SKIP, PCM_RATE_HZ

PACKET_TICKS = 960  # 20 ms of 48 kHz
SILENCE = b"\xf8\xff\xfe"  # a 20 ms packet without sound (CELT, full band, mono)
VENDOR = b"Notecast"

_PAGE = struct.Struct("<4sBBqIII")
_FIRST, _LAST = 2, 4
_LACES = 255  # most lacing values of a page
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class OggOpus:
    """One listener's stream.

    Args:
        serial: names the logical bitstream, u32.
        skip: samples at 48 kHz that a player drops at the start: what the encoder prepends, and
            what is only there to let the decoder settle.
        tags: comments such as `TITLE`.

    Attributes:
        granule: samples at 48 kHz so far, `skip` included.
    """

    def __init__(
        self, serial: int, *, skip: int = OPUS_SKIP, tags: Mapping[str, str] | None = None
    ) -> None:
        self.granule = 0
        self._serial = serial
        self._skip = skip
        self._tags = dict(tags or {})
        self._number = 0

    def head(self) -> bytes:
        """The two pages that every stream begins with."""
        opus_head = struct.pack("<8sBBHIhB", b"OpusHead", 1, 1, self._skip, PCM_RATE_HZ, 0, 0)
        comments = [f"{name}={value}".encode() for name, value in self._tags.items() if value]
        parts = [struct.pack("<I", len(part)) + part for part in (VENDOR, *comments)]
        parts.insert(1, struct.pack("<I", len(comments)))
        return self._page([opus_head], _FIRST) + self._page([b"OpusTags" + b"".join(parts)], 0)

    def page(self, packets: Sequence[bytes]) -> bytes:
        """The next packets of 20 ms, on a page of their own (more, if they are large)."""
        pages: list[bytes] = []
        waiting: list[bytes] = []
        laces = 0
        for packet in packets:
            needed = len(packet) // 255 + 1
            if laces + needed > _LACES:
                pages.append(self._page(waiting, 0))
                waiting, laces = [], 0
            self.granule += PACKET_TICKS
            waiting.append(packet)
            laces += needed
        return b"".join([*pages, self._page(waiting, 0)])

    def end(self) -> bytes:
        """The last page: what the encoder still owes, cut to the sample by its granule position."""
        self.granule += min(self._skip, OPUS_SKIP)
        return self._page([SILENCE], _LAST)

    def _page(self, packets: Sequence[bytes], flags: int) -> bytes:
        laces = b"".join(
            b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets
        )
        head = _PAGE.pack(b"OggS", 0, flags, self.granule, self._serial, self._number, 0)
        page = b"".join([head, bytes([len(laces)]), laces, *packets])
        self._number += 1
        return page[:22] + struct.pack("<I", checksum(page)) + page[26:]


def read_packets(file: BinaryIO) -> Iterator[bytes]:
    """All packets of an Ogg file with one stream, the two of its head included.

    Raises:
        ValueError: this is no Ogg, or it is cut short.
    """
    packet = b""
    while head := file.read(_PAGE.size + 1):
        if len(head) <= _PAGE.size or not head.startswith(b"OggS"):
            raise ValueError("this is no Ogg stream, or it is damaged")
        laces = file.read(head[-1])
        body = file.read(sum(laces))
        if len(body) != sum(laces):
            raise ValueError("the Ogg stream is cut short")
        at = 0
        for lace in laces:
            packet += body[at : at + lace]
            at += lace
            if lace < 255:
                yield packet
                packet = b""


def last_granule(end: bytes) -> int:
    """The granule position of the last page of a file, from the end of its bytes.

    Raises:
        ValueError: there is no page.
    """
    at = end.rfind(b"OggS")
    if at < 0 or len(end) - at < _PAGE.size:
        raise ValueError("there is no Ogg page at the end of the file")
    return int(_PAGE.unpack_from(end, at)[3])


def checksum(page: bytes) -> int:
    """The CRC of an Ogg page: polynomial 0x04c11db7, highest bit first, from 0 (RFC 3533, 6).

    zlib's is the same polynomial with the lowest bit first and both ends inverted, and is written
    in C; so the bits of the bytes are turned round, and those of the result back.
    """
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_REVERSED))
