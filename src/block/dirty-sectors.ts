/**
 * What a dirty map's file lacks of its memory, sector by sector: which sectors the next write replaces, and what with.
 *
 * Invariant: a sector with bits in the file that memory no longer has, or won't have after the next flush of the replica, is stale
 * until it has been written without them.
 *
 * No I/O here.
 */
import { BITS_PER_SECTOR, emptyWords, type Region, type Sector } from "../meta/dirty-map-format.js";
import type { Bitmap } from "./bitmap.js";
import { blockAfter, blockOf, DIRTY_BLOCK_BYTES, type DirtyBlocks } from "./dirty-blocks.js";
import { EXTENT_BYTES } from "./hot-extents.js";

const BLOCKS_PER_EXTENT = EXTENT_BYTES / DIRTY_BLOCK_BYTES;
const EXTENTS_PER_SECTOR = BITS_PER_SECTOR / BLOCKS_PER_EXTENT;

export class DirtySectors {
  readonly #blocks: DirtyBlocks;
  /** Extents. */
  readonly #hot: Bitmap;
  readonly #due: Record<Region, Set<number>> = { hot: new Set(), blocks: new Set() };
  /** Of blocks. */
  readonly #stale = new Set<number>();

  constructor(blocks: DirtyBlocks, hot: Bitmap) {
    this.#blocks = blocks;
    this.#hot = hot;
  }

  /** Takes up a sector of the file; those of extents come first. All of a hot extent is missed. */
  restore({ region, index, words }: Sector): void {
    const firstWord = (index * BITS_PER_SECTOR) / 32;
    for (const [at, word] of words.entries()) {
      if (region === "hot") this.#hot.addWord(firstWord + at, word);
      else this.#blocks.addMissedWord(firstWord + at, word);
    }
    if (region === "hot") return;
    const { sizeBytes } = this.#blocks;
    for (const extent of this.#extentsOf(index)) {
      const offset = extent * EXTENT_BYTES;
      if (this.#hot.has(extent)) this.#blocks.missed(offset, Math.min(EXTENT_BYTES, sizeBytes - offset));
    }
  }

  /** The blocks of this range are due. */
  markDue(offset: number, lengthBytes: number): void {
    this.#markBlocksDue(blockOf(offset), blockAfter(offset + lengthBytes));
  }

  /** All blocks are due. */
  markAllDue(): void {
    this.#markBlocksDue(0, this.#blocks.length);
  }

  /** The blocks of this extent are due. */
  markBlocksDue(extent: number): void {
    this.#markBlocksDue(extent * BLOCKS_PER_EXTENT, (extent + 1) * BLOCKS_PER_EXTENT);
  }

  /** Whether this extent is hot is due. */
  markHeatDue(extent: number): void {
    this.#due.hot.add(sectorOf(extent));
  }

  markAllHeatDue(): void {
    for (let extent = 0; extent < this.#hot.length; extent += BITS_PER_SECTOR) this.markHeatDue(extent);
  }

  #markBlocksDue(start: number, end: number): void {
    for (let sector = sectorOf(start); sector <= sectorOf(Math.max(start, end - 1)); sector++) {
      if (sector * BITS_PER_SECTOR < this.#blocks.length) this.#due.blocks.add(sector);
    }
  }

  get hasStale(): boolean {
    return this.#stale.size > 0;
  }

  /** Blocks of this range are no longer missed. */
  markStale(offset: number, lengthBytes: number): void {
    const last = sectorOf(blockAfter(offset + lengthBytes) - 1);
    for (let sector = sectorOf(blockOf(offset)); sector <= last; sector++) this.#stale.add(sector);
  }

  /** Unsure blocks that cooled down while there was no link are set in the file, as missed, and won't be missed any more. */
  markUnsureStale(): void {
    for (let unsure = this.#blocks.nextUnsure(0); unsure !== -1;) {
      const sector = sectorOf(unsure);
      this.#stale.add(sector);
      unsure = this.#blocks.nextUnsure((sector + 1) * BITS_PER_SECTOR);
    }
  }

  markStaleDue(): void {
    for (const sector of this.#stale) this.#due.blocks.add(sector);
  }

  /** What is due, as it is now. @returns also whether writing that clears bits in the file */
  takeDue(): { sectors: Sector[]; forgets: boolean } {
    const forgets = this.#refresh(this.#due.blocks);
    return { sectors: [...this.#take("hot"), ...this.#take("blocks")], forgets };
  }

  /** Whether something of this extent is volatile. */
  readonly isVolatile = (extent: number): boolean =>
    this.#blocks.isVolatile(extent * BLOCKS_PER_EXTENT, (extent + 1) * BLOCKS_PER_EXTENT);

  /**
   * These are about to be written: they are stale no more, but for those that keep bits of a resync, which the next flush may cover.
   * @returns whether any of them was
   */
  #refresh(sectors: ReadonlySet<number>): boolean {
    let wasStale = false;
    for (const sector of sectors) {
      if (!this.#stale.has(sector)) continue;
      wasStale = true;
      if (!this.#hasVolatileCopy(sector)) this.#stale.delete(sector);
    }
    return wasStale;
  }

  /** Whether a resync left something volatile there. What guests left is hot, and its sector is written when it cools down. */
  #hasVolatileCopy(sector: number): boolean {
    if (!this.#blocks.isVolatile(sector * BITS_PER_SECTOR, (sector + 1) * BITS_PER_SECTOR)) return false;
    for (const extent of this.#extentsOf(sector)) {
      if (!this.#hot.has(extent) && this.isVolatile(extent)) return true;
    }
    return false;
  }

  /** Those whose blocks are in this sector. */
  *#extentsOf(sector: number): Iterable<number> {
    const first = sector * EXTENTS_PER_SECTOR;
    const end = Math.min(first + EXTENTS_PER_SECTOR, this.#hot.length);
    for (let extent = first; extent < end; extent++) yield extent;
  }

  #take(region: Region): Sector[] {
    const due = this.#due[region];
    const sectors = [...due].map((index): Sector => ({ region, index, words: this.#words(region, index) }));
    due.clear();
    return sectors;
  }

  #words(region: Region, index: number): Uint32Array {
    const bits = region === "hot" ? this.#hot : this.#blocks;
    const words = emptyWords();
    const first = (index * BITS_PER_SECTOR) / 32;
    for (let at = 0; at < words.length; at++) words[at] = bits.word(first + at);
    return words;
  }
}

function sectorOf(bit: number): number {
  return Math.floor(bit / BITS_PER_SECTOR);
}
