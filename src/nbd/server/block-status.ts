/** NBD_CMD_BLOCK_STATUS. */
import { DeviceError } from "../../errors.js";
import { ChunkFlag, CommandFlag } from "../wire/constants.js";
import type { RequestHeader } from "../wire/request.js";
import { type BlockDescriptor, encodeBlockStatusChunk } from "../wire/structured-reply.js";
import { BLOCK_STATUS_DESCRIPTORS } from "./limits.js";
import type { SelectedContext } from "./metadata-context.js";
import { cutRuns } from "./runs.js";

/** The chunks that answer the request, one for each selected context. */
export async function blockStatus(
  request: RequestHeader,
  contexts: readonly SelectedContext[],
  lengthBytes: number,
): Promise<Buffer[]> {
  const { offset, flags } = request;
  const maximum = (flags & CommandFlag.ReqOne) === 0 ? BLOCK_STATUS_DESCRIPTORS : 1;
  const chunks: Buffer[] = [];
  for (const { id, context } of contexts) {
    const descriptors = await context.describe(offset, lengthBytes, maximum);
    // A client that asked for one descriptor hangs up on two, and on none.
    const told = cutRuns(descriptors, lengthBytes).slice(0, maximum);
    if (told.length === 0) throw new DeviceError("EIO", `${context.name} tells nothing of the range`);
    const chunkFlags = chunks.length === contexts.length - 1 ? ChunkFlag.Done : 0;
    chunks.push(encodeBlockStatusChunk(request, chunkFlags, id, told.map(inWord)));
  }
  return chunks;
}

/** One context with a status that has no place in 32 bits must not cost a client what the others tell. */
function inWord({ lengthBytes, status }: BlockDescriptor): BlockDescriptor {
  return { lengthBytes, status: status >>> 0 };
}
