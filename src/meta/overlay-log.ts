/**
 * The append-only log behind an overlay: records of blocks, checksummed, with group commit.
 *
 * A node has one log of before-images (hidden overlay) and one of the active overlay's allocations for all its disks
 * and each epoch, so that a batch of requests to any of them costs one fdatasync. The bytes are in docs/formats.md.
 *
 * Invariants:
 * - Bytes [0, durableBytes) are on stable storage; every record states the durableBytes of when it was written.
 * - A record's position in the file, sequence number and the log's id go into its checksums, and sequence numbers only
 *   grow: a stale or misplaced record is never taken for one of this log.
 * - append() resolves only when the records, and everything appended before them, are durable. Whatever they guard
 *   may begin then, not earlier: that is what makes a torn tail harmless.
 * - After a failed write or sync the log takes nothing more: what is behind the failure can't be known. A restart may find records
 *   there that nobody went by, unless they are cut off.
 */
import { randomBytes } from "node:crypto";
import { type Cancel, type Clock, systemClock } from "../clock.js";
import { asError } from "../errors.js";
import {
  BROKEN_MARK,
  BROKEN_MARK_POSITION,
  damaged,
  encodeFileHeader,
  HEADER_BYTES,
  identityOf,
  type LogIdentity,
  type LogRecord,
} from "./overlay-log-format.js";
import { OverlayLogBatch } from "./overlay-log-batch.js";
import {
  ForwardReader,
  inspectTail,
  isUnborn,
  readFileHeader,
  readRecord,
  type RecoveredRecord,
} from "./overlay-log-recovery.js";
import type { StateDirectory, StateFile } from "./state-directory.js";

/** As short as timers are: at 10,000 writes a second one sync then serves ten of them and more. */
const PATIENCE_MS = 1;
/** A batch of this length does not wait for more. */
const PATIENCE_BYTES = 256 * 1024;
/** To a batch of this length nothing more is added. */
const LONG_BATCH_BYTES = 4 * 1024 * 1024;
/** One is copied into the page cache while the other is on its way to the disk. */
const BATCHES_AT_A_TIME = 2;

export interface LogOptions {
  readonly epoch: number;
  /** false: nothing is made durable; for a log that is only read, as what was given up (salvage.ts). */
  readonly sync: boolean;
  /** Default: the system's. */
  readonly clock?: Clock;
}

/** A file left over, of any content, that a new log may be made of. */
export interface SpareFile {
  /**
   * Turns the file into a log: has `begin` write its header, then gives it the name.
   * @param begin writes a log's header, durably; closes the file, whatever happens
   * @returns false if there is no such file, or it can't be used
   */
  become(name: string, begin: (file: StateFile) => Promise<void>): Promise<boolean>;
}

export class OverlayLog {
  readonly name: string;
  readonly #directory: StateDirectory;
  readonly #file: StateFile;
  readonly #identity: LogIdentity;
  readonly #sync: boolean;
  readonly #clock: Clock;
  #end: number;
  #durableBytes: number;
  #sequence: number;
  /** Batches that are not being written yet; records join the last one. */
  readonly #waiting: OverlayLogBatch[] = [];
  #underWay = 0;
  /** Settles when every batch whose writing has begun is committed, or has failed. */
  #committed: Promise<void> = Promise.resolve();
  #isScheduled = false;
  /** Runs while only patient records wait; null: a commit is under way, or nothing waits. */
  #cancelPatience: Cancel | null = null;
  #failure: Error | null = null;
  #broken: boolean;

  private constructor(
    directory: StateDirectory,
    name: string,
    file: StateFile,
    state: {
      identity: LogIdentity;
      end: number;
      sequence: number;
      broken: boolean;
      sync: boolean;
      clock: Clock;
    },
  ) {
    this.name = name;
    this.#directory = directory;
    this.#file = file;
    this.#identity = state.identity;
    this.#end = state.end;
    this.#durableBytes = state.end;
    this.#sequence = state.sequence;
    this.#broken = state.broken;
    this.#sync = state.sync;
    this.#clock = state.clock;
  }

  /**
   * Makes an empty, durable log.
   * @param options.spare a file to make it of, if there is one; what that holds counts for nothing under the new log's identity
   */
  static async create(
    directory: StateDirectory,
    name: string,
    options: LogOptions & { spare?: SpareFile },
  ): Promise<OverlayLog> {
    const { epoch, sync, clock = systemClock, spare } = options;
    const id = randomBytes(16);
    const header = encodeFileHeader(id, epoch);
    const begin = async (file: StateFile): Promise<void> => {
      try {
        await file.write(0, [header]);
        if (sync) await file.sync();
      } finally {
        await file.close();
      }
    };
    const isMade = (await spare?.become(name, begin)) ?? false;
    if (!isMade) await begin(await directory.create(name));
    return new OverlayLog(directory, name, await directory.open(name), {
      identity: identityOf(id, epoch),
      end: HEADER_BYTES,
      sequence: 0,
      broken: false,
      sync,
      clock,
    });
  }

