/**
 * Option replies, server to client.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-reply-types
 * NBD_REP_ACK has no data; that of an error is a message for a person.
 */
import { ProtocolError } from "../../errors.js";
import {
  InfoType,
  Option,
  OPTION_REPLY_MAGIC_HIGH,
  OPTION_REPLY_MAGIC_LOW,
  OptionReplyType,
} from "./constants.js";
import type { ExportGeometry } from "./handshake.js";
import { decodeString } from "./strings.js";
import { readUint64, writeUint64 } from "./uint64.js";

/** 64 bits magic, 32 bits option, 32 bits type, 32 bits data length. */
export const OPTION_REPLY_HEADER_BYTES = 20;

export interface OptionReplyHeader {
  /** The option that this answers. */
  readonly option: number;
  readonly type: number;
  readonly lengthBytes: number;
}

export function encodeOptionReply(option: number, type: number, data: Buffer): Buffer {
  const bytes = Buffer.allocUnsafe(OPTION_REPLY_HEADER_BYTES + data.length);
  writeOptionReplyHeader(bytes, 0, { option, type, lengthBytes: data.length });
  data.copy(bytes, OPTION_REPLY_HEADER_BYTES);
  return bytes;
}

/** @returns where the reply's data begin */
function writeOptionReplyHeader(bytes: Buffer, at: number, reply: OptionReplyHeader): number {
  bytes.writeUInt32BE(OPTION_REPLY_MAGIC_HIGH, at);
  bytes.writeUInt32BE(OPTION_REPLY_MAGIC_LOW, at + 4);
  bytes.writeUInt32BE(reply.option, at + 8);
  bytes.writeUInt32BE(reply.type, at + 12);
  return bytes.writeUInt32BE(reply.lengthBytes, at + 16);
}

/** @throws ProtocolError bad-option-reply-magic */
export function decodeOptionReplyHeader(bytes: Buffer): OptionReplyHeader {
  if (bytes.readUInt32BE(0) !== OPTION_REPLY_MAGIC_HIGH || bytes.readUInt32BE(4) !== OPTION_REPLY_MAGIC_LOW) {
    throw new ProtocolError("bad-option-reply-magic", "an option reply starts with a wrong magic");
  }
  return {
    option: bytes.readUInt32BE(8),
    type: bytes.readUInt32BE(12),
    lengthBytes: bytes.readUInt32BE(16),
  };
}

/** Data of NBD_REP_SERVER. */
export interface ServerEntry {
  readonly exportName: string;
  /** Empty when the server has none to tell. */
  readonly description: string;
}

export function encodeServerEntry(entry: ServerEntry): Buffer {
  const bytes = Buffer.allocUnsafe(lengthOf(entry));
  writeServerEntry(bytes, 0, entry);
  return bytes;
}

/** The whole answer to NBD_OPT_LIST in one piece: NBD_REP_SERVER for each entry, then NBD_REP_ACK. */
export function encodeList(entries: readonly ServerEntry[]): Buffer {
  const dataBytes = entries.reduce((sum, entry) => sum + lengthOf(entry), 0);
  const bytes = Buffer.allocUnsafe((entries.length + 1) * OPTION_REPLY_HEADER_BYTES + dataBytes);
  const option = Option.List;
  let at = 0;
  for (const entry of entries) {
    const reply = { option, type: OptionReplyType.Server, lengthBytes: lengthOf(entry) };
    at = writeServerEntry(bytes, writeOptionReplyHeader(bytes, at, reply), entry);
  }
  writeOptionReplyHeader(bytes, at, { option, type: OptionReplyType.Ack, lengthBytes: 0 });
  return bytes;
}

function lengthOf({ exportName, description }: ServerEntry): number {
  return 4 + Buffer.byteLength(exportName) + Buffer.byteLength(description);
}

/** @returns where it ends */
function writeServerEntry(bytes: Buffer, at: number, { exportName, description }: ServerEntry): number {
  const nameBytes = bytes.write(exportName, at + 4);
  bytes.writeUInt32BE(nameBytes, at);
  return at + 4 + nameBytes + bytes.write(description, at + 4 + nameBytes);
}

