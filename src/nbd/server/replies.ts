/**
 * Whole replies of the transmission phase, simple or structured as was negotiated.
 *
 * Structured: a READ is answered in chunks only, an error by a chunk with text, success without data by a
 * simple reply, which is shorter and always allowed.
 */
import type { Errno } from "../../errors.js";
import { ChunkFlag, ChunkType } from "../wire/constants.js";
import { errorNumberOf } from "../wire/error-number.js";
import type { Cookie } from "../wire/request.js";
import { SIMPLE_REPLY_HEADER_BYTES, writeSimpleReplyHeader } from "../wire/simple-reply.js";
import {
  CHUNK_HEADER_BYTES,
  OFFSET_DATA_PREFIX_BYTES,
  encodeErrorChunk,
  writeChunkHeader,
  writeOffsetDataHeader,
} from "../wire/structured-reply.js";

/** What precedes the data of a read that is answered in one piece. */
const DATA_CHUNK_HEADER_BYTES = CHUNK_HEADER_BYTES + OFFSET_DATA_PREFIX_BYTES;

export function successReply(cookie: Cookie): Buffer {
  return simpleReply(cookie, 0);
}

export function errorReply(structured: boolean, cookie: Cookie, errno: Errno, message: string): Buffer {
  const errorNumber = errorNumberOf(errno);
  return structured
    ? encodeErrorChunk(cookie, ChunkFlag.Done, errorNumber, message)
    : simpleReply(cookie, errorNumber);
}

/** The reply to a READ of 0 bytes; a data chunk must not be empty. */
export function emptyReadReply(structured: boolean, cookie: Cookie): Buffer {
  if (!structured) return simpleReply(cookie, 0);
  const bytes = Buffer.allocUnsafe(CHUNK_HEADER_BYTES);
  writeChunkHeader(bytes, 0, cookie, ChunkFlag.Done, ChunkType.None, 0);
  return bytes;
}

/** A reply to a READ in one buffer: the header, and room for the data behind it. */
export interface DataReply {
  readonly bytes: Buffer;
  /** The part of `bytes` that the device is to fill. */
  readonly data: Buffer;
}

// Header and data in one buffer: one write for the kernel instead of two. Allocated anew for each read;
// a pool would save the garbage collector work, and is for a benchmark to ask for.
export function simpleDataReply(cookie: Cookie, lengthBytes: number): DataReply {
  const bytes = Buffer.allocUnsafe(SIMPLE_REPLY_HEADER_BYTES + lengthBytes);
  writeSimpleReplyHeader(bytes, 0, cookie, 0);
  return { bytes, data: bytes.subarray(SIMPLE_REPLY_HEADER_BYTES) };
}

export function dataChunk(cookie: Cookie, flags: number, offset: number, lengthBytes: number): DataReply {
  const bytes = Buffer.allocUnsafe(DATA_CHUNK_HEADER_BYTES + lengthBytes);
  writeOffsetDataHeader(bytes, 0, cookie, flags, offset, lengthBytes);
  return { bytes, data: bytes.subarray(DATA_CHUNK_HEADER_BYTES) };
}

function simpleReply(cookie: Cookie, errorNumber: number): Buffer {
  const bytes = Buffer.allocUnsafe(SIMPLE_REPLY_HEADER_BYTES);
  writeSimpleReplyHeader(bytes, 0, cookie, errorNumber);
  return bytes;
}
