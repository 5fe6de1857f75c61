/** Zeroes, to write and to compare with. */

/** To be read only: everybody's. A longer run is written, and compared, this much at a time. */
export const ZEROES = Buffer.alloc(256 * 1024);

export function isZeroes(content: Buffer): boolean {
  for (let at = 0; at < content.length; at += ZEROES.length) {
    const piece = content.subarray(at, at + ZEROES.length);
    if (!piece.equals(ZEROES.subarray(0, piece.length))) return false;
  }
  return true;
}