/** @throws ProtocolError malformed-option-reply, or one of decodeString() */
export function decodeServerEntry(data: Buffer): ServerEntry {
  requireLength(data.length >= 4 && data.length - 4 >= data.readUInt32BE(0), "NBD_REP_SERVER");
  const nameEnd = 4 + data.readUInt32BE(0);
  return {
    exportName: decodeString(data.subarray(4, nameEnd)),
    description: decodeString(data.subarray(nameEnd)),
  };
}

/** Data of NBD_REP_INFO; `unknown` are types that a client has to ignore. */
export type InfoItem =
  | ({ readonly kind: "export" } & ExportGeometry)
  | { readonly kind: "name"; readonly name: string }
  | { readonly kind: "description"; readonly description: string }
  | {
      readonly kind: "block-size";
      readonly minimumBytes: number;
      readonly preferredBytes: number;
      readonly maximumBytes: number;
    }
  | { readonly kind: "unknown"; readonly type: number };

/** `unknown` is for reading only, therefore not accepted here. */
export function encodeInfoItem(item: Exclude<InfoItem, { kind: "unknown" }>): Buffer {
  switch (item.kind) {
    case "export": {
      const bytes = Buffer.allocUnsafe(12);
      bytes.writeUInt16BE(InfoType.Export, 0);
      writeUint64(bytes, 2, item.sizeBytes);
      bytes.writeUInt16BE(item.transmissionFlags, 10);
      return bytes;
    }
    case "name":
      return encodeInfoText(InfoType.Name, item.name);
    case "description":
      return encodeInfoText(InfoType.Description, item.description);
    case "block-size": {
      const bytes = Buffer.allocUnsafe(14);
      bytes.writeUInt16BE(InfoType.BlockSize, 0);
      bytes.writeUInt32BE(item.minimumBytes, 2);
      bytes.writeUInt32BE(item.preferredBytes, 6);
      bytes.writeUInt32BE(item.maximumBytes, 10);
      return bytes;
    }
  }
}

/** @throws ProtocolError malformed-option-reply, or one of decodeString() */
export function decodeInfoItem(data: Buffer): InfoItem {
  requireLength(data.length >= 2, "NBD_REP_INFO");
  const type = data.readUInt16BE(0);
  if (type === InfoType.Export) {
    requireLength(data.length === 12, "NBD_INFO_EXPORT");
    return { kind: "export", sizeBytes: readUint64(data, 2), transmissionFlags: data.readUInt16BE(10) };
  }
  if (type === InfoType.Name) return { kind: "name", name: decodeString(data.subarray(2)) };
  if (type === InfoType.Description)
    return { kind: "description", description: decodeString(data.subarray(2)) };
  if (type === InfoType.BlockSize) {
    requireLength(data.length === 14, "NBD_INFO_BLOCK_SIZE");
    return {
      kind: "block-size",
      minimumBytes: data.readUInt32BE(2),
      preferredBytes: data.readUInt32BE(6),
      maximumBytes: data.readUInt32BE(10),
    };
  }
  return { kind: "unknown", type };
}

/** Data of NBD_REP_META_CONTEXT. */
export interface MetaContext {
  /** Names the context in replies to NBD_CMD_BLOCK_STATUS; 0 in answers to LIST. */
  readonly id: number;
  readonly name: string;
}

export function encodeMetaContext(context: MetaContext): Buffer {
  const name = Buffer.from(context.name, "utf8");
  const bytes = Buffer.allocUnsafe(4 + name.length);
  bytes.writeUInt32BE(context.id, 0);
  name.copy(bytes, 4);
  return bytes;
}

/** @throws ProtocolError malformed-option-reply, or one of decodeString() */
export function decodeMetaContext(data: Buffer): MetaContext {
  requireLength(data.length >= 4, "NBD_REP_META_CONTEXT");
  return { id: data.readUInt32BE(0), name: decodeString(data.subarray(4)) };
}

function encodeInfoText(type: number, text: string): Buffer {
  const textBytes = Buffer.from(text, "utf8");
  const bytes = Buffer.allocUnsafe(2 + textBytes.length);
  bytes.writeUInt16BE(type, 0);
  textBytes.copy(bytes, 2);
  return bytes;
}

function requireLength(right: boolean, what: string): void {
  if (!right) throw new ProtocolError("malformed-option-reply", `${what} has a wrong length`);
}
