/** Long reads answered by hole chunks where the device knows of zeroes, so that they don't cross the wire. */
import type { Loan } from "../../block/buffer-pool.js";
import type { BlockDevice, Extent } from "../../block/device.js";
import { settleAll } from "../../block/settle-all.js";
import { failedAt } from "../../errors.js";
import { ChunkFlag, CommandFlag } from "../wire/constants.js";
import type { RequestHeader } from "../wire/request.js";
import { encodeOffsetHoleChunk } from "../wire/structured-reply.js";
import { SPARSE_READ_EXTENTS, SPARSE_READ_MINIMUM_BYTES } from "./limits.js";
import { dataChunk } from "./replies.js";
import { cutRuns } from "./runs.js";

/** Whether looking for holes is likely to pay; the client must have negotiated structured replies. */
export function isWorthLookup(device: BlockDevice, request: RequestHeader): boolean {
  return (
    request.lengthBytes >= SPARSE_READ_MINIMUM_BYTES &&
    device.info.extents === "native" &&
    (request.flags & CommandFlag.Df) === 0
  );
}

/** The chunks that answer a READ, in the order of their offsets, long ones in two pieces; rejects when any part can't be read. */
export async function sparseRead(device: BlockDevice, request: RequestHeader, loan: Loan): Promise<Buffer[]> {
  const { offset, lengthBytes } = request;
  const runs = zeroRuns(await device.extents(offset, lengthBytes, SPARSE_READ_EXTENTS), lengthBytes);
  const chunks: Buffer[] = [];
  const reads: Promise<void>[] = [];
  let at = offset;
  for (const run of runs) {
    const flags = run === runs.at(-1) ? ChunkFlag.Done : 0;
    if (run.zero) {
      chunks.push(encodeOffsetHoleChunk(request, flags, at, run.lengthBytes));
    } else {
      const { pieces, data } = dataChunk(request, flags, at, run.lengthBytes, loan);
      chunks.push(...pieces);
      reads.push(readPart(device, at, data));
    }
    at += run.lengthBytes;
  }
  await settleAll(reads);
  return chunks;
}

/** One that throws must not leave the others behind, which still fill what is lent to them. */
async function readPart(device: BlockDevice, offset: number, into: Buffer): Promise<void> {
  await device.read(offset, into).catch(failedAt(offset));
}

interface Run {
  readonly lengthBytes: number;
  readonly zero: boolean;
}

/** Merges neighbours; what the extents leave out at the end is data. */
function zeroRuns(extents: readonly Extent[], lengthBytes: number): Run[] {
  const runs: Run[] = [];
  const add = (addedBytes: number, zero: boolean): void => {
    const last = runs.at(-1);
    if (last?.zero === zero) runs[runs.length - 1] = { lengthBytes: last.lengthBytes + addedBytes, zero };
    else runs.push({ lengthBytes: addedBytes, zero });
  };
  let describedBytes = 0;
  for (const extent of cutRuns(extents, lengthBytes)) {
    add(extent.lengthBytes, extent.zero);
    describedBytes += extent.lengthBytes;
  }
  if (describedBytes < lengthBytes) add(lengthBytes - describedBytes, false);
  return runs;
}
