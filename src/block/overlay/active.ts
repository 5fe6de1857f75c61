/**
 * The active overlay of one disk: what clients of the view wrote since the last checkpoint, over the hidden overlay.
 *
 * Content lies in a sparse data file at the disk's own offsets, so that a rewrite costs no space; the log says which
 * parts of that file count, and what was zeroed. What is zeroed and counts already becomes a hole of that file, which the log need
 * not tell: it names a block twice at most, unless the file system can't punch holes.
 *
 * Invariants:
 * - The map names what was written or zeroed, in whole blocks; `#unlogged` is the part of it that the log lacks,
 *   oldest first. Of `#punched`, a part of what is zero in the map, the log says that it is in the data file, and has nothing to add.
 * - A `mapped` record is appended only when the data file's content under it is durable: after a power loss the
 *   log never names bytes that were not written.
 * - Once a sync of the data file has failed nothing is read from it any more: where it was never durable it may have holes by
 *   now. A restart finds what the log names.
 * - Once it is given up nothing is read from its files or written to them: they are about to be cut.
 * - Once it is closed nothing is written to its files: their descriptors may be another file's by then.
 */
import type { OverlayLog } from "../../meta/overlay-log.js";
import type { LogRecord } from "../../meta/overlay-log-format.js";
import type { RecoveredRecord } from "../../meta/overlay-log-recovery.js";
import type { StateFile } from "../../meta/state-directory.js";
import { type BlockDevice, type DeviceInfo, type Extent, Flag, type Flags } from "../device.js";
import { ABSENT, ExtentMap, ZERO } from "../extent-map.js";
import { asError, DeviceError } from "../../errors.js";
import { GroupFlush } from "../group-flush.js";
import { RangeLock } from "../range-lock.js";
import { extentsThrough, type Layer, readThrough } from "./layered.js";

/** Writes are taken in whole blocks of this size, which bounds the map; checked() reads and modifies for smaller ones. */
const ACTIVE_BLOCK_BYTES = 4096;
/** So many extents not yet in the log make the overlay flush by itself: a bound on memory. */
const MAX_UNLOGGED = 4096;

/** Where an active overlay keeps its content; made at its first write, since most epochs see none. */
export interface ActiveStorage {
  open(): Promise<{ readonly file: StateFile; readonly log: OverlayLog }>;
  /** Carries out what takes so much more room, and a record. @throws DeviceError ENOSPC, and does not, where that is not to be had */
  extend(lengthBytes: number, change: () => Promise<unknown>): Promise<unknown>;
  /** What was written and not flushed may be gone. */
  lost(): void;
}

