/** What devices and metadata contexts, which are others' code, tell of a range; clients hang up on what is malformed. */
import { DeviceError } from "../../errors.js";

/**
 * Cuts runs of bytes to the range that they were asked for.
 * @throws DeviceError EIO where one of them has no length
 */
export function cutRuns<T extends { readonly lengthBytes: number }>(
  runs: readonly T[],
  rangeBytes: number,
): T[] {
  const cut: T[] = [];
  let leftBytes = rangeBytes;
  for (const run of runs) {
    if (leftBytes === 0) break;
    if (!Number.isSafeInteger(run.lengthBytes) || run.lengthBytes <= 0) {
      throw new DeviceError("EIO", `an extent of ${run.lengthBytes} bytes`);
    }
    cut.push(run.lengthBytes > leftBytes ? { ...run, lengthBytes: leftBytes } : run);
    leftBytes -= Math.min(run.lengthBytes, leftBytes);
  }
  return cut;
}
