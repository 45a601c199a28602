"""Opus packets in an Ogg file (RFC 3533, RFC 7845): `write("out.ogg", bodies)`."""

import struct
import zlib

FLIP = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # the bits of a byte, turned round


def write(path: str, bodies: list[bytes]) -> None:
    """Write the bodies of Notecast's Opus frames: a count, then length and packet, each."""
    pages = [page(0, 0, [b"OpusHead\1\1" + struct.pack("<HIHB", 312, 24000, 0, 0)], 2)]
    pages.append(page(1, 0, [b"OpusTags" + bytes(8)]))
    granule = 0
    for body in bodies:
        packets, at = [], 1
        for _ in range(body[0]):
            at += 2 + (size := int.from_bytes(body[at : at + 2]))
            packets.append(body[at - size : at])
        pages.append(page(len(pages), granule := granule + 960 * len(packets), packets))
    with open(path, "wb") as file:
        file.writelines(pages)


def page(number: int, granule: int, packets: list[bytes], flags: int = 0) -> bytes:
    """One page."""
    laces = b"".join(b"\xff" * (len(one) // 255) + bytes([len(one) % 255]) for one in packets)
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, 1, number, 0, len(laces))
    body = head + laces + b"".join(packets)
    crc = (zlib.crc32(body.translate(FLIP), 0xFFFFFFFF) ^ 0xFFFFFFFF).to_bytes(4, "little")
    return body[:22] + crc.translate(FLIP)[::-1] + body[26:]
