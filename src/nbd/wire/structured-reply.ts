/**
 * Chunks of structured and extended replies, server to client: a header and, by type, its payload.
 * A request with an extended header gets extended replies, which differ in their header and in BLOCK_STATUS_EXT.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#structured-reply-chunk-message
 */
import { ProtocolError } from "../../errors.js";
import { ChunkType, EXTENDED_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC } from "./constants.js";
import type { Cookie, ReplyTarget } from "./request.js";
import { decodeString, encodeMessage } from "./strings.js";
import { readUint64, writeUint64 } from "./uint64.js";

/** 32 bits magic, 16 flags, 16 type, 64 cookie, 32 payload length. */
export const CHUNK_HEADER_BYTES = 20;
/** 32 bits magic, 16 flags, 16 type, 64 cookie, 64 offset of the request, 64 payload length. */
export const EXTENDED_CHUNK_HEADER_BYTES = 32;
/** What precedes the data in the payload of an OFFSET_DATA chunk. */
export const OFFSET_DATA_PREFIX_BYTES = 8;
/** Payload of an OFFSET_HOLE chunk. */
export const OFFSET_HOLE_PAYLOAD_BYTES = 12;
/** What precedes the descriptors in the payload of a BLOCK_STATUS chunk. */
export const BLOCK_STATUS_PREFIX_BYTES = 4;
export const BLOCK_DESCRIPTOR_BYTES = 8;
/** The same of BLOCK_STATUS_EXT, which has a count and 64-bit fields. */
export const EXTENDED_STATUS_PREFIX_BYTES = 8;
export const EXTENDED_DESCRIPTOR_BYTES = 16;
/** What precedes the message in the payload of an error chunk. */
export const ERROR_PREFIX_BYTES = 6;

export interface ChunkHeader extends Cookie {
  readonly flags: number;
  readonly type: number;
  /** Of the payload that follows; in an extended header UINT64_TOO_LARGE where a number can't hold it. */
  readonly lengthBytes: number;
}

export interface ExtendedChunkHeader extends ChunkHeader {
  /** The request's own, repeated. */
  readonly offset: number;
}

/** How long the headers of the chunks that answer this request are. */
export function chunkHeaderBytes(target: ReplyTarget): number {
  return target.extended === true ? EXTENDED_CHUNK_HEADER_BYTES : CHUNK_HEADER_BYTES;
}

/** Writes chunkHeaderBytes(). */
export function writeChunkHeader(
  into: Buffer,
  at: number,
  target: ReplyTarget,
  flags: number,
  type: number,
  lengthBytes: number,
): void {
  const extended = target.extended === true;
  into.writeUInt32BE(extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC, at);
  into.writeUInt16BE(flags, at + 4);
  into.writeUInt16BE(type, at + 6);
  into.writeUInt32BE(target.cookieHigh, at + 8);
  into.writeUInt32BE(target.cookieLow, at + 12);
  if (extended) {
    into.writeUInt32BE(target.offsetHigh ?? 0, at + 16);
    into.writeUInt32BE(target.offsetLow ?? 0, at + 20);
    writeUint64(into, at + 24, lengthBytes);
  } else {
    into.writeUInt32BE(lengthBytes, at + 16);
  }
}

/** @throws ProtocolError bad-reply-magic */
export function readChunkHeader(from: Buffer, at: number): ChunkHeader {
  if (from.readUInt32BE(at) !== STRUCTURED_REPLY_MAGIC) {
    throw new ProtocolError("bad-reply-magic", "a structured reply starts with a wrong magic");
  }
  return {
    flags: from.readUInt16BE(at + 4),
    type: from.readUInt16BE(at + 6),
    cookieHigh: from.readUInt32BE(at + 8),
    cookieLow: from.readUInt32BE(at + 12),
    lengthBytes: from.readUInt32BE(at + 16),
  };
}

/** @throws ProtocolError bad-reply-magic */
export function readExtendedChunkHeader(from: Buffer, at: number): ExtendedChunkHeader {
  if (from.readUInt32BE(at) !== EXTENDED_REPLY_MAGIC) {
    throw new ProtocolError("bad-reply-magic", "an extended reply starts with a wrong magic");
  }
  return {
    flags: from.readUInt16BE(at + 4),
    type: from.readUInt16BE(at + 6),
    cookieHigh: from.readUInt32BE(at + 8),
    cookieLow: from.readUInt32BE(at + 12),
    offset: readUint64(from, at + 16),
    lengthBytes: readUint64(from, at + 24),
  };
}

