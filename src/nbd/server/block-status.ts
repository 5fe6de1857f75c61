/** NBD_CMD_BLOCK_STATUS. */
import { ChunkFlag, CommandFlag } from "../wire/constants.js";
import type { RequestHeader } from "../wire/request.js";
import { encodeBlockStatusChunk } from "../wire/structured-reply.js";
import { BLOCK_STATUS_DESCRIPTORS } from "./limits.js";
import type { SelectedContext } from "./metadata-context.js";

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
    // A context is others' code; a client that asked for one descriptor hangs up on two.
    const told = descriptors.length > maximum ? descriptors.slice(0, maximum) : descriptors;
    const chunkFlags = chunks.length === contexts.length - 1 ? ChunkFlag.Done : 0;
    chunks.push(encodeBlockStatusChunk(request, chunkFlags, id, told));
  }
  return chunks;
}
