/** Delays that others choose. */

/** The longest that Node has, 25 days. */
const LONGEST_MS = 2 ** 31 - 1;

/** For setTimeout(), which makes 1 ms of a delay that is too long for it, such as Infinity. */
export function delayOf(ms: number): number {
  return Math.min(ms, LONGEST_MS);
}
