/**
 * The header of a transmission request, client to server; a payload may follow it: that of a WRITE, or with extended
 * headers the filter of a BLOCK_STATUS.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#request-message
 */
import { ProtocolError } from "../../errors.js";
import { EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC } from "./constants.js";
import { readUint64, writeUint64 } from "./uint64.js";

/** 32 bits magic, 16 flags, 16 type, 64 cookie, 64 offset, 32 length. */
export const REQUEST_HEADER_BYTES = 28;
/** The same with a length of 64 bits. */
export const EXTENDED_REQUEST_HEADER_BYTES = 32;
const STATUS_FILTER_PREFIX_BYTES = 8;
const STATUS_FILTER_ID_BYTES = 4;

/** The client's own name for a request, 64 bits that mean nothing to the server. */
export interface Cookie {
  readonly cookieHigh: number;
  readonly cookieLow: number;
}

/** What a reply repeats of its request. */
export interface ReplyTarget extends Cookie {
  /** The request had an extended header, so its reply must; absent for a compact one. */
  readonly extended?: true;
  /** The offset bit by bit, also where no number can hold it; with `extended` only. */
  readonly offsetHigh?: number;
  readonly offsetLow?: number;
}

export interface RequestHeader extends ReplyTarget {
  /** Any combination of `CommandFlag` values, and whatever else the client sent. */
  readonly flags: number;
  /** A `Command` value, or whatever else the client sent. */
  readonly type: number;
  /** UINT64_TOO_LARGE where a number can't hold it. */
  readonly offset: number;
  /** Of an extended header: UINT64_TOO_LARGE where a number can't hold it. */
  readonly lengthBytes: number;
}

/** Writes REQUEST_HEADER_BYTES. */
export function writeRequestHeader(into: Buffer, at: number, request: RequestHeader): void {
  into.writeUInt32BE(REQUEST_MAGIC, at);
  into.writeUInt16BE(request.flags, at + 4);
  into.writeUInt16BE(request.type, at + 6);
  into.writeUInt32BE(request.cookieHigh, at + 8);
  into.writeUInt32BE(request.cookieLow, at + 12);
  writeUint64(into, at + 16, request.offset);
  into.writeUInt32BE(request.lengthBytes, at + 24);
}

/** Writes EXTENDED_REQUEST_HEADER_BYTES; CommandFlag.PayloadLen is the caller's to set where a payload follows. */
export function writeExtendedRequestHeader(into: Buffer, at: number, request: RequestHeader): void {
  into.writeUInt32BE(EXTENDED_REQUEST_MAGIC, at);
  into.writeUInt16BE(request.flags, at + 4);
  into.writeUInt16BE(request.type, at + 6);
  into.writeUInt32BE(request.cookieHigh, at + 8);
  into.writeUInt32BE(request.cookieLow, at + 12);
  writeUint64(into, at + 16, request.offset);
  writeUint64(into, at + 24, request.lengthBytes);
}

/** @throws ProtocolError bad-request-magic */
export function readRequestHeader(from: Buffer, at: number): RequestHeader {
  if (from.readUInt32BE(at) !== REQUEST_MAGIC) {
    throw new ProtocolError("bad-request-magic", "a request starts with a wrong magic");
  }
  return {
    flags: from.readUInt16BE(at + 4),
    type: from.readUInt16BE(at + 6),
    cookieHigh: from.readUInt32BE(at + 8),
    cookieLow: from.readUInt32BE(at + 12),
    offset: readUint64(from, at + 16),
    lengthBytes: from.readUInt32BE(at + 24),
  };
}

/** @throws ProtocolError bad-request-magic */
export function readExtendedRequestHeader(from: Buffer, at: number): RequestHeader {
  if (from.readUInt32BE(at) !== EXTENDED_REQUEST_MAGIC) {
    throw new ProtocolError("bad-request-magic", "an extended request starts with a wrong magic");
  }
  return {
    flags: from.readUInt16BE(at + 4),
    type: from.readUInt16BE(at + 6),
    cookieHigh: from.readUInt32BE(at + 8),
    cookieLow: from.readUInt32BE(at + 12),
    offset: readUint64(from, at + 16),
    lengthBytes: readUint64(from, at + 24),
    extended: true,
    offsetHigh: from.readUInt32BE(at + 16),
    offsetLow: from.readUInt32BE(at + 20),
  };
}

/** What a BLOCK_STATUS may carry: 64 bits of length of the range, 32 bits for each metadata context to tell of. */
export function encodeStatusFilter(lengthBytes: number, contextIds: readonly number[]): Buffer {
  const bytes = Buffer.allocUnsafe(STATUS_FILTER_PREFIX_BYTES + STATUS_FILTER_ID_BYTES * contextIds.length);
  writeUint64(bytes, 0, lengthBytes);
  let at = STATUS_FILTER_PREFIX_BYTES;
  for (const id of contextIds) at = bytes.writeUInt32BE(id, at);
  return bytes;
}

/** Reads such a payload of a length that isStatusFilterLength() approves. */
export function decodeStatusFilter(payload: Buffer): { lengthBytes: number; contextIds: number[] } {
  const contextIds: number[] = [];
  for (let at = STATUS_FILTER_PREFIX_BYTES; at < payload.length; at += STATUS_FILTER_ID_BYTES) {
    contextIds.push(payload.readUInt32BE(at));
  }
  return { lengthBytes: readUint64(payload, 0), contextIds };
}

/** One context at least. */
export function isStatusFilterLength(payloadBytes: number): boolean {
  const idBytes = payloadBytes - STATUS_FILTER_PREFIX_BYTES;
  return idBytes > 0 && idBytes % STATUS_FILTER_ID_BYTES === 0;
}
