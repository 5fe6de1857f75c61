/**
 * What a replica lacks (dirty-blocks.ts) and which extents are being written to (hot-extents.ts), kept in a file over crashes.
 *
 * Invariants:
 * - The file tells at least what memory does: a block that is missed or volatile is set in it, or its extent is hot there
 *   (hot-extents.ts); so is every block that is being written to. After a crash all of a hot extent is missed.
 * - What the file forgets is durable on both sides: the primary disk is flushed first, since a power loss that takes back a write
 *   which the replica has leaves the two different (DRBD: a transaction of the activity log begins with a flush of the disk).
 *   Extents cool down in the background (`#cooling`), so that a change that needs another hot extent does not wait for that flush,
 *   unless far too many are hot.
 * - A tenure is written only after the bits that hold for it: whoever finds it in the file finds everything that is missed.
 * - What can't be written to the file breaks it for good: the file is removed, and a restart copies everything.
 */
import { asError } from "../errors.js";
import { DirtyMapFile, type DirtyMapGeometry } from "../meta/dirty-map-file.js";
import type { Sector } from "../meta/dirty-map-format.js";
import { growDirtyMapFile } from "../meta/dirty-map-growth.js";
import type { StateDirectory } from "../meta/state-directory.js";
import { DIRTY_BLOCK_BYTES, DirtyBlocks } from "./dirty-blocks.js";
import { DirtySectors } from "./dirty-sectors.js";
import { GroupFlush } from "./group-flush.js";
import { EXTENT_BYTES, HotExtents, MAX_HOT_EXTENTS } from "./hot-extents.js";

/** Far more hot extents than there should be: a change that needs another one waits for those that are cooling down. */
const CROWDED_EXTENTS = 2 * MAX_HOT_EXTENTS;

/** After so many flushes of the replica the file is brought up to date: with a resync's progress, and with what has gone idle. */
const PROGRESS_FLUSHES = 4;

export interface DirtyMapOptions {
  readonly directory: StateDirectory;
  /** Number of the disk. */
  readonly disk: number;
  readonly sizeBytes: number;
  /** Flushes the primary disk that the map is of. */
  readonly flushDisk: () => Promise<void>;
  /** The file can't be written any more; what this throws reaches who waits. @param isRemoved whether it is gone: if not, it must not be trusted */
  readonly onBroken: (error: Error, isRemoved: boolean) => void;
}

export function dirtyMapName(disk: number): string {
  return `dirty-${disk}.map`;
}

export class DirtyMap {
  readonly sizeBytes: number;
  readonly #options: DirtyMapOptions;
  readonly #blocks: DirtyBlocks;
  #tenure: string | null = null;
  readonly #hot: HotExtents;
  /** What of these two the file lacks. */
  readonly #sectors: DirtySectors;
  #file: DirtyMapFile | null = null;
  readonly #writes = new GroupFlush(() => this.#writeFile());
  #isTenureDue = false;
  /** Resolves when the extents that are cooling down have cooled, or can't; null: none is. */
  #cooling: Promise<void> | null = null;
  /** Extents that were chosen to cool down, and for which the disk has been flushed since: the next write forgets them. */
  #flushed: readonly number[] = [];
  /** No extent could cool down: the replica has a part of each in memory only. Until its next flush it is no use to look again. */
  #isStuck = false;
  #flushesSinceProgress = 0;
  #isBroken = false;
  /** A file that can't be trusted is still there. */
  #hasUntrustedFile = false;

  private constructor(options: DirtyMapOptions) {
    this.sizeBytes = options.sizeBytes;
    this.#options = options;
    this.#blocks = new DirtyBlocks(options.sizeBytes);
    this.#hot = new HotExtents(options.sizeBytes);
    this.#sectors = new DirtySectors(this.#blocks, this.#hot.bits);
  }

  /**
   * Takes the map up where it was left, or makes a new one that tells of no replica. If the disk has been made larger, what is new
   * of it is missed.
   * @throws MetadataError if the file can't be trusted
   */
  static async open(options: DirtyMapOptions): Promise<DirtyMap> {
    const map = new DirtyMap(options);
    const { directory, disk, sizeBytes } = options;
    const geometry = geometryOf(sizeBytes);
    const restore = (sector: Sector): void => {
      map.#sectors.restore(sector);
    };
    const name = dirtyMapName(disk);
    await growDirtyMapFile(directory, name, geometry);
    map.#file =
      (await DirtyMapFile.open(directory, name, geometry, restore)) ??
      (await DirtyMapFile.create(directory, name, geometry));
    map.#tenure = map.#file.tenure;
    await map.#coolAll();
    return map;
  }