/** Writes chunkHeaderBytes() + OFFSET_DATA_PREFIX_BYTES; `dataBytes` bytes of content go after them. */
export function writeOffsetDataHeader(
  into: Buffer,
  at: number,
  target: ReplyTarget,
  flags: number,
  offset: number,
  dataBytes: number,
): void {
  writeChunkHeader(into, at, target, flags, ChunkType.OffsetData, OFFSET_DATA_PREFIX_BYTES + dataBytes);
  writeUint64(into, at + chunkHeaderBytes(target), offset);
}

/**
 * Reads the prefix of an OFFSET_DATA payload of `payloadBytes` in all; the data follow it.
 * @throws ProtocolError malformed-chunk
 */
export function readOffsetDataPrefix(
  from: Buffer,
  at: number,
  payloadBytes: number,
): { offset: number; dataBytes: number } {
  requireWellFormed(payloadBytes > OFFSET_DATA_PREFIX_BYTES, "OFFSET_DATA");
  return { offset: readUint64(from, at), dataBytes: payloadBytes - OFFSET_DATA_PREFIX_BYTES };
}

/** A whole OFFSET_HOLE chunk. */
export function encodeOffsetHoleChunk(
  target: ReplyTarget,
  flags: number,
  offset: number,
  holeBytes: number,
): Buffer {
  const headerBytes = chunkHeaderBytes(target);
  const bytes = Buffer.allocUnsafe(headerBytes + OFFSET_HOLE_PAYLOAD_BYTES);
  writeChunkHeader(bytes, 0, target, flags, ChunkType.OffsetHole, OFFSET_HOLE_PAYLOAD_BYTES);
  writeUint64(bytes, headerBytes, offset);
  bytes.writeUInt32BE(holeBytes, headerBytes + 8);
  return bytes;
}

/** @throws ProtocolError malformed-chunk */
export function decodeOffsetHole(payload: Buffer): { offset: number; holeBytes: number } {
  requireWellFormed(
    payload.length === OFFSET_HOLE_PAYLOAD_BYTES && payload.readUInt32BE(8) > 0,
    "OFFSET_HOLE",
  );
  return { offset: readUint64(payload, 0), holeBytes: payload.readUInt32BE(8) };
}

/**
 * One run of bytes of a BLOCK_STATUS chunk; what `status` means is up to the metadata context.
 * Received in a BLOCK_STATUS_EXT, either is UINT64_TOO_LARGE where a number can't hold it.
 */
export interface BlockDescriptor {
  readonly lengthBytes: number;
  /** 32 bits; of contexts outside of `base:` 64, with extended headers. */
  readonly status: number;
}

/** A whole BLOCK_STATUS or BLOCK_STATUS_EXT chunk, with one descriptor or more. */
export function encodeBlockStatusChunk(
  target: ReplyTarget,
  flags: number,
  contextId: number,
  descriptors: readonly BlockDescriptor[],
): Buffer {
  if (target.extended === true) return encodeExtendedStatus(target, flags, contextId, descriptors);
  const payloadBytes = BLOCK_STATUS_PREFIX_BYTES + BLOCK_DESCRIPTOR_BYTES * descriptors.length;
  const bytes = Buffer.allocUnsafe(CHUNK_HEADER_BYTES + payloadBytes);
  writeChunkHeader(bytes, 0, target, flags, ChunkType.BlockStatus, payloadBytes);
  let at = bytes.writeUInt32BE(contextId, CHUNK_HEADER_BYTES);
  for (const descriptor of descriptors) {
    at = bytes.writeUInt32BE(descriptor.lengthBytes, at);
    at = bytes.writeUInt32BE(descriptor.status, at);
  }
  return bytes;
}

/** @throws ProtocolError malformed-chunk */
export function decodeBlockStatus(payload: Buffer): { contextId: number; descriptors: BlockDescriptor[] } {
  const descriptorBytes = payload.length - BLOCK_STATUS_PREFIX_BYTES;
  requireWellFormed(descriptorBytes > 0 && descriptorBytes % BLOCK_DESCRIPTOR_BYTES === 0, "BLOCK_STATUS");
  const descriptors: BlockDescriptor[] = [];
  for (let at = BLOCK_STATUS_PREFIX_BYTES; at < payload.length; at += BLOCK_DESCRIPTOR_BYTES) {
    const lengthBytes = payload.readUInt32BE(at);
    requireWellFormed(lengthBytes > 0, "BLOCK_STATUS");
    descriptors.push({ lengthBytes, status: payload.readUInt32BE(at + 4) });
  }
  return { contextId: payload.readUInt32BE(0), descriptors };
}

/**
 * As decodeBlockStatus() for BLOCK_STATUS_EXT.
 * @throws ProtocolError malformed-chunk
 */
