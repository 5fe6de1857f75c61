/** Damage to a byte stream: of the kinds that a parser may not have thought of. */
import type { Random } from "../tools/seed.js";

/** Lengths, counts and offsets at which arithmetic goes wrong. */
const EDGES: readonly bigint[] = [
  0n,
  1n,
  4095n,
  4097n,
  0x7fff_ffffn,
  0x8000_0000n,
  0xffff_fffen,
  0xffff_ffffn,
  0x1_0000_0000n,
  (1n << 53n) - 1n,
  1n << 53n,
  1n << 63n,
  (1n << 64n) - 1n,
];

/** A copy with one to four injuries, or none one time in eight; up to twice as long. */
export function mutate(stream: Buffer, random: Random): Buffer {
  let bytes: Buffer = Buffer.from(stream);
  if (random.below(8) === 0) return bytes;
  for (let injuries = 1 + random.below(4); injuries > 0 && bytes.length > 0; injuries--) {
    bytes = injure(bytes, random);
  }
  return bytes.subarray(0, 2 * stream.length);
}

/** Pieces of random sizes, single bytes among them. */
export function pieces(stream: Buffer, random: Random): Buffer[] {
  const parts: Buffer[] = [];
  const limit = random.oneOf([1, 8, 64, 4096, 100_000]);
  for (let at = 0; at < stream.length;) {
    const next = Math.min(stream.length, at + 1 + random.below(limit));
    parts.push(stream.subarray(at, next));
    at = next;
  }
  return parts;
}

function injure(bytes: Buffer, random: Random): Buffer {
  const at = random.below(bytes.length);
  const end = Math.min(bytes.length, at + 1 + random.below(64));
  switch (random.below(7)) {
    case 0:
      bytes[at] = (bytes[at] ?? 0) ^ (1 << random.below(8));
      return bytes;
    case 1:
      bytes[at] = random.below(256);
      return bytes;
    case 2:
      return overwrite(bytes, at, random);
    case 3:
      return Buffer.concat([bytes.subarray(0, at), bytes.subarray(end)]);
    case 4:
      return Buffer.concat([bytes.subarray(0, end), bytes.subarray(at)]);
    case 5:
      return Buffer.concat([bytes.subarray(0, at), random.bytes(random.below(64)), bytes.subarray(at)]);
    default:
      return bytes.subarray(0, at);
  }
}

/** An edge in the place of a field of 16, 32 or 64 bits. */
function overwrite(bytes: Buffer, at: number, random: Random): Buffer {
  const edge = random.oneOf(EDGES);
  const sizeBytes = random.oneOf([2, 4, 8]);
  if (at + sizeBytes > bytes.length) return bytes;
  const field = Buffer.alloc(8);
  field.writeBigUInt64BE(edge);
  field.copy(bytes, at, 8 - sizeBytes);
  return bytes;
}
