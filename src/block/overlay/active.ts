/**
 * The active overlay of one disk: what clients of the view wrote since the last checkpoint, over the hidden overlay.
 *
 * Content lies in a sparse data file at the disk's own offsets, so that a rewrite costs no space; the log says which
 * parts of that file count, and what was zeroed.
 *
 * Invariants:
 * - The map names what was written or zeroed, in whole blocks; `#unlogged` is the part of it that the log lacks,
 *   oldest first.
 * - A `mapped` record is appended only when the data file's content under it is durable: after a power loss the
 *   log never names bytes that were not written.
 * - Once a sync of the data file has failed nothing is read from it any more: where it was never durable it may have holes by
 *   now. A restart finds what the log names.
 * - Once it is given up nothing is read from its files or written to them: they are about to be cut.
 */
import type { OverlayLog } from "../../meta/overlay-log.js";
import type { LogRecord } from "../../meta/overlay-log-format.js";
import type { RecoveredRecord } from "../../meta/overlay-log-recovery.js";
import type { StateFile } from "../../meta/state-directory.js";
import { type BlockDevice, type DeviceInfo, type Extent, Flag, type Flags } from "../device.js";
import { ABSENT, ExtentMap, ZERO } from "../extent-map.js";
import { asError, DeviceError } from "../../errors.js";
import { GroupFlush } from "../group-flush.js";
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
  #failure: DeviceError | null = null;
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
    this.#refuseIfLost();
    const put = async (): Promise<void> => {
      const { file } = await this.#open();
      await this.#toFiles(() => file.write(offset, [from]));
    };
    // What is rewritten has its room.
    if (this.#isEntered(offset, offset + from.length, "mapped")) await put();
    else await this.#storage.extend(from.length, put);
    this.#enter(offset, from.length, "mapped");
    await this.#afterWrite(flags);
  }

  async zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    this.#refuseIfLost();
    if (!this.#isEntered(offset, offset + lengthBytes, "zero"))
      await this.#storage.extend(0, () => this.#open());
    this.#enter(offset, lengthBytes, "zero");
    await this.#afterWrite(flags);
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.zero(offset, lengthBytes, flags & Flag.Fua);
  }

  /** What recovery took back counts too: a node that crashed may have left it in the page cache only. */
  flush(): Promise<void> {
    const isUntouched = this.#opened === null && this.#map.extentCount === 0;
    return isUntouched ? Promise.resolve() : this.#group.flush();
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
    this.#unlogged = [];
    await Promise.allSettled(this.#underWay);
  }

  async close(): Promise<void> {
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

  #enter(offset: number, lengthBytes: number, kind: "mapped" | "zero"): void {
    this.#refuseIfLost();
    const end = offset + lengthBytes;
    if (this.#isEntered(offset, end, kind)) return;
    this.#map.set(offset, end, kind === "zero" ? ZERO : offset);
    this.#unlogged.push({ disk: this.#diskIndex, kind, offset, lengthBytes, data: null });
  }

  #isEntered(start: number, end: number, kind: "mapped" | "zero"): boolean {
    let entered = true;
    this.#map.visit(start, end, (_start, _end, target) => {
      if (target === ABSENT || (target === ZERO) !== (kind === "zero")) entered = false;
    });
    return entered;
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