  /** What the file of a disk of this size needs. */
  static fileBytes(sizeBytes: number): number {
    return DirtyMapFile.sizeBytes(geometryOf(sizeBytes));
  }

  /** The tenure for which this map tells what its replica lacks, as the replica named it; null: it tells nothing of any replica. */
  get tenure(): string | null {
    return this.#hasUntrustedFile ? null : this.#tenure;
  }

  /** Its file could not be written: whoever opens it again finds nothing, or what can't be trusted. */
  get isBroken(): boolean {
    return this.#isBroken;
  }

  /** As DirtyBlocks has it; so are the members below that only pass on. */
  get missedBytes(): number {
    return this.#blocks.missedBytes;
  }

  get hasVolatile(): boolean {
    return this.#blocks.hasVolatile;
  }

  get acknowledgements(): number {
    return this.#blocks.acknowledgements;
  }

  get isFlushing(): boolean {
    return this.#blocks.isFlushing;
  }

  /** Far more extents are hot than should be: a flush of the replica may let them cool down. */
  get isCrowded(): boolean {
    return this.#hot.bits.count > CROWDED_EXTENTS;
  }

  missed(offset: number, lengthBytes: number): void {
    this.#blocks.missed(offset, lengthBytes);
  }

  missedRuns(maxRuns: number): [offset: number, lengthBytes: number][] {
    return this.#blocks.missedRuns(maxRuns);
  }

  nextMissed(from: number, maximumBytes: number): { offset: number; lengthBytes: number } | null {
    return this.#blocks.nextMissed(from, maximumBytes);
  }

  /** As missed(), for a range that nobody writes to; durable when this resolves. */
  markMissed(offset: number, lengthBytes: number): Promise<void> {
    this.missed(offset, lengthBytes);
    this.#sectors.markDue(offset, lengthBytes);
    return this.#write();
  }

  /**
   * From now on the map tells what the replica lacks that gave this tenure; durable when this resolves.
   * @param tenure the replica's name for the time from now on; null: it has none
   * @param isKnown whether the replica knows the map's present tenure: if not, it is another replica, or was written to by
   *   somebody else, and lacks everything
   */
  async describe(tenure: string | null, isKnown: boolean): Promise<void> {
    if (!isKnown) {
      this.#blocks.allMissed();
      this.#sectors.markAllDue();
      await this.#write();
    }
    this.#tenure = tenure;
    this.#isTenureDue = true;
    await this.#write();
  }

  /**
   * A change to this range begins: it is issued, to either disk, after this. To be followed by done().
   * @returns null if it may be issued at once
   */
  prepare(offset: number, lengthBytes: number): Promise<void> | null {
    if (lengthBytes === 0) return null;
    const isHot = this.#hot.begin(extentOf(offset), extentOf(offset + lengthBytes - 1));
    return isHot || this.#isBroken ? null : this.#heat();
  }

