/**
 * 64-bit offsets and sizes as safe integers; two 32-bit accesses, because those of BigInt cost six times as much.
 */

/**
 * Stands for each value above Number.MAX_SAFE_INTEGER. No device is that large, and infinity loses every
 * comparison with a device's size, so that the ordinary range check refuses it.
 */
export const UINT64_TOO_LARGE = Number.POSITIVE_INFINITY;

const WORD = 0x1_0000_0000;
/** The high word of a safe integer has 21 bits. */
const HIGH_WORD_LIMIT = 0x20_0000;

/** Returns UINT64_TOO_LARGE for what a number can't hold exactly. */
export function readUint64(from: Buffer, at: number): number {
  const high = from.readUInt32BE(at);
  return high < HIGH_WORD_LIMIT ? high * WORD + from.readUInt32BE(at + 4) : UINT64_TOO_LARGE;
}

/** `value` is a safe integer of 0 or more. */
export function writeUint64(into: Buffer, at: number, value: number): void {
  into.writeUInt32BE(Math.floor(value / WORD), at);
  into.writeUInt32BE(value % WORD, at + 4);
}
