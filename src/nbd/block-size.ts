/** Block sizes within what NBD's payloads may have. */
import type { BlockSize } from "../block/device.js";
import { PAYLOAD_MAXIMUM_BYTES } from "./wire/constants.js";

/** Of the minimum: "MUST NOT be larger than 2^16". */
export const MINIMUM_BLOCK_LIMIT_BYTES = 65536;

/** The maximum in whole blocks; the preferred size, a power of two, must not be above it. */
export function cappedBlockSize({ minimumBytes, preferredBytes, maximumBytes }: BlockSize): BlockSize {
  const limitBytes = Math.min(maximumBytes, PAYLOAD_MAXIMUM_BYTES);
  const wholeBytes = limitBytes - (limitBytes % minimumBytes);
  return {
    minimumBytes,
    preferredBytes: Math.min(preferredBytes, 2 ** Math.floor(Math.log2(wholeBytes))),
    maximumBytes: wholeBytes,
  };
}
