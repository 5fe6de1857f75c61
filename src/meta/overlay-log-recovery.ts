/** Reading an overlay log back after a restart: where it ends, and whether what is missing matters. */
import {
  BROKEN_MARK_POSITION,
  contentChecksum,
  damaged,
  decodeFileHeader,
  decodeRecordHeader,
  HEADER_BYTES,
  type LogIdentity,
  MAX_RECORD_BYTES,
  paddingAfter,
  RECORD_ALIGNMENT,
  RECORD_HEADER_BYTES,
  RECORD_MAGIC_BYTES,
  type RecordKind,
} from "./overlay-log-format.js";
import type { StateFile } from "./state-directory.js";

const SCAN_CHUNK_BYTES = 1024 * 1024;

/**
 * A log's bytes from its beginning to its end, for which the file is asked in long pieces: that of an hour has millions of records, and a
 * turn of the thread pool for each would be minutes.
 */
export class ForwardReader {
  readonly #file: StateFile;
  readonly #piece = Buffer.allocUnsafe(SCAN_CHUNK_BYTES);
  /** Where in the file the piece is from. */
  #start = 0;
  #lengthBytes = 0;

  constructor(file: StateFile) {
    this.#file = file;
  }

  get sizeBytes(): number {
    return this.#file.sizeBytes;
  }

  /** @param lengthBytes there are so many @returns lent until the next call */
  async read(position: number, lengthBytes: number): Promise<Buffer> {
    if (lengthBytes > SCAN_CHUNK_BYTES) {
      const whole = Buffer.allocUnsafe(lengthBytes);
      await this.#file.read(position, whole);
      return whole;
    }
    if (position < this.#start || position + lengthBytes > this.#start + this.#lengthBytes) {
      this.#lengthBytes = 0;
      const length = Math.min(SCAN_CHUNK_BYTES, this.#file.sizeBytes - position);
      await this.#file.read(position, this.#piece.subarray(0, length));
      this.#start = position;
      this.#lengthBytes = length;
    }
    return this.#piece.subarray(position - this.#start, position - this.#start + lengthBytes);
  }
}

/** A record found by recovery; `position` is where its content starts in the log. */
export interface RecoveredRecord {
  readonly disk: number;
  readonly kind: RecordKind;
  readonly offset: number;
  readonly lengthBytes: number;
  readonly position: number;
}

/** @throws MetadataError as decodeFileHeader(), or "damaged" for a file shorter than its header */
export async function readFileHeader(
  file: StateFile,
  epoch: number,
): Promise<{ id: Buffer; broken: boolean }> {
  if (file.sizeBytes < HEADER_BYTES) {
    throw damaged(file.path, `it is ${file.sizeBytes} bytes long, shorter than its header`);
  }
  const header = Buffer.alloc(HEADER_BYTES);
  await file.read(0, header);
  return decodeFileHeader(header, file.path, epoch);
}

/**
 * Whether the making of the log was cut off by a crash. Nothing was ever appended then, since that waits for the
 * header to be durable; the header's sector is there as a whole or not at all.
 */
export async function isUnborn(file: StateFile): Promise<boolean> {
  if (file.sizeBytes < HEADER_BYTES) return true;
  if (file.sizeBytes > HEADER_BYTES) return false;
  const sector = Buffer.alloc(BROKEN_MARK_POSITION);
  await file.read(0, sector);
  return sector.every((byte) => byte === 0);
}

/**
 * The record at `position`, or null where the log ends: its checksums and position must fit, and its sequence number
 * must be at least `sequence`. Padding has no `record`; `data` is the content, if there is any, lent until `file` is read again.
 */
export async function readRecord(
  file: ForwardReader,
  position: number,
  identity: LogIdentity,
  sequence: number,
): Promise<{
  readonly record: RecoveredRecord | null;
  readonly data: Buffer | null;
  readonly sequence: number;
  readonly endPosition: number;
} | null> {
  if (position + RECORD_HEADER_BYTES > file.sizeBytes) return null;
  const header = decodeRecordHeader(await file.read(position, RECORD_HEADER_BYTES), position, identity);
  if (header === null || header.sequence < sequence) return null;
  const { disk, kind, offset, lengthBytes } = header;
  const content = position + RECORD_HEADER_BYTES;
  if (kind === "padding") {
    return { record: null, data: null, sequence: header.sequence, endPosition: content + lengthBytes };
  }
  let endPosition = content;
  let data: Buffer | null = null;
  if (kind === "data") {
    if (lengthBytes > MAX_RECORD_BYTES || content + lengthBytes > file.sizeBytes) return null;
    data = await file.read(content, lengthBytes);
    if (contentChecksum(data, identity) !== header.dataChecksum) return null;
    endPosition = content + lengthBytes + paddingAfter(lengthBytes);
  }
  return {
    record: { disk, kind, offset, lengthBytes, position: content },
    data,
    sequence: header.sequence,
    endPosition,
  };
}

/**
 * Tells a torn tail from damage in the middle: if any record behind the first bad byte was appended when that byte
 * was durable already, then it went bad later, and the records there did guard overwrites that have happened.
 * @returns the sequence number to go on with: above that of every record in the tail, so that none of them is taken
 *   for one of the log when it has grown up to there again
 */
export async function inspectTail(
  file: StateFile,
  badPosition: number,
  identity: LogIdentity,
  sequence: number,
): Promise<number> {
  let next = sequence;
  const chunk = Buffer.allocUnsafe(SCAN_CHUNK_BYTES + RECORD_HEADER_BYTES);
  for (let start = badPosition; start + RECORD_HEADER_BYTES <= file.sizeBytes; start += SCAN_CHUNK_BYTES) {
    const bytes = chunk.subarray(0, Math.min(chunk.length, file.sizeBytes - start));
    await file.read(start, bytes);
    for (const at of magicsIn(bytes)) {
      const header = decodeRecordHeader(bytes.subarray(at, at + RECORD_HEADER_BYTES), start + at, identity);
      if (header === null) continue;
      if (header.durableBytes > badPosition) {
        throw damaged(file.path, `bytes from ${badPosition} on are bad although later records are whole`);
      }
      next = Math.max(next, header.sequence + 1);
    }
  }
  return next;
}

/** Where headers may start. A file that was another log before has much behind its end, but next to none of these. */
function* magicsIn(bytes: Buffer): Generator<number> {
  for (
    let at = bytes.indexOf(RECORD_MAGIC_BYTES);
    at !== -1;
    at = bytes.indexOf(RECORD_MAGIC_BYTES, at + 1)
  ) {
    if (at % RECORD_ALIGNMENT === 0 && at + RECORD_HEADER_BYTES <= bytes.length) yield at;
  }
}
