/**
 * What the replica lacks, block by block, in memory (DRBD: the bitmap; QEMU: a dirty bitmap).
 *
 * A block is *missed* if the replica may not have its newest content: resync has to send it. It is *volatile* if the
 * replica acknowledged it and may still lose it in a power loss: once the link is lost it counts as missed, until the replica is
 * found to have lost nothing.
 *
 * Invariants:
 * - A block leaves `missed` only when its whole newest content was acknowledged by the replica; it leaves `volatile` only
 *   through a flush of the replica that began after that acknowledgement.
 * - A block of `unsure` was volatile when the link was lost: the replica had acknowledged its newest content, so that it is missed only
 *   because the replica may have lost that. If the replica that is linked next has lost nothing, such blocks are volatile again.
 * - An acknowledgement that comes while there is no link makes its blocks missed: no flush is sure to cover them.
 */
import { Bitmap } from "./bitmap.js";

/** Coarse enough that a terabyte costs 2 MiB a bitmap, fine enough that a hot block costs little to send again. */
export const DIRTY_BLOCK_BYTES = 64 * 1024;

export class DirtyBlocks {
  readonly sizeBytes: number;
  readonly #missed: Bitmap;
  #volatile: Bitmap;
  #flushing: Bitmap;
  readonly #unsure: Bitmap;
  #isFlushing = false;
  #isLinked = false;
  #acknowledgements = 0;

  constructor(sizeBytes: number) {
    this.sizeBytes = sizeBytes;
    const blocks = Math.ceil(sizeBytes / DIRTY_BLOCK_BYTES);
    this.#missed = new Bitmap(blocks);
    this.#volatile = new Bitmap(blocks);
    this.#flushing = new Bitmap(blocks);
    this.#unsure = new Bitmap(blocks);
  }

  /** How many blocks there are. */
  get length(): number {
    return this.#missed.length;
  }

  /** Bytes that resync still has to send: whole blocks, but for the disk's last one. */
  get missedBytes(): number {
    const blocks = this.#missed.count * DIRTY_BLOCK_BYTES;
    const isLastMissed = this.#missed.count > 0 && this.#missed.has(this.length - 1);
    return isLastMissed ? blocks - (this.length * DIRTY_BLOCK_BYTES - this.sizeBytes) : blocks;
  }

  /** Whether the replica acknowledged blocks that no flush has covered yet. */
  get hasVolatile(): boolean {
    return this.#volatile.count > 0;
  }

  /** How many changes the replica has acknowledged. */
  get acknowledgements(): number {
    return this.#acknowledgements;
  }

  get isFlushing(): boolean {
    return this.#isFlushing;
  }

  /** The replica may lack the content of this range. */
  missed(offset: number, lengthBytes: number): void {
    this.#missed.set(blockOf(offset), blockAfter(offset + lengthBytes));
    if (this.#unsure.count > 0) this.#unsure.clear(blockOf(offset), blockAfter(offset + lengthBytes));
  }

  allMissed(): void {
    this.#missed.setAll();
    this.#unsure.clearAll();
  }

  /** Adds the blocks of one word of bits, in the layout of word(). */
  addMissedWord(index: number, word: number): void {
    this.#missed.addWord(index, word);
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
    for (let run = this.nextMissed(from, Infinity); run !== null; run = this.nextMissed(from, Infinity)) {
      const last = runs.at(-1);
      from = run.offset + run.lengthBytes;
      if (last !== undefined && run.offset - (last[0] + last[1]) <= gapBytes) last[1] = from - last[0];
      else runs.push([run.offset, run.lengthBytes]);
      if (runs.length > maxRuns) return null;
      if (from >= this.sizeBytes) break;
    }
    return runs;
  }

  /** The replica acknowledged a write; that alone makes no missed block whole. */
  acknowledged(offset: number, lengthBytes: number): void {
    this.#acknowledgements++;
    if (this.#isLinked) this.#volatile.set(blockOf(offset), blockAfter(offset + lengthBytes));
    else this.missed(offset, lengthBytes);
  }

  /**
   * The replica acknowledged the whole newest content of these blocks; the range is aligned to DIRTY_BLOCK_BYTES.
   * @returns false if there is no link any more: they stay missed
   */
  resynced(offset: number, lengthBytes: number): boolean {
    if (!this.#isLinked) return false;
    this.acknowledged(offset, lengthBytes);
    this.#missed.clear(blockOf(offset), blockAfter(offset + lengthBytes));
    return true;
  }

  /** A flush of the replica begins: it will cover what was acknowledged up to now. One at a time. */
  beginFlush(): void {
    if (this.#isFlushing) throw new Error("dirty map: one flush at a time");
    this.#isFlushing = true;
    [this.#volatile, this.#flushing] = [this.#flushing, this.#volatile];
  }

  endFlush(isDurable: boolean): void {
    if (!isDurable && this.#isLinked) this.#volatile.add(this.#flushing);
    this.#flushing.clearAll();
    this.#isFlushing = false;
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

  /** The first block from this one on that is missed only if the replica has lost something; or -1. */
  nextUnsure(from: number): number {
    return this.#unsure.nextSet(from);
  }

  /** The next run of missed blocks at or after `from`, as a range of bytes: one block at least, else no longer than `maximumBytes`. */
  nextMissed(from: number, maximumBytes: number): { offset: number; lengthBytes: number } | null {
    const first = this.#missed.nextSet(blockOf(from));
    if (first === -1) return null;
    const last = Math.min(
      this.#missed.nextClear(first),
      // A disk may be smaller than a block: a run of nothing would be asked for again for ever.
      first + Math.max(1, Math.floor(maximumBytes / DIRTY_BLOCK_BYTES)),
    );
    const offset = first * DIRTY_BLOCK_BYTES;
    return { offset, lengthBytes: Math.min(last * DIRTY_BLOCK_BYTES, this.sizeBytes) - offset };
  }

  /** Whether the replica has a block of [start, end) in memory only. */
  isVolatile(start: number, end: number): boolean {
    return this.#volatile.intersects(start, end) || this.#flushing.intersects(start, end);
  }

  /** Missed and volatile blocks: 32 bits, of which bit 0 is block 32 * `index`; zero beyond the end. */
  word(index: number): number {
    return this.#missed.word(index) | this.#volatile.word(index) | this.#flushing.word(index);
  }
}

export function blockOf(offset: number): number {
  return Math.floor(offset / DIRTY_BLOCK_BYTES);
}

export function blockAfter(end: number): number {
  return Math.ceil(end / DIRTY_BLOCK_BYTES);
}
