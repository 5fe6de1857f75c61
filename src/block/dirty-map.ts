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
import { BITS_PER_SECTOR, emptyWords, type Region, type Sector } from "../meta/dirty-map-format.js";
import type { StateDirectory } from "../meta/state-directory.js";
import { blockAfter, blockOf, DIRTY_BLOCK_BYTES, DirtyBlocks } from "./dirty-blocks.js";
import { GroupFlush } from "./group-flush.js";
import { EXTENT_BYTES, HotExtents, MAX_HOT_EXTENTS } from "./hot-extents.js";

const BLOCKS_PER_EXTENT = EXTENT_BYTES / DIRTY_BLOCK_BYTES;
const EXTENTS_PER_SECTOR = BITS_PER_SECTOR / BLOCKS_PER_EXTENT;

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
  #file: DirtyMapFile | null = null;
  readonly #writes = new GroupFlush(() => this.#writeFile());
  /** Sectors of the file that the next write replaces. */
  readonly #dueSectors = { hot: new Set<number>(), blocks: new Set<number>() };
  /** Sectors with bits in the file that memory no longer has, or won't have after the next flush of the replica. */
  readonly #staleSectors = new Set<number>();
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
  }

  /**
   * Takes the map up where it was left, or makes a new one that tells of no replica.
   * @throws MetadataError if the file can't be trusted
   */
  static async open(options: DirtyMapOptions): Promise<DirtyMap> {
    const map = new DirtyMap(options);
    const { directory, disk, sizeBytes } = options;
    const geometry = geometryOf(sizeBytes);
    const restore = (sector: Sector): void => {
      map.#restore(sector);
    };
    map.#file =
      (await DirtyMapFile.open(directory, dirtyMapName(disk), geometry, restore)) ??
      (await DirtyMapFile.create(directory, dirtyMapName(disk), geometry));
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
    this.#dueBlocks(blockOf(offset), blockAfter(offset + lengthBytes));
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
      this.#dueAll();
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
    if (!this.#blocks.resynced(offset, lengthBytes)) return;
    const last = sectorOf(blockAfter(offset + lengthBytes) - 1);
    for (let sector = sectorOf(blockOf(offset)); sector <= last; sector++) this.#staleSectors.add(sector);
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
    const blocks = this.#blocks;
    // Unsure blocks that cooled down while there was no link are set in the file, as missed, and won't be missed any more.
    let unsure = hasKept ? blocks.nextUnsure(0) : -1;
    while (unsure !== -1) {
      this.#staleSectors.add(sectorOf(unsure));
      unsure = blocks.nextUnsure(sectorEnd(unsure));
    }
    blocks.linkMade(hasKept);
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
    this.#dueAll();
    await this.#write();
    await this.#coolAll();
    const file = this.#file;
    this.#file = null;
    await file?.close();
  }

  /** A resync that is interrupted goes on about where it was; a crash costs what was written to lately. */
  #recordProgress(): void {
    this.#flushesSinceProgress++;
    const isResynced = this.#staleSectors.size > 0 && this.#blocks.missedBytes === 0;
    if (this.#flushesSinceProgress < PROGRESS_FLUSHES && !isResynced) return;
    this.#flushesSinceProgress = 0;
    for (const sector of this.#staleSectors) this.#dueSectors.blocks.add(sector);
    void this.#write();
    this.#coolDown(true);
  }

  /** Has extents cool down in the background: all idle ones, or only as many as there are too many. */
  #coolDown(isIdleDue: boolean): void {
    if (this.#cooling !== null || this.#isStuck || this.#file === null || this.#isBroken) return;
    const chosen = this.#hot.chooseCooling(isIdleDue, this.#isVolatile);
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
      this.#dueBlocks(extent * BLOCKS_PER_EXTENT, (extent + 1) * BLOCKS_PER_EXTENT);
    }
    await this.#write();
    for (let index = 0; index < (this.#file?.sectors("hot") ?? 0); index++) this.#dueSectors.hot.add(index);
    bits.clearAll();
    await this.#write();
  }

  #restore({ region, index, words }: Sector): void {
    const firstWord = (index * BITS_PER_SECTOR) / 32;
    for (const [at, word] of words.entries()) {
      if (region === "hot") this.#hot.bits.addWord(firstWord + at, word);
      else this.#blocks.addMissedWord(firstWord + at, word);
    }
    if (region === "hot") return;
    const firstExtent = index * EXTENTS_PER_SECTOR;
    const end = Math.min(firstExtent + EXTENTS_PER_SECTOR, this.#hot.bits.length);
    for (let extent = firstExtent; extent < end; extent++) {
      const offset = extent * EXTENT_BYTES;
      if (this.#hot.bits.has(extent)) this.missed(offset, Math.min(EXTENT_BYTES, this.sizeBytes - offset));
    }
  }

  /** The next write replaces every sector of blocks. */
  #dueAll(): void {
    this.#dueBlocks(0, this.#blocks.length);
  }

  #dueBlocks(start: number, end: number): void {
    for (let sector = sectorOf(start); sector <= sectorOf(Math.max(start, end - 1)); sector++) {
      if (sector * BITS_PER_SECTOR < this.#blocks.length) this.#dueSectors.blocks.add(sector);
    }
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
    for (const extent of heating) this.#dueSectors.hot.add(sectorOf(extent));
    const cooling = this.#flushed;
    this.#flushed = [];
    for (const extent of cooling) this.#dueSectors.blocks.add(sectorOf(extent * BLOCKS_PER_EXTENT));
    // For those that cool down the disk was flushed before; an extent that is written to meanwhile stays hot.
    const forgetsMore = this.#isStale(this.#dueSectors.blocks);
    const sectors = [...this.#takeDue("hot"), ...this.#takeDue("blocks")];
    if (forgetsMore) await this.#options.flushDisk();
    if (sectors.length > 0) await file.write(sectors);
    this.#hot.heated(heating);
    // That they are cold goes to the file with the next write; a crash before costs a copy of them.
    for (const extent of this.#hot.cooled(cooling, this.#isVolatile)) {
      this.#dueSectors.hot.add(sectorOf(extent));
    }
    if (isTenureDue) await file.setTenure(this.#tenure);
  }

  /** Whether writing these sectors clears bits. One that keeps bits of a resync, which the next flush may cover, stays stale. */
  #isStale(sectors: ReadonlySet<number>): boolean {
    let isStale = false;
    for (const sector of sectors) {
      if (!this.#staleSectors.has(sector)) continue;
      isStale = true;
      if (!this.#hasVolatileCopy(sector)) this.#staleSectors.delete(sector);
    }
    return isStale;
  }

  /** Whether a resync left something volatile there. What guests left is hot, and its sector is written when it cools down. */
  #hasVolatileCopy(sector: number): boolean {
    if (!this.#blocks.isVolatile(sector * BITS_PER_SECTOR, (sector + 1) * BITS_PER_SECTOR)) return false;
    const first = sector * EXTENTS_PER_SECTOR;
    const end = Math.min(first + EXTENTS_PER_SECTOR, this.#hot.bits.length);
    for (let extent = first; extent < end; extent++) {
      if (!this.#hot.bits.has(extent) && this.#isVolatile(extent)) return true;
    }
    return false;
  }

  readonly #isVolatile = (extent: number): boolean =>
    this.#blocks.isVolatile(extent * BLOCKS_PER_EXTENT, (extent + 1) * BLOCKS_PER_EXTENT);

  #takeDue(region: Region): Sector[] {
    const due = this.#dueSectors[region];
    const sectors = [...due].map((index): Sector => ({ region, index, words: this.#words(region, index) }));
    due.clear();
    return sectors;
  }

  #words(region: Region, index: number): Uint32Array {
    const bits = region === "hot" ? this.#hot.bits : this.#blocks;
    const words = emptyWords();
    const first = (index * BITS_PER_SECTOR) / 32;
    for (let at = 0; at < words.length; at++) words[at] = bits.word(first + at);
    return words;
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

function sectorOf(bit: number): number {
  return Math.floor(bit / BITS_PER_SECTOR);
}

/** The first bit of the next sector. */
function sectorEnd(bit: number): number {
  return (sectorOf(bit) + 1) * BITS_PER_SECTOR;
}

function geometryOf(sizeBytes: number): DirtyMapGeometry {
  return { sizeBytes, blockBytes: DIRTY_BLOCK_BYTES, extentBytes: EXTENT_BYTES };
}
