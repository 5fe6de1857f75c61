/** NBD_CMD_CACHE: what the client is about to read gets into the caches below, the kernel's page cache above all. */
import type { BlockDevice } from "../../block/device.js";
import { failedAt } from "../../errors.js";
import type { RequestHeader } from "../wire/request.js";
import { PREFETCH_MAXIMUM_BYTES, PREFETCH_PIECE_BYTES } from "./limits.js";

/** What is read, for all clients at a time: nobody looks at it, so it may be any mixture. */
let scratch: Buffer | null = null;

/**
 * Reads what the request names, piece after piece, and forgets it; of a long range the beginning: the
 * document leaves open how much is cached. Ends early, without an error, when it is not wanted any more.
 */
export async function prefetch(
  device: BlockDevice,
  request: RequestHeader,
  isWanted: () => boolean,
): Promise<void> {
  scratch ??= Buffer.allocUnsafeSlow(PREFETCH_PIECE_BYTES);
  const end = request.offset + Math.min(request.lengthBytes, PREFETCH_MAXIMUM_BYTES);
  for (let at = request.offset; at < end && isWanted(); at += scratch.length) {
    await device.read(at, scratch.subarray(0, end - at)).catch(failedAt(at));
  }
}
