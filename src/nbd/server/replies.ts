/**
 * Whole replies of the transmission phase, simple or structured as was negotiated.
 *
 * Structured: a READ is answered in chunks only, an error by one chunk with text and, where it is known, the offset at
 * which the request failed; success without data by a simple reply, which is shorter and always allowed, but for extended
 * headers, where all are chunks.
 */
import type { Loan } from "../../block/buffer-pool.js";
import type { Errno } from "../../errors.js";
import { ChunkFlag, ChunkType } from "../wire/constants.js";
import { errorNumberOf } from "../wire/error-number.js";
import type { ReplyTarget } from "../wire/request.js";
import { SIMPLE_REPLY_HEADER_BYTES, writeSimpleReplyHeader } from "../wire/simple-reply.js";
import {
  chunkHeaderBytes,
  OFFSET_DATA_PREFIX_BYTES,
  encodeErrorChunk,
  encodeErrorOffsetChunk,
  writeChunkHeader,
  writeOffsetDataHeader,
} from "../wire/structured-reply.js";

/** Of data whose header is a piece of its own. */
const SEPARATE_HEADER_BYTES = 1024 * 1024;

export function successReply(target: ReplyTarget): Buffer {
  return target.extended === true ? emptyChunk(target) : simpleReply(target, 0);
}

/** @param offset inside the request; null: not known */
export function errorReply(
  structured: boolean,
  target: ReplyTarget,
  errno: Errno,
  message: string,
  offset: number | null,
): Buffer {
  const errorNumber = errorNumberOf(errno);
  if (!structured) return simpleReply(target, errorNumber);
  return offset === null
    ? encodeErrorChunk(target, ChunkFlag.Done, errorNumber, message)
    : encodeErrorOffsetChunk(target, ChunkFlag.Done, errorNumber, message, offset);
}

/** The reply to a READ of 0 bytes; a data chunk must not be empty. */
export function emptyReadReply(structured: boolean, target: ReplyTarget): Buffer {
  return structured ? emptyChunk(target) : simpleReply(target, 0);
}

/** A reply to a READ: header, and data. */
export interface DataReply {
  /** What is to be sent, in order. */
  readonly pieces: Buffer[];
  /** The part of it that the device is to fill. */
  readonly data: Buffer;
}

/** @param loan whom the buffer is borrowed by */
export function simpleDataReply(target: ReplyTarget, lengthBytes: number, loan: Loan): DataReply {
  return dataReply(SIMPLE_REPLY_HEADER_BYTES, lengthBytes, loan, (header) => {
    writeSimpleReplyHeader(header, 0, target, 0);
  });
}

/** As simpleDataReply(), for a chunk of a structured reply. */
export function dataChunk(
  target: ReplyTarget,
  flags: number,
  offset: number,
  lengthBytes: number,
  loan: Loan,
): DataReply {
  const headerBytes = chunkHeaderBytes(target) + OFFSET_DATA_PREFIX_BYTES;
  return dataReply(headerBytes, lengthBytes, loan, (header) => {
    writeOffsetDataHeader(header, 0, target, flags, offset, lengthBytes);
  });
}

/**
 * One buffer: one write for the kernel instead of two. But buffers of the pool are powers of two: the header of a long answer
 * has its own, or it would double it.
 */
function dataReply(
  headerBytes: number,
  lengthBytes: number,
  loan: Loan,
  writeHeader: (header: Buffer) => void,
): DataReply {
  if (lengthBytes >= SEPARATE_HEADER_BYTES) {
    const header = Buffer.allocUnsafe(headerBytes);
    writeHeader(header);
    const data = loan.take(lengthBytes);
    return { pieces: [header, data], data };
  }
  const bytes = loan.take(headerBytes + lengthBytes);
  writeHeader(bytes);
  return { pieces: [bytes], data: bytes.subarray(headerBytes) };
}

function emptyChunk(target: ReplyTarget): Buffer {
  const bytes = Buffer.allocUnsafe(chunkHeaderBytes(target));
  writeChunkHeader(bytes, 0, target, ChunkFlag.Done, ChunkType.None, 0);
  return bytes;
}

function simpleReply(target: ReplyTarget, errorNumber: number): Buffer {
  const bytes = Buffer.allocUnsafe(SIMPLE_REPLY_HEADER_BYTES);
  writeSimpleReplyHeader(bytes, 0, target, errorNumber);
  return bytes;
}