export class ActiveOverlay implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #map: ExtentMap;
  readonly #layer: Layer;
  readonly #storage: ActiveStorage;
  readonly #diskIndex: number;
  #opened: Promise<{ readonly file: StateFile; readonly log: OverlayLog }> | null = null;
  #unlogged: LogRecord[] = [];
  readonly #punched = new ExtentMap();
  /** A hole is not punched into what is being written: the map might have the one last and the data file the other. */
  readonly #locks = new RangeLock();
  #failure: DeviceError | null = null;
  #isClosed = false;
  /** What is on its way to the files. */
  readonly #underWay = new Set<Promise<unknown>>();
  readonly #group = new GroupFlush(() => this.#flushOnce());

  /** @param map what recovery found in the log (recoverChange()) */
  constructor(backing: BlockDevice, storage: ActiveStorage, diskIndex: number, map = new ExtentMap()) {
    this.#map = map;
    const { sizeBytes, blockSize, extents } = backing.info;
    this.info = Object.freeze({
      sizeBytes,
      blockSize: Object.freeze({
        minimumBytes: ACTIVE_BLOCK_BYTES,
        preferredBytes: Math.max(ACTIVE_BLOCK_BYTES, blockSize.preferredBytes),
        maximumBytes: blockSize.maximumBytes,
      }),
      writable: true,
      trim: "native",
      zero: "native",
      fua: "native",
      extents,
    });
    this.#storage = storage;
    this.#diskIndex = diskIndex;
    this.#layer = {
      map: this.#map,
      backing,
      fetch: async (target, into) => (await this.#open()).file.read(target, into),
    };
  }

  get mappedBytes(): number {
    return this.#map.mappedBytes;
  }

  /** All extents, in order of offset. */
  mapped(): [start: number, end: number][] {
    return this.#map.ranges();
  }

  async read(offset: number, into: Buffer): Promise<void> {
    this.#refuseIfLost();
    if (this.#map.extentCount === 0) return this.#layer.backing.read(offset, into);
    await readThrough(this.#layer, offset, into);
    // A sync that failed meanwhile may have taken back what was read: a commit would make that the disk's.
    this.#refuseIfLost();
  }

  async write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    const end = offset + from.length;
    const hold = await this.#locks.lock(offset, end, "shared");
    try {
      this.#refuseIfLost();
      const put = async (): Promise<void> => {
        const { file } = await this.#open();
        await this.#toFiles(() => file.write(offset, [from]));
      };
      // What is rewritten has its room.
      if (this.#isEntered(offset, end, "mapped")) await put();
      else await this.#storage.extend(from.length, put);
      this.#enter(offset, end, "mapped");
    } finally {
      hold.release();
    }
    await this.#afterWrite(flags);
  }

  async zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    const end = offset + lengthBytes;
    const hold = await this.#locks.lock(offset, end, "exclusive");
    try {
      this.#refuseIfLost();
      if (!this.#isEntered(offset, end, "zero")) await this.#zeroAnew(offset, lengthBytes);
    } finally {
      hold.release();
    }
    await this.#afterWrite(flags);
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.zero(offset, lengthBytes, flags & Flag.Fua);
  }

  /** What recovery took back counts too: a node that crashed may have left it in the page cache only. */
  flush(): Promise<void> {
    const isUntouched = this.#opened === null && this.#map.extentCount === 0;
    return isUntouched || this.#isClosed ? Promise.resolve() : this.#group.flush();
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    return extentsThrough(this.#layer, offset, lengthBytes, maxExtents);
  }

  /**
   * What it lies over is lost for good, and it with that: each request fails from now on. Resolves when its files are left alone, which
   * may be before they are made: that waits for the epoch to be in force, and so may wait for who calls.
   */
  async giveUp(reason: string): Promise<void> {
    this.#failure ??= new DeviceError("EIO", reason);
    this.#map.clear();
    this.#punched.clear();
    this.#unlogged = [];
    await Promise.allSettled(this.#underWay);
  }

  /** Of all requests a flush may be under way, for it passes every gate, or come late: what it was for is dropped, or the disk's by now. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#group.settled();
    if (this.#opened === null) return;
    await (await this.#opened).file.close();
  }

  #refuseIfLost(): void {
    if (this.#failure !== null) throw this.#failure;
  }

  #open(): Promise<{ readonly file: StateFile; readonly log: OverlayLog }> {
    this.#opened ??= this.#storage.open().catch((error: unknown) => {
      this.#opened = null;
      throw error;
    });
    return this.#opened;
  }

  /** @throws DeviceError also if it was given up meanwhile */
  async #toFiles(write: () => Promise<unknown>): Promise<void> {
    this.#refuseIfLost();
    const written = write();
    this.#underWay.add(written);
    try {
      await written;
    } finally {
      this.#underWay.delete(written);
    }
  }

  async #zeroAnew(offset: number, lengthBytes: number): Promise<void> {
    const end = offset + lengthBytes;
    if (this.#map.covers(offset, end) && (await this.#punch(offset, lengthBytes))) {
      this.#enterPunched(offset, end);
      return;
    }
    await this.#storage.extend(0, () => this.#open());
    this.#enter(offset, end, "zero");
  }

  /** @returns false where the file system can't */
  async #punch(offset: number, lengthBytes: number): Promise<boolean> {
    let isDone = false;
    const { file } = await this.#open();
    await this.#toFiles(async () => {
      isDone = await file.punch(offset, lengthBytes);
    });
    return isDone;
  }

  #enter(start: number, end: number, kind: "mapped" | "zero"): void {
    this.#refuseIfLost();
    const isLogged = this.#isLogged(start, end, kind);
    this.#punched.delete(start, end);
    this.#map.set(start, end, kind === "zero" ? ZERO : start);
    if (!isLogged)
      this.#unlogged.push({
        disk: this.#diskIndex,
        kind,
        offset: start,
        lengthBytes: end - start,
        data: null,
      });
  }

  /** Of a range without gaps. */
  #enterPunched(start: number, end: number): void {
    this.#refuseIfLost();
    const inFile: [start: number, end: number][] = [];
    this.#map.visit(start, end, (pieceStart, pieceEnd, target) => {
      if (target !== ZERO) inFile.push([pieceStart, pieceEnd]);
    });
    for (const [pieceStart, pieceEnd] of inFile) this.#punched.set(pieceStart, pieceEnd, ZERO);
    this.#map.set(start, end, ZERO);
  }

  #isEntered(start: number, end: number, kind: "mapped" | "zero"): boolean {
    let entered = true;
    this.#map.visit(start, end, (_start, _end, target) => {
      if (target === ABSENT || (target === ZERO) !== (kind === "zero")) entered = false;
    });
    return entered;
  }

  /** Whether the log says the same of the range, or will with what it lacks. */
  #isLogged(start: number, end: number, kind: "mapped" | "zero"): boolean {
    let logged = true;
    this.#map.visit(start, end, (pieceStart, pieceEnd, target) => {
      if (target === ABSENT) logged = false;
      else if (target !== ZERO) logged &&= kind === "mapped";
      else if (kind === "mapped") logged &&= this.#punched.covers(pieceStart, pieceEnd);
      else logged &&= !this.#punched.intersects(pieceStart, pieceEnd);
    });
    return logged;
  }

  async #afterWrite(flags: Flags): Promise<void> {
    if ((flags & Flag.Fua) !== 0 || this.#unlogged.length >= MAX_UNLOGGED) await this.flush();
  }

  async #flushOnce(): Promise<void> {
    const { file, log } = await this.#open();
    const records = this.#unlogged;
    this.#unlogged = [];
    try {
      await file.sync();
    } catch (error) {
      const reason = `what was written to the view may be lost: ${asError(error).message}`;
      this.#failure = new DeviceError("EIO", reason, { cause: error });
      this.#storage.lost();
      throw this.#failure;
    }
    if (records.length > 0) await this.#toFiles(() => log.append(records));
    this.#refuseIfLost();
  }
}

/** Enters what recovery finds in the log; the last record of a block counts. */
export function recoverChange(map: ExtentMap, { kind, offset, lengthBytes }: RecoveredRecord): void {
  map.set(offset, offset + lengthBytes, kind === "zero" ? ZERO : offset);
}
