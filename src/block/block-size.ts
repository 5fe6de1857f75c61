/** Which limits on its requests a device can have. */
import type { BlockSize } from "./device.js";

export function isPowerOfTwo(value: number): boolean {
  return value >= 1 && Number.isInteger(Math.log2(value));
}

/** Why these can't be a device's, in one line; null: they can. No limit at all, Infinity, is a maximum, too. */
export function blockSizeMistake({ minimumBytes, preferredBytes, maximumBytes }: BlockSize): string | null {
  if (!isPowerOfTwo(minimumBytes)) {
    return `its minimum block size is to be a power of two, not ${minimumBytes}`;
  }
  if (!isPowerOfTwo(preferredBytes)) {
    return `its preferred block size is to be a power of two, not ${preferredBytes}`;
  }
  const isMaximum = maximumBytes === Infinity || Number.isSafeInteger(maximumBytes);
  if (isMaximum && maximumBytes >= minimumBytes) return null;
  return `its maximum block size is to be a number of bytes, ${minimumBytes} or more, not ${maximumBytes}`;
}
