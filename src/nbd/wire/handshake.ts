/**
 * The messages before and after option haggling: greeting, client flags, reply to NBD_OPT_EXPORT_NAME.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#newstyle-negotiation
 */
import { ProtocolError } from "../../errors.js";
import {
  INIT_MAGIC_HIGH,
  INIT_MAGIC_LOW,
  OLDSTYLE_MAGIC_HIGH,
  OLDSTYLE_MAGIC_LOW,
  OPTION_MAGIC_HIGH,
  OPTION_MAGIC_LOW,
} from "./constants.js";
import { readUint64, writeUint64 } from "./uint64.js";

/** NBDMAGIC, IHAVEOPT, 16 bits of handshake flags. */
export const GREETING_BYTES = 18;
/** 32 bits. */
export const CLIENT_FLAGS_BYTES = 4;
/** Size and transmission flags; 124 zeroes follow unless NO_ZEROES was negotiated. */
export const EXPORT_NAME_REPLY_BYTES = 10;
export const EXPORT_NAME_PADDING_BYTES = 124;

export function encodeGreeting(handshakeFlags: number): Buffer {
  const bytes = Buffer.alloc(GREETING_BYTES);
  bytes.writeUInt32BE(INIT_MAGIC_HIGH, 0);
  bytes.writeUInt32BE(INIT_MAGIC_LOW, 4);
  bytes.writeUInt32BE(OPTION_MAGIC_HIGH, 8);
  bytes.writeUInt32BE(OPTION_MAGIC_LOW, 12);
  bytes.writeUInt16BE(handshakeFlags, 16);
  return bytes;
}

/**
 * Returns the handshake flags of a greeting of GREETING_BYTES.
 * @throws ProtocolError not-nbd, oldstyle-server
 */
export function decodeGreeting(bytes: Buffer): number {
  if (bytes.readUInt32BE(0) !== INIT_MAGIC_HIGH || bytes.readUInt32BE(4) !== INIT_MAGIC_LOW) {
    throw new ProtocolError("not-nbd", "the peer is not an NBD server: its first bytes are not NBDMAGIC");
  }
  const high = bytes.readUInt32BE(8);
  const low = bytes.readUInt32BE(12);
  if (high === OLDSTYLE_MAGIC_HIGH && low === OLDSTYLE_MAGIC_LOW) {
    throw new ProtocolError("oldstyle-server", "the server speaks the oldstyle protocol only");
  }
  if (high !== OPTION_MAGIC_HIGH || low !== OPTION_MAGIC_LOW) {
    throw new ProtocolError("not-nbd", "the peer is not an NBD server: its second magic is not IHAVEOPT");
  }
  return bytes.readUInt16BE(16);
}

export function encodeClientFlags(clientFlags: number): Buffer {
  const bytes = Buffer.alloc(CLIENT_FLAGS_BYTES);
  bytes.writeUInt32BE(clientFlags, 0);
  return bytes;
}

export function decodeClientFlags(bytes: Buffer): number {
  return bytes.readUInt32BE(0);
}

/** What NBD_OPT_EXPORT_NAME and NBD_INFO_EXPORT tell of an export. */
export interface ExportGeometry {
  /** UINT64_TOO_LARGE where a number can't hold it. */
  readonly sizeBytes: number;
  /** Any combination of `TransmissionFlag` values. */
  readonly transmissionFlags: number;
}

/** With the 124 zeroes unless `noZeroes`. */
export function encodeExportNameReply(geometry: ExportGeometry, noZeroes: boolean): Buffer {
  const bytes = Buffer.alloc(EXPORT_NAME_REPLY_BYTES + (noZeroes ? 0 : EXPORT_NAME_PADDING_BYTES));
  writeUint64(bytes, 0, geometry.sizeBytes);
  bytes.writeUInt16BE(geometry.transmissionFlags, 8);
  return bytes;
}

/** Reads the first EXPORT_NAME_REPLY_BYTES; the padding is the caller's to skip. */
export function decodeExportNameReply(bytes: Buffer): ExportGeometry {
  return { sizeBytes: readUint64(bytes, 0), transmissionFlags: bytes.readUInt16BE(8) };
}