  /** Resolves when the extents that begin() has found cold are durably hot. */
  async #heat(): Promise<void> {
    this.#coolDown(false);
    if (this.isCrowded) await this.#cooling;
    await this.#write();
  }

  /** A change that was prepared is over, on both disks. */
  done(offset: number, lengthBytes: number): void {
    if (lengthBytes > 0) this.#hot.end(extentOf(offset), extentOf(offset + lengthBytes - 1));
  }

  acknowledged(offset: number, lengthBytes: number): void {
    this.#blocks.acknowledged(offset, lengthBytes);
  }

  resynced(offset: number, lengthBytes: number): void {
    if (this.#blocks.resynced(offset, lengthBytes)) this.#sectors.markStale(offset, lengthBytes);
  }

  beginFlush(): void {
    this.#blocks.beginFlush();
  }

  endFlush(isDurable: boolean): void {
    if (this.#hasUntrustedFile) void this.#removeFile();
    this.#blocks.endFlush(isDurable);
    if (!isDurable) return;
    this.#isStuck = false;
    this.#recordProgress();
    this.#coolDown(false);
  }

  linkMade(hasKept: boolean): void {
    if (hasKept) this.#sectors.markUnsureStale();
    this.#blocks.linkMade(hasKept);
  }

  linkLost(): void {
    this.#isStuck = false;
    this.#blocks.linkLost();
  }

  /** Leaves in the file exactly what is missed. Nothing is written to the disk any more. */
  async close(): Promise<void> {
    if (this.#hasUntrustedFile) await this.#removeFile();
    this.linkLost();
    await this.#cooling;
    this.#sectors.markAllDue();
    await this.#write();
    await this.#coolAll();
    const file = this.#file;
    this.#file = null;
    await file?.close();
  }

  /** A resync that is interrupted goes on about where it was; a crash costs what was written to lately. */
  #recordProgress(): void {
    this.#flushesSinceProgress++;
    const isResynced = this.#sectors.hasStale && this.#blocks.missedBytes === 0;
    if (this.#flushesSinceProgress < PROGRESS_FLUSHES && !isResynced) return;
    this.#flushesSinceProgress = 0;
    this.#sectors.markStaleDue();
    void this.#write();
    this.#coolDown(true);
  }

  /** Has extents cool down in the background: all idle ones, or only as many as there are too many. */
  #coolDown(isIdleDue: boolean): void {
    if (this.#cooling !== null || this.#isStuck || this.#file === null || this.#isBroken) return;
    const chosen = this.#hot.chooseCooling(isIdleDue, this.#sectors.isVolatile);
    if (chosen.length === 0) {
      // It took a look at each of them, which must not be done again for each change.
      this.#isStuck = this.#hot.isFull && (this.#blocks.hasVolatile || this.#blocks.isFlushing);
      return;
    }
    this.#cooling = this.#forget(chosen)
      .catch((error: unknown) => this.#break(asError(error)))
      .then(() => {
        this.#cooling = null;
      });
  }

  /** What the file forgets of these extents is made durable on the primary disk first. */
  async #forget(chosen: readonly number[]): Promise<void> {
    await this.#options.flushDisk();
    this.#flushed = chosen;
    await this.#write();
  }

  /** Leaves no extent hot; nothing is volatile by now. First the file gets the bits of their blocks, then that they are cold. */
  async #coolAll(): Promise<void> {
    const { bits } = this.#hot;
    if (bits.count === 0) return;
    for (let extent = bits.nextSet(0); extent !== -1; extent = bits.nextSet(extent + 1)) {
      this.#sectors.markBlocksDue(extent);
    }
    await this.#write();
    this.#sectors.markAllHeatDue();
    bits.clearAll();
    await this.#write();
  }

  /** Resolves when what is due is in the file, durably, or the file is broken. Rejects only with what onBroken() throws. */
  #write(): Promise<void> {
    return this.#writes.flush().catch((error: unknown) => this.#break(asError(error)));
  }

  async #writeFile(): Promise<void> {
    const file = this.#file;
    if (file === null) return;
    const isTenureDue = this.#isTenureDue;
    this.#isTenureDue = false;
    const heating = this.#hot.takeHeating();
    for (const extent of heating) this.#sectors.markHeatDue(extent);
    const cooling = this.#flushed;
    this.#flushed = [];
    for (const extent of cooling) this.#sectors.markBlocksDue(extent);
    // For those that cool down the disk was flushed before; an extent that is written to meanwhile stays hot.
    const { sectors, forgets } = this.#sectors.takeDue();
    if (forgets) await this.#options.flushDisk();
    if (sectors.length > 0) await file.write(sectors);
    this.#hot.heated(heating);
    // That they are cold goes to the file with the next write; a crash before costs a copy of them.
    for (const extent of this.#hot.cooled(cooling, this.#sectors.isVolatile))
      this.#sectors.markHeatDue(extent);
    if (isTenureDue) await file.setTenure(this.#tenure);
  }

  /** The guest goes on. The file is removed; where that fails too, `tenure` is null, so that nobody trusts it. */
  async #break(error: Error): Promise<void> {
    if (this.#isBroken) return;
    this.#isBroken = true;
    await this.#removeFile();
    this.#options.onBroken(error, !this.#hasUntrustedFile);
  }

  /** It can't be trusted any more. Where it can't be removed either, that is tried again with each flush. */
  async #removeFile(): Promise<void> {
    const { directory, disk } = this.#options;
    this.#hasUntrustedFile = await directory.remove(dirtyMapName(disk)).then(
      () => false,
      () => true,
    );
  }
}

function extentOf(offset: number): number {
  return Math.floor(offset / EXTENT_BYTES);
}

function geometryOf(sizeBytes: number): DirtyMapGeometry {
  return { sizeBytes, blockBytes: DIRTY_BLOCK_BYTES, extentBytes: EXTENT_BYTES };
}
