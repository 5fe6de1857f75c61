/**
 * What one BLOCK_STATUS asks for, and the answer as far as it has come.
 *
 * A server tells of every context that was selected in the handshake, unless it takes a payload that names those to
 * tell of (NBD_FLAG_BLOCK_STATUS_PAYLOAD, with extended headers only).
 */
import { encodeStatusFilter } from "../wire/request.js";
import type { BlockDescriptor } from "../wire/structured-reply.js";

export class StatusQuery {
  /** Of the range; the header's length is that of the payload where there is one. */
  readonly lengthBytes: number;
  /** How many descriptors of each context to keep. */
  readonly maxDescriptors: number;
  /** The server's numbers of the contexts to learn of. */
  readonly contextIds: readonly number[];
  /** Names the contexts to the server; null: it tells of all. */
  readonly payload: Buffer | null;
  /** By the number of the context; perhaps also of others than were asked for. */
  readonly answers = new Map<number, readonly BlockDescriptor[]>();

  constructor(
    lengthBytes: number,
    maxDescriptors: number,
    contextIds: readonly number[],
    isFiltered: boolean,
  ) {
    this.lengthBytes = lengthBytes;
    this.maxDescriptors = maxDescriptors;
    this.contextIds = contextIds;
    this.payload = isFiltered ? encodeStatusFilter(lengthBytes, contextIds) : null;
  }

  get isAnswered(): boolean {
    return this.contextIds.every((id) => this.answers.has(id));
  }
}