  /**
   * Opens a log after a restart and reports its records in the order of their appending.
   * @param options.endBytes where it ended when the node stopped; undefined: it crashed, and a torn tail is cut off silently
   * @param visit lent a record's content, null if there is none, until what it returns is settled, if that is a promise, or till it returns
   * @throws MetadataError "foreign", "version" or "damaged"
   */
  static async recover(
    directory: StateDirectory,
    name: string,
    options: LogOptions & { endBytes?: number | undefined },
    visit: (record: RecoveredRecord, data: Buffer | null) => unknown,
  ): Promise<OverlayLog> {
    const file = await directory.open(name);
    try {
      const { id, broken } = await readFileHeader(file, options.epoch);
      const identity = identityOf(id, options.epoch);
      let position = HEADER_BYTES;
      let sequence = 0;
      const reader = new ForwardReader(file);
      for (;;) {
        const found = await readRecord(reader, position, identity, sequence);
        if (found === null) break;
        const pending = found.record === null ? null : visit(found.record, found.data);
        if (pending instanceof Promise) await pending;
        position = found.endPosition;
        sequence = found.sequence + 1;
      }
      sequence = await inspectTail(file, position, identity, sequence);
      if (options.endBytes !== undefined && position !== options.endBytes) {
        // Nothing was being written: what is bad or missing now was whole, and what it guards has been overwritten.
        throw damaged(
          file.path,
          `it ends at ${position} and ended at ${options.endBytes} when the node stopped`,
        );
      }
      // What was read may be in the page cache only, and what it guards may be overwritten from now on. The mark was not written
      // with the records, and a sync of it that failed has the next one take it for durable, unless it is written again.
      if (options.sync && broken) await file.write(BROKEN_MARK_POSITION, [BROKEN_MARK]);
      if (options.sync) await file.sync();
      return new OverlayLog(directory, name, file, {
        identity,
        end: position,
        sequence,
        broken,
        sync: options.sync,
        clock: options.clock ?? systemClock,
      });
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** Whether a crash cut off create(): such a log counts for nothing. @throws MetadataError "missing" */
  static async isUnborn(directory: StateDirectory, name: string): Promise<boolean> {
    const file = await directory.open(name);
    try {
      return await isUnborn(file);
    } finally {
      await file.close();
    }
  }

  /** Whether a log that nobody appends to has no record. @throws MetadataError as recover(), of one whose first record is damaged too */
  static async isEmpty(directory: StateDirectory, name: string, epoch: number): Promise<boolean> {
    const file = await directory.open(name);
    try {
      const { id } = await readFileHeader(file, epoch);
      const identity = identityOf(id, epoch);
      if ((await readRecord(new ForwardReader(file), HEADER_BYTES, identity, 0)) !== null) return false;
      await inspectTail(file, HEADER_BYTES, identity, 0);
      return true;
    } finally {
      await file.close();
    }
  }

  get sizeBytes(): number {
    return this.#end;
  }

  /**
   * Where the log ends, durably, as long as nothing is appended; null after a failure, when that can't be known, and of a broken one,
   * which may have been cut, and be as long as before after a power loss.
   */
  get endBytes(): number | null {
    return this.#failure === null && !this.#broken ? this.#end : null;
  }

  /** Whether a write or sync has: add() and commit() throw. */
  get hasFailed(): boolean {
    return this.#failure !== null;
  }

  /** Whether a before-image was lost: the checkpoint can't be restored from this log. */
  get isBroken(): boolean {
    return this.#broken;
  }

  /**
   * Appends records and makes them durable together with whatever others append meanwhile. Content of up to
   * COPIED_MAXIMUM_BYTES is copied before this returns, longer content is lent until then.
   * @param patient nobody waits for it: it may take PATIENCE_MS longer, which saves most syncs, unless hurry() is called
   * @returns where each record's content is, to be read with read()
   * @throws DeviceError if they could not be kept; nothing may be overwritten then
   */
  async append(records: readonly LogRecord[], patient = false): Promise<readonly number[]> {
    const positions = records.map((record) => this.add(record));
    await this.commit(patient);
    return positions;
  }

  /**
   * Appends a record, to be made durable by the next commit(). Its content is copied or lent as append() says.
   * @returns where it is
   * @throws DeviceError, having taken nothing, after a failure
   */
  add(record: LogRecord): number {
    this.#refuseAfterFailure();
    const batch = this.#batch();
    const position = batch.add(record);
    this.#end = batch.endPosition;
    return position;
  }

  /** Resolves when all that was added is durable; `patient` and failures as for append(). */
  async commit(patient = false): Promise<void> {
    const last = this.#waiting.at(-1);
    if (last === undefined) {
      await this.#committed;
      this.#refuseAfterFailure();
      return;
    }
    if (!patient || last.lengthBytes >= PATIENCE_BYTES) this.hurry();
    else if (this.#underWay === 0)
      this.#cancelPatience ??= this.#clock.after(PATIENCE_MS, this.#outOfPatience);
    await last.done.promise;
  }

  /** Somebody waits for what was appended. */
  hurry(): void {
    this.#cancelPatience?.();
    this.#cancelPatience = null;
    if (this.#isScheduled || this.#waiting.length === 0) return;
    this.#isScheduled = true;
    // Who appends in this turn of the event loop is in the same batch.
    process.nextTick(() => {
      this.#isScheduled = false;
      this.#begin();
    });
  }

  /** Reads content back from where append() put it. */
  read(position: number, into: Buffer): Promise<void> {
    return this.#file.read(position, into);
  }

  /**
   * Records for good that before-images are missing. Works on a full file system: it overwrites bytes that are there.
   * @throws DeviceError if even that can't be written
   */
  async markBroken(): Promise<void> {
    if (this.#broken) return;
    await this.#changeDurably((file) => file.write(BROKEN_MARK_POSITION, [BROKEN_MARK]));
    this.#broken = true;
  }

  /**
   * Cuts off, durably, what a failed write may have left behind the last record that counts.
   * @throws DeviceError if it can't be cut: it can be tried again
   */
  async cutOff(): Promise<void> {
    if (this.#failure === null) return;
    await this.#cut(this.#durableBytes);
    await this.#changeDurably(() => Promise.resolve());
  }

  /**
   * Gives back the space of a log that is broken: its before-images count for nothing, and what is to be kept, or the next checkpoint, may
   * need the room. Not of one that has not failed, for something may be on its way to it, unless nothing can be.
   * @param isIdle nothing is on its way to it, nor will be before this resolves
   * @throws DeviceError if it can't be cut
   */
  async letGo(isIdle = false): Promise<void> {
    if (!this.#broken || (this.#failure === null && !isIdle)) return;
    await this.#cut(HEADER_BYTES);
  }

  /** Of a log that has failed, or that nothing is added to meanwhile. */
  async #cut(lengthBytes: number): Promise<void> {
    // What is written behind the cut would pass for the rest of a log with a damaged middle. Nothing is added after a failure.
    while (this.#underWay > 0) await this.#committed;
    await this.#directory.truncate(this.name, lengthBytes);
    this.#end = lengthBytes;
    this.#durableBytes = lengthBytes;
  }

  /** Through a handle of its own: the one that failed to sync a record will never sync again. */
  async #changeDurably(change: (file: StateFile) => Promise<void>): Promise<void> {
    const file = await this.#directory.open(this.name);
    try {
      await change(file);
      if (this.#sync) await file.sync();
    } finally {
      await file.close();
    }
  }

  async close(): Promise<void> {
    this.#begin();
    while (this.#underWay > 0) await this.#committed;
    await this.#file.close();
  }

  readonly #outOfPatience = (): void => {
    this.hurry();
  };

  #refuseAfterFailure(): void {
    if (this.#failure !== null) throw this.#failure;
  }

  /** The batch that the next record joins: long enough for a sync to pay, short enough for those who wait for its memory. */
  #batch(): OverlayLogBatch {
    const last = this.#waiting.at(-1);
    if (last !== undefined) {
      if (last.lengthBytes < LONG_BATCH_BYTES) return last;
      this.#close(last);
    }
    const batch = new OverlayLogBatch(this.#end, this.#identity, () => this.#sequence++);
    this.#waiting.push(batch);
    return batch;
  }

  /** Only the last one may be open: what comes after it begins where it ends. */
  #close(batch: OverlayLogBatch): void {
    batch.close();
    this.#end = Math.max(this.#end, batch.endPosition);
  }

  /** Group commit: what comes in during one write and sync goes into the next. Long ones keep the disk busy, two at a time. */
  #begin(): void {
    for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
      const isLong = next.lengthBytes >= LONG_BATCH_BYTES;
      if (this.#underWay > 0 && !(isLong && this.#underWay < BATCHES_AT_A_TIME)) return;
      this.#waiting.shift();
      this.#close(next);
      this.#underWay++;
      this.#committed = this.#commit(next, this.#committed);
    }
  }

  /** Never rejects. @param earlier the batch before it, which it is not committed without */
  async #commit(batch: OverlayLogBatch, earlier: Promise<void>): Promise<void> {
    try {
      this.#refuseAfterFailure();
      const pieces = batch.finish(this.#durableBytes);
      if (this.#sync) await this.#file.writeDurably(batch.startPosition, pieces);
      else await this.#file.write(batch.startPosition, pieces);
      await earlier;
      this.#refuseAfterFailure();
      this.#durableBytes = batch.endPosition;
      batch.done.resolve();
    } catch (error) {
      await earlier;
      this.#failure ??= asError(error);
      batch.done.reject(this.#failure);
    }
    batch.release();
    this.#underWay--;
    this.#begin();
  }
}
