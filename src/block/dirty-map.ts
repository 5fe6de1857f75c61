/**
 * What the replica lacks, block by block (DRBD: the bitmap; QEMU: a dirty bitmap), in memory and in a file.
 *
 * A block is *missed* if the replica may not have its newest content: resync has to send it. It is *volatile* if the
 * replica acknowledged it and may still lose it in a power loss: once the link is lost it counts as missed, until the replica is
 * found to have lost nothing.
 *
 * Invariants:
 * - A block leaves `missed` only when its whole newest content was acknowledged by the replica; it leaves `volatile` only
 *   through a flush of the replica that began after that acknowledgement.
 * - An acknowledgement counts only while the link holds over which it came, and from when a replica that has lost nothing since is
 *   linked again: a flush of one that has would not cover it. A block of `unsure` was volatile when the link was lost, its newest
 *   content acknowledged, and is missed for that alone.
 * - The file tells at least what memory does: a block that is missed or volatile is set in it, or its extent is hot there
 *   (hot-extents.ts); so is every block that is being written to. After a crash all of a hot extent is missed.
 * - What the file forgets is durable on both sides: the primary disk is flushed first, since a power loss that takes back a write
 *   which the replica has leaves the two different (DRBD: a transaction of the activity log begins with a flush of the disk).
 * - The file's tenure is of a time at which the file told everything: another one is written after the bits.
 * - What can't be written to the file breaks it for good: the file is removed, and a restart copies everything.
 */
import { asError } from "../errors.js";
import { DirtyMapFile } from "../meta/dirty-map-file.js";
import { BITS_PER_SECTOR, emptyWords, type Region, type Sector } from "../meta/dirty-map-format.js";
import type { StateDirectory } from "../meta/state-directory.js";
import { Bitmap } from "./bitmap.js";
import { GroupFlush } from "./group-flush.js";
import { EXTENT_BYTES, HotExtents, MAX_HOT_EXTENTS } from "./hot-extents.js";

/** Coarse enough that a terabyte costs 2 MiB a bitmap, fine enough that a hot block costs little to send again. */
export const DIRTY_BLOCK_BYTES = 64 * 1024;
const BLOCKS_PER_EXTENT = EXTENT_BYTES / DIRTY_BLOCK_BYTES;
const EXTENTS_PER_SECTOR = BITS_PER_SECTOR / BLOCKS_PER_EXTENT;

/** Flushes of the replica between two writes of what has become known to the file: progress, and what is idle. */
const PROGRESS_FLUSHES = 4;

export interface DirtyMapOptions {
  readonly directory: StateDirectory;
  /** Number of the disk. */
  readonly disk: number;
  readonly sizeBytes: number;
  /** Makes durable what was written to the disk that the map is of. */
  readonly flushDisk: () => Promise<void>;
  /** The file can't be written any more. @param isRemoved whether it is gone: if not, it must not be trusted */
  readonly onBroken: (error: Error, isRemoved: boolean) => void;
}

export function dirtyMapName(disk: number): string {
  return `dirty-${disk}.map`;
}

export class DirtyMap {
  readonly sizeBytes: number;
  readonly #options: DirtyMapOptions;
  readonly #missed: Bitmap;
  #volatile: Bitmap;
  #flushing: Bitmap;
  readonly #unsure: Bitmap;
  #isFlushing = false;
  #isLinked = false;
  #acknowledgements = 0;
  #tenure: string | null = null;
  readonly #hot: HotExtents;
  #file: DirtyMapFile | null = null;
  readonly #writes = new GroupFlush(() => this.#writeFile());
  /** Sectors of the file that the next write replaces. */
  readonly #dueSectors = { hot: new Set<number>(), blocks: new Set<number>() };
  /** Sectors in which the file has bits that are not set any more, or won't be after a flush of the replica. */
  readonly #staleSectors = new Set<number>();
  #isTenureDue = false;
  #isIdleDue = false;
  #flushesSinceProgress = 0;
  #isBroken = false;
  /** A file that can't be trusted is still there. */
  #isHaunted = false;

  private constructor(options: DirtyMapOptions) {
    this.sizeBytes = options.sizeBytes;
    this.#options = options;
    const blocks = Math.ceil(options.sizeBytes / DIRTY_BLOCK_BYTES);
    this.#missed = new Bitmap(blocks);
    this.#volatile = new Bitmap(blocks);
    this.#flushing = new Bitmap(blocks);
    this.#unsure = new Bitmap(blocks);
    this.#hot = new HotExtents(options.sizeBytes);
  }

