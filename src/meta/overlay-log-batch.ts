/**
 * Records on their way into an overlay log: laid out as they will be in the file, in few buffers.
 *
 * Short content is copied at once, so that its buffer is free again before the batch is written; long content is lent
 * until then. Headers are filled in last, for they tell up to where the log is durable when the batch is written.
 *
 * Invariants:
 * - The pieces, one after the other, are the bytes of the log from `startPosition` on; they end where a page ends.
 * - If the batch starts where a page does, each piece is whole pages in the file and in memory: O_DIRECT takes it.
 * - Every buffer of the pool is given back by release(), after the last use of the pieces.
 */
import assert from "node:assert/strict";
import { isPageAligned, payloadBuffers } from "../block/buffer-pool.js";
import { ZEROES } from "../block/zeroes.js";
import { Deferred } from "../deferred.js";
import {
  contentChecksum,
  type Described,
  type LogIdentity,
  type LogRecord,
  PAGE_BYTES,
  paddingAfter,
  RECORD_HEADER_BYTES,
  writeRecordHeader,
} from "./overlay-log-format.js";

/** Content up to here is copied: 5 µs, less than what a piece of its own costs. */
export const COPIED_MAXIMUM_BYTES = 64 * 1024;
/** One of the pool's sizes, whole pages. */
const BUFFER_BYTES = 256 * 1024;

interface PendingHeader {
  readonly buffer: Buffer;
  readonly at: number;
  /** Its content may be changed by now: the checksum is of what was copied, or is lent. */
  readonly record: Described;
  readonly checksum: number;
  readonly sequence: number;
  readonly position: number;
}

export class OverlayLogBatch {
  /** Settles when the records are durable, or can't be. */
  readonly done = new Deferred<void>();
  readonly startPosition: number;
  readonly #identity: LogIdentity;
  readonly #nextSequence: () => number;
  readonly #headers: PendingHeader[] = [];
  readonly #pieces: Buffer[] = [];
  readonly #borrowed: Buffer[] = [];
  #buffer: Buffer | null = null;
  /** The part of #buffer that is not among the pieces yet. */
  #from = 0;
  #to = 0;
  #lengthBytes = 0;
  #isClosed = false;

  /** @param nextSequence gives each record its number, in order of position in the log */
  constructor(startPosition: number, identity: LogIdentity, nextSequence: () => number) {
    this.startPosition = startPosition;
    this.#identity = identity;
    this.#nextSequence = nextSequence;
  }

  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  get endPosition(): number {
    return this.startPosition + this.#lengthBytes;
  }

  /** @returns where in the log the content of the record will be */
  add(record: LogRecord): number {
    assert(!this.#isClosed);
    const { data } = record;
    const isLent = data !== null && isLendable(data);
    // Lent pages become pages of the file: the header has to be the end of the one before.
    if (isLent) this.#padUpTo(PAGE_BYTES - RECORD_HEADER_BYTES);
    this.#addHeader(record, contentChecksum(data, this.#identity));
    const position = this.endPosition;
    if (data !== null) {
      if (isLent) this.#lend(data);
      else this.#copy(data);
      this.#copy(ZEROES.subarray(0, paddingAfter(data.length)));
    }
    return position;
  }

  /** Nothing is added any more; more than once is fine. */
  close(): void {
    if (this.#isClosed) return;
    this.#padUpTo(0);
    this.#cut();
    this.#isClosed = true;
  }

  /** The bytes to write. @param durableBytes up to where the log is durable now */
  finish(durableBytes: number): readonly Buffer[] {
    assert(this.#isClosed);
    for (const { buffer, at, record, checksum, sequence, position } of this.#headers) {
      const place = { sequence, position, durableBytes };
      writeRecordHeader(buffer, at, record, checksum, this.#identity, place);
    }
    return this.#pieces;
  }

  release(): void {
    for (const buffer of this.#borrowed) payloadBuffers.give(buffer);
    this.#borrowed.length = 0;
  }

  /** Goes on at this place in a page, behind a record that says nothing. */
  #padUpTo(placeInPage: number): void {
    const gapBytes = (placeInPage - this.endPosition) & (PAGE_BYTES - 1);
    if (gapBytes === 0) return;
    const lengthBytes = gapBytes - RECORD_HEADER_BYTES;
    this.#addHeader({ kind: "padding", disk: 0, offset: 0, lengthBytes }, 0);
    this.#copy(ZEROES.subarray(0, lengthBytes));
  }

  #addHeader(record: Described, checksum: number): void {
    const buffer = this.#room();
    const position = this.endPosition;
    this.#headers.push({ buffer, at: this.#to, record, checksum, sequence: this.#nextSequence(), position });
    this.#to += RECORD_HEADER_BYTES;
    this.#lengthBytes += RECORD_HEADER_BYTES;
  }

  #copy(data: Buffer): void {
    for (let done = 0; done < data.length;) {
      const count = data.copy(this.#room(), this.#to, done);
      done += count;
      this.#to += count;
      this.#lengthBytes += count;
    }
  }

  #lend(data: Buffer): void {
    this.#cut();
    this.#pieces.push(data);
    this.#lengthBytes += data.length;
  }

  /** A buffer with room from #to on: for a header at least, since all before is a multiple of its length. */
  #room(): Buffer {
    if (this.#buffer !== null && this.#to < this.#buffer.length) return this.#buffer;
    this.#cut();
    this.#buffer = payloadBuffers.take(BUFFER_BYTES);
    this.#borrowed.push(this.#buffer);
    this.#from = 0;
    this.#to = 0;
    return this.#buffer;
  }

  #cut(): void {
    if (this.#buffer === null || this.#from === this.#to) return;
    this.#pieces.push(this.#buffer.subarray(this.#from, this.#to));
    this.#from = this.#to;
  }
}

/** Whether the content can be written from where it is. */
function isLendable(data: Buffer): boolean {
  return data.length > COPIED_MAXIMUM_BYTES && data.length % PAGE_BYTES === 0 && isPageAligned(data);
}
