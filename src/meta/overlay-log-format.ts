/**
 * The bytes of an overlay log: file header, record headers, checksums. No I/O here.
 * docs/formats.md describes the same for people; change both together, and the version with them.
 */
import { crc32 } from "node:zlib";
import { MetadataError } from "../errors.js";
import { otherVersion } from "./other-version.js";

const FILE_MAGIC = Buffer.from("NBDREPLG");
const FORMAT_VERSION = 2;
export const RECORD_MAGIC_BYTES = Buffer.from("RLOG");
const RECORD_MAGIC = RECORD_MAGIC_BYTES.readUInt32BE();
export const HEADER_BYTES = 4096;
export const RECORD_HEADER_BYTES = 64;
/** Where a log says that its before-images are incomplete: a sector of its own, so that a torn write harms nothing else. */
export const BROKEN_MARK_POSITION = 512;
export const BROKEN_MARK = Buffer.from("BROKEN\n\0");
/** The longest content of one record; recovery and scanning allocate no more. */
export const MAX_RECORD_BYTES = 32 * 1024 * 1024;
/** Of records: a header never lies across two pages. */
export const RECORD_ALIGNMENT = 64;
/** Of batches, and of long content: what O_DIRECT demands on every disk that we know. */
export const PAGE_BYTES = 4096;

/** `data`: the content follows; `zero`: it reads as zeroes; `mapped`: it is in the overlay's data file, at the same offset. */
export type RecordKind = "data" | "zero" | "mapped";
/** `padding`: says nothing; so many bytes after it count for nothing. */
type StoredKind = RecordKind | "padding";
const KIND_CODES: Record<StoredKind, number> = { data: 1, zero: 2, mapped: 3, padding: 4 };
const KINDS: readonly (StoredKind | undefined)[] = [undefined, "data", "zero", "mapped", "padding"];

export interface LogRecord {
  /** Index of the disk in the node's metadata. */
  readonly disk: number;
  readonly kind: RecordKind;
  readonly offset: number;
  readonly lengthBytes: number;
  /** Content, for `data` only. */
  readonly data: Buffer | null;
}

export function paddingAfter(lengthBytes: number): number {
  return -lengthBytes & (RECORD_ALIGNMENT - 1);
}

/** What the records of a log have in common, and those of no other. */
export interface LogIdentity {
  /** Of the checksums. */
  readonly seed: number;
  readonly epoch: number;
}

export function identityOf(id: Buffer, epoch: number): LogIdentity {
  const epochBytes = Buffer.alloc(8);
  writeInteger(epochBytes, epoch, 0);
  return { seed: crc32(epochBytes, crc32(id)), epoch };
}

export function encodeFileHeader(id: Buffer, epoch: number): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  FILE_MAGIC.copy(header, 0);
  header.writeUInt32BE(FORMAT_VERSION, 8);
  id.copy(header, 16);
  writeInteger(header, epoch, 32);
  header.writeUInt32BE(crc32(header.subarray(0, 40)), 40);
  return header;
}

/**
 * Checks a file header.
 * @param path names the file in errors
 * @throws MetadataError "foreign", "version" or "damaged"
 */
export function decodeFileHeader(
  header: Buffer,
  path: string,
  epoch: number,
): { id: Buffer; broken: boolean } {
  if (!header.subarray(0, 8).equals(FILE_MAGIC)) {
    throw new MetadataError("foreign", `${path} is not an overlay log of nbd-replication`);
  }
  const version = header.readUInt32BE(8);
  if (version !== FORMAT_VERSION) throw otherVersion(path, version, FORMAT_VERSION);
  if (header.readUInt32BE(40) !== crc32(header.subarray(0, 40)))
    throw damaged(path, "its header fails its checksum");
  const headerEpoch = readInteger(header, 32);
  if (headerEpoch !== epoch) {
    throw damaged(path, `it is of epoch ${headerEpoch}, not of epoch ${epoch} as metadata.json says`);
  }
  const mark = header.subarray(BROKEN_MARK_POSITION, BROKEN_MARK_POSITION + BROKEN_MARK.length);
  // Any trace of the mark counts: a torn one was on its way because an image was lost.
  const broken = mark.some((byte) => byte !== 0);
  return { id: Buffer.from(header.subarray(16, 32)), broken };
}

/** What a record's header says of it. */
export interface Described {
  readonly kind: StoredKind;
  readonly disk: number;
  readonly offset: number;
  readonly lengthBytes: number;
}

/** Writes the header of a record into `into`, from `at` on. @param checksum contentChecksum() of its content */
export function writeRecordHeader(
  into: Buffer,
  at: number,
  record: Described,
  checksum: number,
  identity: LogIdentity,
  place: { sequence: number; position: number; durableBytes: number },
): void {
  into.writeUInt32BE(RECORD_MAGIC, at);
  into.writeUInt32BE(checksum, at + 8);
  into.writeUInt16BE(record.disk, at + 12);
  into.writeUInt16BE(KIND_CODES[record.kind], at + 14);
  writeInteger(into, place.sequence, at + 16);
  writeInteger(into, record.offset, at + 24);
  writeInteger(into, record.lengthBytes, at + 32);
  writeInteger(into, place.durableBytes, at + 40);
  writeInteger(into, place.position, at + 48);
  writeInteger(into, identity.epoch, at + 56);
  into.writeUInt32BE(crc32(into.subarray(at + 8, at + RECORD_HEADER_BYTES), identity.seed), at + 4);
}

export function contentChecksum(data: Buffer | null, { seed }: LogIdentity): number {
  return data === null ? 0 : crc32(data, seed);
}

export interface RecordHeader extends Described {
  readonly sequence: number;
  readonly durableBytes: number;
  readonly dataChecksum: number;
}

/** null unless the bytes are a whole header of this log that was written for this very position. */
export function decodeRecordHeader(
  bytes: Buffer,
  position: number,
  identity: LogIdentity,
): RecordHeader | null {
  if (bytes.readUInt32BE(0) !== RECORD_MAGIC) return null;
  if (bytes.readUInt32BE(4) !== crc32(bytes.subarray(8, RECORD_HEADER_BYTES), identity.seed)) return null;
  if (readInteger(bytes, 48) !== position || readInteger(bytes, 56) !== identity.epoch) return null;
  const kind = KINDS[bytes.readUInt16BE(14)];
  if (kind === undefined) return null;
  return {
    kind,
    disk: bytes.readUInt16BE(12),
    sequence: readInteger(bytes, 16),
    offset: readInteger(bytes, 24),
    lengthBytes: readInteger(bytes, 32),
    durableBytes: readInteger(bytes, 40),
    dataChecksum: bytes.readUInt32BE(8),
  };
}

export function damaged(path: string, what: string): MetadataError {
  return new MetadataError("damaged", `${path} is damaged: ${what}`);
}

/** A safe integer as 64 bits, big endian; two 32-bit accesses cost a sixth of a BigInt one. */
function writeInteger(buffer: Buffer, value: number, at: number): void {
  buffer.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  buffer.writeUInt32BE(value % 2 ** 32, at + 4);
}

function readInteger(buffer: Buffer, at: number): number {
  return buffer.readUInt32BE(at) * 2 ** 32 + buffer.readUInt32BE(at + 4);
}