export function decodeExtendedBlockStatus(payload: Buffer): {
  contextId: number;
  descriptors: BlockDescriptor[];
} {
  const descriptorBytes = payload.length - EXTENDED_STATUS_PREFIX_BYTES;
  requireWellFormed(
    descriptorBytes > 0 && descriptorBytes === payload.readUInt32BE(4) * EXTENDED_DESCRIPTOR_BYTES,
    "BLOCK_STATUS_EXT",
  );
  const descriptors: BlockDescriptor[] = [];
  for (let at = EXTENDED_STATUS_PREFIX_BYTES; at < payload.length; at += EXTENDED_DESCRIPTOR_BYTES) {
    const lengthBytes = readUint64(payload, at);
    requireWellFormed(lengthBytes > 0, "BLOCK_STATUS_EXT");
    descriptors.push({ lengthBytes, status: readUint64(payload, at + 8) });
  }
  return { contextId: payload.readUInt32BE(0), descriptors };
}

/** A whole ERROR chunk. */
export function encodeErrorChunk(
  target: ReplyTarget,
  flags: number,
  errorNumber: number,
  message: string,
): Buffer {
  return encodeError(target, flags, ChunkType.Error, errorNumber, message, 0);
}

/** A whole ERROR_OFFSET chunk. */
export function encodeErrorOffsetChunk(
  target: ReplyTarget,
  flags: number,
  errorNumber: number,
  message: string,
  offset: number,
): Buffer {
  const bytes = encodeError(target, flags, ChunkType.ErrorOffset, errorNumber, message, 8);
  writeUint64(bytes, bytes.length - 8, offset);
  return bytes;
}

export interface ErrorChunk {
  readonly errorNumber: number;
  /** Empty when the server sent none. */
  readonly message: string;
  /** Of ERROR_OFFSET, otherwise null. */
  readonly offset: number | null;
}

/**
 * Reads the payload of any error chunk, `type` of which we need not know.
 * @throws ProtocolError malformed-chunk
 */
export function decodeErrorChunk(type: number, payload: Buffer): ErrorChunk {
  requireWellFormed(payload.length >= ERROR_PREFIX_BYTES && payload.readUInt32BE(0) !== 0, "ERROR");
  const messageEnd = ERROR_PREFIX_BYTES + payload.readUInt16BE(4);
  const tailBytes = payload.length - messageEnd;
  requireWellFormed(tailBytes >= 0, "ERROR");
  requireWellFormed(type !== ChunkType.Error || tailBytes === 0, "ERROR");
  requireWellFormed(type !== ChunkType.ErrorOffset || tailBytes === 8, "ERROR_OFFSET");
  return {
    errorNumber: payload.readUInt32BE(0),
    message: decodeString(payload.subarray(ERROR_PREFIX_BYTES, messageEnd)),
    offset: type === ChunkType.ErrorOffset ? readUint64(payload, messageEnd) : null,
  };
}

function encodeExtendedStatus(
  target: ReplyTarget,
  flags: number,
  contextId: number,
  descriptors: readonly BlockDescriptor[],
): Buffer {
  const payloadBytes = EXTENDED_STATUS_PREFIX_BYTES + EXTENDED_DESCRIPTOR_BYTES * descriptors.length;
  const bytes = Buffer.allocUnsafe(EXTENDED_CHUNK_HEADER_BYTES + payloadBytes);
  writeChunkHeader(bytes, 0, target, flags, ChunkType.BlockStatusExt, payloadBytes);
  let at = bytes.writeUInt32BE(contextId, EXTENDED_CHUNK_HEADER_BYTES);
  at = bytes.writeUInt32BE(descriptors.length, at);
  for (const descriptor of descriptors) {
    writeUint64(bytes, at, descriptor.lengthBytes);
    writeUint64(bytes, at + 8, descriptor.status);
    at += EXTENDED_DESCRIPTOR_BYTES;
  }
  return bytes;
}

function encodeError(
  target: ReplyTarget,
  flags: number,
  type: number,
  errorNumber: number,
  message: string,
  tailBytes: number,
): Buffer {
  const text = encodeMessage(message);
  const payloadBytes = ERROR_PREFIX_BYTES + text.length + tailBytes;
  const headerBytes = chunkHeaderBytes(target);
  const bytes = Buffer.allocUnsafe(headerBytes + payloadBytes);
  writeChunkHeader(bytes, 0, target, flags, type, payloadBytes);
  bytes.writeUInt32BE(errorNumber, headerBytes);
  bytes.writeUInt16BE(text.length, headerBytes + 4);
  text.copy(bytes, headerBytes + ERROR_PREFIX_BYTES);
  return bytes;
}

function requireWellFormed(right: boolean, what: string): void {
  if (!right) throw new ProtocolError("malformed-chunk", `the payload of an ${what} chunk is malformed`);
}
