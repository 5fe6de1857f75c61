/**
 * Option requests, client to server.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types
 * The data of EXPORT_NAME is the name itself; ABORT, LIST, STARTTLS and STRUCTURED_REPLY have none.
 */
import { ProtocolError } from "../../errors.js";
import { OPTION_MAGIC_HIGH, OPTION_MAGIC_LOW } from "./constants.js";
import { decodeString } from "./strings.js";

/** IHAVEOPT, 32 bits option, 32 bits data length. */
export const OPTION_HEADER_BYTES = 16;

export interface OptionHeader {
  readonly option: number;
  /** Of the data that follows; up to 2^32-1, whatever the client pleases. */
  readonly lengthBytes: number;
}

export function encodeOption(option: number, data: Buffer): Buffer {
  const bytes = Buffer.allocUnsafe(OPTION_HEADER_BYTES + data.length);
  bytes.writeUInt32BE(OPTION_MAGIC_HIGH, 0);
  bytes.writeUInt32BE(OPTION_MAGIC_LOW, 4);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(data.length, 12);
  data.copy(bytes, OPTION_HEADER_BYTES);
  return bytes;
}

/** @throws ProtocolError bad-option-magic */
export function decodeOptionHeader(bytes: Buffer): OptionHeader {
  if (bytes.readUInt32BE(0) !== OPTION_MAGIC_HIGH || bytes.readUInt32BE(4) !== OPTION_MAGIC_LOW) {
    throw new ProtocolError("bad-option-magic", "an option does not start with IHAVEOPT");
  }
  return { option: bytes.readUInt32BE(8), lengthBytes: bytes.readUInt32BE(12) };
}

/** Data of NBD_OPT_INFO and NBD_OPT_GO. */
export interface InfoRequest {
  readonly exportName: string;
  /** `InfoType` values, also unknown ones. */
  readonly infoTypes: readonly number[];
}

export function encodeInfoRequest(request: InfoRequest): Buffer {
  const name = Buffer.from(request.exportName, "utf8");
  const bytes = Buffer.allocUnsafe(4 + name.length + 2 + 2 * request.infoTypes.length);
  let at = writePrefixed(bytes, 0, name);
  at = bytes.writeUInt16BE(request.infoTypes.length, at);
  for (const type of request.infoTypes) at = bytes.writeUInt16BE(type, at);
  return bytes;
}

/** @throws ProtocolError malformed-option, or one of decodeString() */
export function decodeInfoRequest(data: Buffer): InfoRequest {
  const name = readPrefixed(data, 0);
  const countAt = 4 + name.length;
  requireBytes(data, countAt, 2);
  const typesAt = countAt + 2;
  const count = data.readUInt16BE(countAt);
  if (data.length !== typesAt + 2 * count) {
    throw new ProtocolError(
      "malformed-option",
      "the number of information requests disagrees with the length",
    );
  }
  const infoTypes: number[] = [];
  for (let i = 0; i < count; i++) infoTypes.push(data.readUInt16BE(typesAt + 2 * i));
  return { exportName: decodeString(name), infoTypes };
}

/** Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */
export interface MetaContextRequest {
  readonly exportName: string;
  /** For LIST none at all asks for every context. */
  readonly queries: readonly string[];
}

export function encodeMetaContextRequest(request: MetaContextRequest): Buffer {
  const name = Buffer.from(request.exportName, "utf8");
  const queries = request.queries.map((query) => Buffer.from(query, "utf8"));
  const queryBytes = queries.reduce((sum, query) => sum + 4 + query.length, 0);
  const bytes = Buffer.allocUnsafe(4 + name.length + 4 + queryBytes);
  let at = writePrefixed(bytes, 0, name);
  at = bytes.writeUInt32BE(queries.length, at);
  for (const query of queries) at = writePrefixed(bytes, at, query);
  return bytes;
}

/** @throws ProtocolError malformed-option, or one of decodeString() */
export function decodeMetaContextRequest(data: Buffer): MetaContextRequest {
  const name = readPrefixed(data, 0);
  let at = 4 + name.length;
  requireBytes(data, at, 4);
  const count = data.readUInt32BE(at);
  at += 4;
  const queries: string[] = [];
  for (let i = 0; i < count; i++) {
    const query = readPrefixed(data, at);
    at += 4 + query.length;
    queries.push(decodeString(query));
  }
  if (at !== data.length) {
    throw new ProtocolError("malformed-option", `${data.length - at} surplus bytes after the last query`);
  }
  return { exportName: decodeString(name), queries };
}

/** A string with its 32-bit length in front; returns where the next field goes. */
function writePrefixed(into: Buffer, at: number, text: Buffer): number {
  const textAt = into.writeUInt32BE(text.length, at);
  return textAt + text.copy(into, textAt);
}

function readPrefixed(data: Buffer, at: number): Buffer {
  requireBytes(data, at, 4);
  const lengthBytes = data.readUInt32BE(at);
  requireBytes(data, at + 4, lengthBytes);
  return data.subarray(at + 4, at + 4 + lengthBytes);
}

function requireBytes(data: Buffer, at: number, lengthBytes: number): void {
  if (data.length - at < lengthBytes) {
    throw new ProtocolError("malformed-option", "the option's data ends inside a field");
  }
}
