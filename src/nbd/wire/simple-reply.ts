/**
 * The header of a simple reply, server to client; the data of a successful READ follows it.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#simple-reply-message
 */
import { ProtocolError } from "../../errors.js";
import { SIMPLE_REPLY_MAGIC } from "./constants.js";
import type { Cookie } from "./request.js";

/** 32 bits magic, 32 error, 64 cookie. */
export const SIMPLE_REPLY_HEADER_BYTES = 16;

export interface SimpleReplyHeader extends Cookie {
  /** As errorNumberOf() gives it; 0 is success. */
  readonly errorNumber: number;
}

/** Writes SIMPLE_REPLY_HEADER_BYTES. */
export function writeSimpleReplyHeader(into: Buffer, at: number, cookie: Cookie, errorNumber: number): void {
  into.writeUInt32BE(SIMPLE_REPLY_MAGIC, at);
  into.writeUInt32BE(errorNumber, at + 4);
  into.writeUInt32BE(cookie.cookieHigh, at + 8);
  into.writeUInt32BE(cookie.cookieLow, at + 12);
}

/** @throws ProtocolError bad-reply-magic */
export function readSimpleReplyHeader(from: Buffer, at: number): SimpleReplyHeader {
  if (from.readUInt32BE(at) !== SIMPLE_REPLY_MAGIC) {
    throw new ProtocolError("bad-reply-magic", "a reply starts with a wrong magic");
  }
  return {
    errorNumber: from.readUInt32BE(at + 4),
    cookieHigh: from.readUInt32BE(at + 8),
    cookieLow: from.readUInt32BE(at + 12),
  };
}