  /**
   * Takes the map up where it was left, or makes a new one that tells of no replica.
   * @throws MetadataError if the file can't be trusted
   */
  static async open(options: DirtyMapOptions): Promise<DirtyMap> {
    const map = new DirtyMap(options);
    const { directory, disk, sizeBytes } = options;
    const geometry = { sizeBytes, blockBytes: DIRTY_BLOCK_BYTES, extentBytes: EXTENT_BYTES };
    const restore = (sector: Sector): void => {
      map.#restore(sector);
    };
    map.#file =
      (await DirtyMapFile.open(directory, dirtyMapName(disk), geometry, restore)) ??
      (await DirtyMapFile.create(directory, dirtyMapName(disk), geometry));
    map.#tenure = map.#file.tenure;
    await map.#cool();
    return map;
  }

  /** The name of the time that this map tells of, as the replica gave it; null: it tells nothing of any replica. */
  get tenure(): string | null {
    return this.#isHaunted ? null : this.#tenure;
  }

  /** Bytes that resync still has to send, in whole blocks. */
  get missedBytes(): number {
    return Math.min(this.#missed.count * DIRTY_BLOCK_BYTES, this.sizeBytes);
  }

  /** Whether the replica acknowledged blocks that no flush has covered yet. */
  get hasVolatile(): boolean {
    return this.#volatile.count > 0;
  }

  /** How many changes the replica has acknowledged. */
  get acknowledgements(): number {
    return this.#acknowledgements;
  }

  /** Far more extents are hot than should be: only a flush of the replica lets them cool down. */
  get isCrowded(): boolean {
    return this.#hot.bits.count > 2 * MAX_HOT_EXTENTS;
  }

  get isFlushing(): boolean {
    return this.#isFlushing;
  }

  /** The replica may not have this content. */
  missed(offset: number, lengthBytes: number): void {
    this.#missed.set(blockOf(offset), blockAfter(offset + lengthBytes));
    if (this.#unsure.count > 0) this.#unsure.clear(blockOf(offset), blockAfter(offset + lengthBytes));
  }

  /** As missed(), for a range that nobody writes to; durable when this resolves. */
  markMissed(offset: number, lengthBytes: number): Promise<void> {
    this.missed(offset, lengthBytes);
    this.#dueBlocks(blockOf(offset), blockAfter(offset + lengthBytes));
    return this.#write();
  }

  /** All that is missed, in order, as at most `maxRuns` ranges of bytes; what lies between close ones is added. */
  missedRuns(maxRuns: number): [offset: number, lengthBytes: number][] {
    for (let gapBytes = 0; ; gapBytes = Math.max(2 * gapBytes, DIRTY_BLOCK_BYTES)) {
      const runs = this.#runs(gapBytes, maxRuns);
      if (runs !== null) return runs;
    }
  }

  /** Runs no closer to each other than `gapBytes`, or null if they are too many. */
  #runs(gapBytes: number, maxRuns: number): [offset: number, lengthBytes: number][] | null {
    const runs: [offset: number, lengthBytes: number][] = [];
    let from = 0;
    for (
      let run = this.nextMissed(from, this.sizeBytes);
      run !== null;
      run = this.nextMissed(from, this.sizeBytes)
    ) {
      const last = runs.at(-1);
      from = run.offset + run.lengthBytes;
      if (last !== undefined && run.offset - (last[0] + last[1]) <= gapBytes) last[1] = from - last[0];
      else runs.push([run.offset, run.lengthBytes]);
      if (runs.length > maxRuns) return null;
      if (from >= this.sizeBytes) break;
    }
    return runs;
  }

  /**
   * Whose lack this map tells from now on; durable when this resolves.
   * @param tenure the replica's name for the time from now on; null: it has none
   * @param isKnown whether the replica knows the map's tenure: if not it is another one, or was written by somebody
   * else, and lacks everything
   */
  async describe(tenure: string | null, isKnown: boolean): Promise<void> {
    if (!isKnown) {
      this.#missed.setAll();
      this.#unsure.clearAll();
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
    return isHot || this.#isBroken ? null : this.#write();
  }

  /** A change that was prepared is over, on both disks. */
  done(offset: number, lengthBytes: number): void {
    if (lengthBytes > 0) this.#hot.end(extentOf(offset), extentOf(offset + lengthBytes - 1));
  }

  /** The replica acknowledged a write; that alone makes no missed block whole. */
  acknowledged(offset: number, lengthBytes: number): void {
    this.#acknowledgements++;
    if (this.#isLinked) this.#volatile.set(blockOf(offset), blockAfter(offset + lengthBytes));
    else this.missed(offset, lengthBytes);
  }

  /** The replica acknowledged the whole newest content of these blocks, which are aligned to DIRTY_BLOCK_BYTES. */
  resynced(offset: number, lengthBytes: number): void {
    if (!this.#isLinked) return;
    this.acknowledged(offset, lengthBytes);
    this.#missed.clear(blockOf(offset), blockAfter(offset + lengthBytes));
    const last = sectorOf(blockAfter(offset + lengthBytes) - 1);
    for (let sector = sectorOf(blockOf(offset)); sector <= last; sector++) this.#staleSectors.add(sector);
  }

  /** A flush of the replica begins: it will cover what was acknowledged up to now. One at a time. */
  beginFlush(): void {
    if (this.#isFlushing) throw new Error("dirty map: one flush at a time");
    this.#isFlushing = true;
    [this.#volatile, this.#flushing] = [this.#flushing, this.#volatile];
  }

  endFlush(isDurable: boolean): void {
    if (this.#isHaunted) void this.#removeFile();
    if (!isDurable && this.#isLinked) this.#volatile.add(this.#flushing);
    this.#flushing.clearAll();
    this.#isFlushing = false;
    if (isDurable) this.#recordProgress();
  }

  /**
   * There is a link to the replica, whose acknowledgements count from now on.
   * @param hasKept it has all that it acknowledged before the last link was lost
   */
  linkMade(hasKept: boolean): void {
    this.#isLinked = true;
    if (hasKept) {
      this.#volatile.add(this.#unsure);
      this.#missed.remove(this.#unsure);
      // What cooled down meanwhile is set in the file, as missed.
      for (let block = this.#unsure.nextSet(0); block !== -1; block = this.#unsure.nextSet(sectorEnd(block)))
        this.#staleSectors.add(sectorOf(block));
    }
    this.#unsure.clearAll();
  }

  /** The link is gone: whatever the replica had only in memory has to be sent again, if it may have lost that. */
  linkLost(): void {
    if (!this.#isLinked) return;
    this.#isLinked = false;
    this.#unsure.add(this.#volatile);
    this.#unsure.add(this.#flushing);
    this.#unsure.remove(this.#missed);
    this.#missed.add(this.#unsure);
    this.#volatile.clearAll();
  }

  /** The next run of missed blocks at or after `from`, no longer than `maximumBytes`, as a range of bytes. */
  nextMissed(from: number, maximumBytes: number): { offset: number; lengthBytes: number } | null {
    const first = this.#missed.nextSet(blockOf(from));
    if (first === -1) return null;
    const last = Math.min(
      this.#missed.nextClear(first),
      first + Math.floor(maximumBytes / DIRTY_BLOCK_BYTES),
    );
    const offset = first * DIRTY_BLOCK_BYTES;
    return { offset, lengthBytes: Math.min(last * DIRTY_BLOCK_BYTES, this.sizeBytes) - offset };
  }

  /** Leaves in the file exactly what is missed. Nothing is written to the disk any more. */
  async close(): Promise<void> {
    if (this.#isHaunted) await this.#removeFile();
    this.linkLost();
    this.#dueAll();
    await this.#write();
    await this.#cool();
    const file = this.#file;
    this.#file = null;
    await file?.close();
  }

  /** A resync that is interrupted goes on about where it was; a crash costs what was written to lately. */
  #recordProgress(): void {
    this.#flushesSinceProgress++;
    const isResynced = this.#staleSectors.size > 0 && this.#missed.count === 0;
    if (this.#flushesSinceProgress < PROGRESS_FLUSHES && !isResynced) return;
    this.#flushesSinceProgress = 0;
    this.#isIdleDue = true;
    for (const sector of this.#staleSectors) this.#dueSectors.blocks.add(sector);
    void this.#write();
  }

  /** What is hot in the file is missed by now: the bits of its blocks, then that it is cold. */
  async #cool(): Promise<void> {
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
    const bits = region === "hot" ? this.#hot.bits : this.#missed;
    for (const [at, word] of words.entries()) bits.addWord((index * BITS_PER_SECTOR) / 32 + at, word);
    if (region === "hot") return;
    const first = index * BITS_PER_SECTOR;
    const end = Math.min(first + BITS_PER_SECTOR, this.#missed.length);
    for (let block = first; block < end; block += BLOCKS_PER_EXTENT) {
      if (this.#hot.bits.has(block / BLOCKS_PER_EXTENT)) this.#missed.set(block, this.#blocksUpTo(block));
    }
  }

  #blocksUpTo(block: number): number {
    return Math.min(block + BLOCKS_PER_EXTENT, this.#missed.length);
  }

  #dueAll(): void {
    this.#dueBlocks(0, this.#missed.length);
  }

  #dueBlocks(start: number, end: number): void {
    for (let sector = sectorOf(start); sector <= sectorOf(Math.max(start, end - 1)); sector++) {
      if (sector * BITS_PER_SECTOR < this.#missed.length) this.#dueSectors.blocks.add(sector);
    }
  }

  /** Resolves when what is due is in the file, durably, or the file is broken. Never rejects. */
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
    const cooling = this.#hot.chooseCooling(this.#isIdleDue, this.#isVolatile);
    this.#isIdleDue = false;
    for (const extent of cooling) this.#dueSectors.blocks.add(sectorOf(extent * BLOCKS_PER_EXTENT));
    const forgets = cooling.length > 0 || this.#isStale(this.#dueSectors.blocks);
    const sectors = [...this.#takeDue("hot"), ...this.#takeDue("blocks")];
    // What is forgotten from here on was written before; what is written meanwhile keeps its extent hot.
    if (forgets) await this.#options.flushDisk();
    if (sectors.length > 0) await file.write(sectors);
    this.#hot.heated(heating);
    // That they are cold is written with the next change: until then a crash costs their copy.
    for (const extent of this.#hot.cooled(cooling, this.#isVolatile)) {
      this.#dueSectors.hot.add(sectorOf(extent));
    }
    if (isTenureDue) await file.setTenure(this.#tenure);
  }

  /** Whether bits of these sectors go. Those that keep bits of a copy, which the next flush may cover, stay stale. */
  #isStale(sectors: ReadonlySet<number>): boolean {
    let isStale = false;
    for (const sector of sectors) {
      if (!this.#staleSectors.has(sector)) continue;
      isStale = true;
      if (!this.#hasVolatileCopy(sector)) this.#staleSectors.delete(sector);
    }
    return isStale;
  }

  /** Whether a resync, and no guest, left something volatile: what guests change is hot, and its sector is written when it cools. */
  #hasVolatileCopy(sector: number): boolean {
    if (!this.#hasVolatile(sector * BITS_PER_SECTOR, (sector + 1) * BITS_PER_SECTOR)) return false;
    const first = sector * EXTENTS_PER_SECTOR;
    const end = Math.min(first + EXTENTS_PER_SECTOR, this.#hot.bits.length);
    for (let extent = first; extent < end; extent++) {
      if (!this.#hot.bits.has(extent) && this.#isVolatile(extent)) return true;
    }
    return false;
  }

  readonly #isVolatile = (extent: number): boolean =>
    this.#hasVolatile(extent * BLOCKS_PER_EXTENT, (extent + 1) * BLOCKS_PER_EXTENT);

  /** Whether a block of [start, end) is. */
  #hasVolatile(start: number, end: number): boolean {
    return this.#volatile.intersects(start, end) || this.#flushing.intersects(start, end);
  }

  #takeDue(region: Region): Sector[] {
    const due = this.#dueSectors[region];
    const sectors = [...due].map((index): Sector => ({ region, index, words: this.#words(region, index) }));
    due.clear();
    return sectors;
  }

  #words(region: Region, index: number): Uint32Array {
    const bitmaps = region === "hot" ? [this.#hot.bits] : [this.#missed, this.#volatile, this.#flushing];
    const words = emptyWords();
    const first = (index * BITS_PER_SECTOR) / 32;
    for (let at = 0; at < words.length; at++) {
      let word = 0;
      for (const bitmap of bitmaps) word |= bitmap.word(first + at);
      words[at] = word;
    }
    return words;
  }

  /** The guest goes on: the file is removed, or, where that fails too, its tenure is not shown any more. */
  async #break(error: Error): Promise<void> {
    if (this.#isBroken) return;
    this.#isBroken = true;
    await this.#removeFile();
    this.#options.onBroken(error, !this.#isHaunted);
  }

  /** It can't be trusted any more. Where it can't be removed either, that is tried again with each flush. */
  async #removeFile(): Promise<void> {
    const { directory, disk } = this.#options;
    this.#isHaunted = await directory.remove(dirtyMapName(disk)).then(
      () => false,
      () => true,
    );
  }
}

function blockOf(offset: number): number {
  return Math.floor(offset / DIRTY_BLOCK_BYTES);
}

function blockAfter(end: number): number {
  return Math.ceil(end / DIRTY_BLOCK_BYTES);
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
