/**
 * Records on their way into an overlay log: laid out as they will be in the file, in few buffers.
 *
 * Short content is copied at once, so that its buffer is free again before the batch is written; long content is lent
 * until then. Headers are filled in last, for they tell up to where the log is durable when the batch is written.
 *
 * Invariants: the pieces, one after the other, are the bytes of the log from `startPosition` on; every buffer of the
 * pool is given back by release(), after the last use of the pieces.
 */
import { payloadBuffers } from "../block/buffer-pool.js";
import { Deferred } from "../deferred.js";
import {
  contentChecksum,
  type LogRecord,
  paddingAfter,
  RECORD_HEADER_BYTES,
  writeRecordHeader,
  ZERO_PADDING,
} from "./overlay-log-format.js";

/** Content up to here is copied: 5 µs, less than what a piece of its own costs. */
const COPIED_MAXIMUM_BYTES = 64 * 1024;
/** One of the pool's sizes; holds copied content with its header. */
const BUFFER_BYTES = 256 * 1024;

interface PendingHeader {
  readonly buffer: Buffer;
  readonly at: number;
  /** Its content may be changed by now: the checksum is of what was copied, or is lent. */
  readonly record: Pick<LogRecord, "disk" | "kind" | "offset" | "lengthBytes">;
  readonly contentChecksum: number;
  readonly sequence: number;
  readonly position: number;
}

export class OverlayLogBatch {
  /** Settles when the records are durable, or can't be. */
  readonly done = new Deferred<void>();
  readonly startPosition: number;
  readonly #headers: PendingHeader[] = [];
  readonly #pieces: Buffer[] = [];
  readonly #borrowed: Buffer[] = [];
  #buffer: Buffer | null = null;
  /** The part of #buffer that is not among the pieces yet. */
  #from = 0;
  #to = 0;
  #lengthBytes = 0;

  readonly #seed: number;

  constructor(startPosition: number, seed: number) {
    this.startPosition = startPosition;
    this.#seed = seed;
  }

  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  /** @returns where in the log the content of the record will be */
  add(record: LogRecord, sequence: number): number {
    const position = this.startPosition + this.#lengthBytes;
    const { data } = record;
    const isCopied = data !== null && data.length <= COPIED_MAXIMUM_BYTES;
    const buffer = this.#room(RECORD_HEADER_BYTES + (isCopied ? data.length + ZERO_PADDING.length : 0));
    const checksum = contentChecksum(data, this.#seed);
    this.#headers.push({ buffer, at: this.#to, record, contentChecksum: checksum, sequence, position });
    this.#to += RECORD_HEADER_BYTES;
    this.#lengthBytes += RECORD_HEADER_BYTES;
    if (data !== null) this.#addContent(buffer, data, isCopied);
    return position + RECORD_HEADER_BYTES;
  }

  /** The bytes to write, once: nothing is added afterwards. @param durableBytes up to where the log is durable now */
  finish(durableBytes: number): readonly Buffer[] {
    for (const { buffer, at, record, contentChecksum: checksum, sequence, position } of this.#headers) {
      const place = { sequence, position, durableBytes };
      writeRecordHeader(buffer, at, record, checksum, this.#seed, place);
    }
    this.#cut();
    return this.#pieces;
  }

  release(): void {
    for (const buffer of this.#borrowed) payloadBuffers.give(buffer);
    this.#borrowed.length = 0;
  }

  #addContent(buffer: Buffer, data: Buffer, isCopied: boolean): void {
    const padding = paddingAfter(data.length);
    this.#lengthBytes += data.length + padding;
    if (isCopied) {
      data.copy(buffer, this.#to);
      buffer.fill(0, this.#to + data.length, this.#to + data.length + padding);
      this.#to += data.length + padding;
      return;
    }
    this.#cut();
    this.#pieces.push(data);
    if (padding > 0) this.#pieces.push(ZERO_PADDING.subarray(0, padding));
  }

  #room(lengthBytes: number): Buffer {
    if (this.#buffer !== null && this.#to + lengthBytes <= this.#buffer.length) return this.#buffer;
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
