/**
 * `qemu:dirty-bitmap:replica` on a primary's exports: what the replica lacks, for any client that reads QEMU's bitmaps.
 *
 * It is the set that resync has to send, in blocks of DIRTY_BLOCK_BYTES, at the instant of the request. A change that
 * the replica has acknowledged is not in it, whether durable there or not.
 */
import type { DirtyMap } from "../block/dirty-map.js";
import type { MetadataContext } from "../nbd/server/exports.js";
import type { BlockDescriptor } from "../nbd/wire/structured-reply.js";

const NAME = "qemu:dirty-bitmap:replica";

/** QEMU's only status bit of a bitmap. */
const DIRTY = 1;

export function dirtyContext(dirty: Pick<DirtyMap, "nextMissed">): MetadataContext {
  return {
    name: NAME,
    describe: (offset, lengthBytes, maxDescriptors) =>
      Promise.resolve(describe(dirty, offset, lengthBytes, maxDescriptors)),
  };
}

function describe(
  dirty: Pick<DirtyMap, "nextMissed">,
  offset: number,
  lengthBytes: number,
  maxDescriptors: number,
): BlockDescriptor[] {
  const end = offset + lengthBytes;
  const descriptors: BlockDescriptor[] = [];
  for (let at = offset; at < end && descriptors.length < maxDescriptors;) {
    const run = dirty.nextMissed(at, Infinity);
    const isClean = run === null || run.offset > at;
    const runEnd = isClean ? (run?.offset ?? end) : run.offset + run.lengthBytes;
    const next = Math.min(end, runEnd);
    descriptors.push({ lengthBytes: next - at, status: isClean ? 0 : DIRTY });
    at = next;
  }
  return descriptors;
}
