/**
 * What the chunks of a structured reply mean for the request that they answer.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#structured-reply-types
 */
import { ProtocolError } from "../../errors.js";
import {
  CHUNK_ERROR_BIT,
  ChunkFlag,
  ChunkType,
  Command,
  CommandFlag,
  STRING_MAXIMUM_BYTES,
} from "../wire/constants.js";
import { errorNumberOf } from "../wire/error-number.js";
import {
  BLOCK_DESCRIPTOR_BYTES,
  BLOCK_STATUS_PREFIX_BYTES,
  ERROR_PREFIX_BYTES,
  EXTENDED_DESCRIPTOR_BYTES,
  EXTENDED_STATUS_PREFIX_BYTES,
  OFFSET_DATA_PREFIX_BYTES,
  OFFSET_HOLE_PAYLOAD_BYTES,
  decodeBlockStatus,
  decodeErrorChunk,
  decodeExtendedBlockStatus,
  decodeOffsetHole,
} from "../wire/structured-reply.js";
import type { BlockDescriptor, ChunkHeader } from "../wire/structured-reply.js";
import { UINT64_TOO_LARGE } from "../wire/uint64.js";
import type { Request } from "./request.js";

/** "Servers SHOULD NOT send more than 2^20 extents in a single reply chunk." */
const BLOCK_STATUS_MAXIMUM_BYTES = BLOCK_STATUS_PREFIX_BYTES + BLOCK_DESCRIPTOR_BYTES * 2 ** 20;
const EXTENDED_STATUS_MAXIMUM_BYTES = EXTENDED_STATUS_PREFIX_BYTES + EXTENDED_DESCRIPTOR_BYTES * 2 ** 20;

/** "The most-significant 32 bits of status MUST be all zeroes" in this namespace. */
const BASE_NAMESPACE = "base:";
const STATUS_32_MAXIMUM = 0xffff_ffff;

/** A message of full length, and fields behind it that a later document may define. */
const ERROR_CHUNK_MAXIMUM_BYTES = ERROR_PREFIX_BYTES + STRING_MAXIMUM_BYTES + 1024;

/**
 * How much of a chunk's payload to collect before it can be applied: all of it, but for the content of a READ.
 * @throws ProtocolError for a chunk that can't belong to the request's answer
 */
export function bytesToCollect(header: ChunkHeader, request: Request, extended: boolean): number {
  const { type, lengthBytes } = header;
  if ((type & CHUNK_ERROR_BIT) !== 0) {
    require(lengthBytes <= ERROR_CHUNK_MAXIMUM_BYTES, header, request);
    return lengthBytes;
  }
  switch (type) {
    case ChunkType.None:
      require(lengthBytes === 0 && (header.flags & ChunkFlag.Done) !== 0, header, request);
      return 0;
    case ChunkType.OffsetData:
      require(request.type === Command.Read, header, request);
      require(lengthBytes > OFFSET_DATA_PREFIX_BYTES &&
        lengthBytes - OFFSET_DATA_PREFIX_BYTES <= request.lengthBytes, header, request);
      return OFFSET_DATA_PREFIX_BYTES;
    case ChunkType.OffsetHole:
      require(request.type === Command.Read && lengthBytes === OFFSET_HOLE_PAYLOAD_BYTES, header, request);
      return lengthBytes;
    case ChunkType.BlockStatus:
      require(request.type === Command.BlockStatus &&
        !extended &&
        lengthBytes <= BLOCK_STATUS_MAXIMUM_BYTES, header, request);
      return lengthBytes;
    case ChunkType.BlockStatusExt:
      require(request.type === Command.BlockStatus &&
        extended &&
        lengthBytes >= EXTENDED_STATUS_PREFIX_BYTES &&
        lengthBytes <= EXTENDED_STATUS_MAXIMUM_BYTES, header, request);
      return lengthBytes;
    default:
      throw new ProtocolError(
        "unknown-chunk-type",
        `a chunk of the unknown type ${type} answers ${request.describe()}`,
      );
  }
}

/** Fills a hole of a READ. */
export function applyHole(request: Request, payload: Buffer): void {
  const { offset, holeBytes } = decodeOffsetHole(payload);
  request.cover(offset, holeBytes);
  const start = offset - request.offset;
  request.buffer?.fill(0, start, start + holeBytes);
}

/**
 * Keeps the descriptors of a BLOCK_STATUS or BLOCK_STATUS_EXT, clipped to what was asked.
 * @param contexts all that are selected, with the server's numbers for them
 */
export function applyBlockStatus(
  request: Request,
  chunkType: number,
  payload: Buffer,
  contexts: ReadonlyMap<string, number>,
): void {
  const { contextId, descriptors } =
    chunkType === ChunkType.BlockStatusExt ? decodeExtendedBlockStatus(payload) : decodeBlockStatus(payload);
  const query = request.status;
  const context = [...contexts].find(([, id]) => id === contextId)?.[0];
  const isExpected = query?.payload === null || query?.contextIds.includes(contextId) === true;
  if (query === null || context === undefined || !isExpected || query.answers.has(contextId)) {
    throw new ProtocolError(
      "unexpected-meta-context",
      `a chunk of metadata context ${contextId} was not asked for`,
    );
  }
  if ((request.flags & CommandFlag.ReqOne) !== 0 && descriptors.length > 1) {
    throw new ProtocolError("too-many-extents", `${descriptors.length} extents where one was asked for`);
  }
  const kept: BlockDescriptor[] = [];
  let leftBytes = query.lengthBytes;
  for (const { lengthBytes, status } of descriptors) {
    if (leftBytes <= 0) {
      throw new ProtocolError("too-many-extents", `extents beyond the end of ${request.describe()}`);
    }
    if (status > STATUS_32_MAXIMUM && context.startsWith(BASE_NAMESPACE)) {
      throw new ProtocolError("malformed-chunk", `a status of ${context} has more than 32 bits`);
    }
    if (status === UINT64_TOO_LARGE && query.contextIds.includes(contextId)) {
      request.fail(errorNumberOf("EOVERFLOW"), `no number can hold a status of ${context}`);
    }
    if (kept.length < query.maxDescriptors) {
      kept.push({ lengthBytes: Math.min(lengthBytes, leftBytes), status });
    }
    leftBytes -= lengthBytes;
  }
  query.answers.set(contextId, kept);
}

/** Makes the request fail; of several errors the first one tells. */
export function applyError(request: Request, type: number, payload: Buffer): void {
  const { errorNumber, message, offset } = decodeErrorChunk(type, payload);
  if (offset !== null && request.rangeBytes > 0) {
    if (offset < request.offset || offset >= request.offset + request.rangeBytes) {
      throw new ProtocolError("error-out-of-range", `an error at ${offset} answers ${request.describe()}`);
    }
  }
  const text = offset === null ? message : `${message} (at offset ${offset})`.trimStart();
  request.fail(errorNumber, text, offset);
}

function require(right: boolean, header: ChunkHeader, request: Request): void {
  if (right) return;
  throw new ProtocolError(
    "misplaced-chunk",
    `a chunk of type ${header.type} with ${header.lengthBytes} bytes can't answer ${request.describe()}`,
  );
}
