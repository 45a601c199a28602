// Opus packets in an Ogg file (RFC 3533, RFC 7845).
import { writeFileSync } from "node:fs";

/** Write the bodies of Notecast's Opus frames: a count, then length and packet, each. */
export function write(path, bodies) {
  const pages = [
    page(0, 0, [Buffer.from("OpusHead\x01\x01\x38\x01\xc0\x5d\0\0\0\0\0", "latin1")], 2),
    page(1, 0, [Buffer.from("OpusTags\0\0\0\0\0\0\0\0")]),
  ];
  let granule = 0;
  for (const bytes of bodies) {
    const packets = [];
    for (let at = 1; at < bytes.length; at += 2 + packets.at(-1).length) {
      packets.push(bytes.subarray(at + 2, at + 2 + bytes.readUInt16BE(at)));
    }
    pages.push(page(pages.length, (granule += 960 * packets.length), packets));
  }
  writeFileSync(path, Buffer.concat(pages));
}

/** One page of an Ogg file. */
function page(number, granule, packets, flags = 0) {
  const laces = packets.flatMap(({ length }) => [
    ...Array(Math.floor(length / 255)).fill(255),
    length % 255,
  ]);
  const head = Buffer.alloc(27);
  head.write("OggS");
  head[5] = flags;
  head.writeBigInt64LE(BigInt(granule), 6);
  head.writeUInt32LE(1, 14);
  head.writeUInt32LE(number, 18);
  head[26] = laces.length;
  const bytes = Buffer.concat([head, Buffer.from(laces), ...packets]);
  let crc = 0;
  for (const byte of bytes) {
    crc ^= byte << 24;
    for (let bit = 0; bit < 8; bit++) crc = (crc << 1) ^ (crc < 0 ? 0x04c11db7 : 0);
  }
  bytes.writeUInt32LE(crc >>> 0, 22);
  return bytes;
}
