/**
 * What the replica lacks, block by block (DRBD: the bitmap; QEMU: a dirty bitmap).
 *
 * A block is *missed* if the replica may not have its newest content: resync has to send it. It is *volatile* if the
 * replica acknowledged it and may still lose it in a power loss: once the link is lost it counts as missed.
 *
 * Invariants: a block leaves `missed` only when its whole newest content was acknowledged by the replica; it leaves
 * `volatile` only through a flush of the replica that began after that acknowledgement.
 *
 * The map is in memory: after a restart of the primary everything counts as missed (describe()).
 */
import { Bitmap } from "./bitmap.js";

/** Coarse enough that a terabyte costs 2 MiB a bitmap, fine enough that a hot block costs little to send again. */
export const DIRTY_BLOCK_BYTES = 64 * 1024;

export class DirtyMap {
  readonly sizeBytes: number;
  readonly #missed: Bitmap;
  #volatile: Bitmap;
  #flushing: Bitmap;
  #isFlushing = false;
  #tenure: string | null = null;

  constructor(sizeBytes: number) {
    this.sizeBytes = sizeBytes;
    const blocks = Math.ceil(sizeBytes / DIRTY_BLOCK_BYTES);
    this.#missed = new Bitmap(blocks);
    this.#volatile = new Bitmap(blocks);
    this.#flushing = new Bitmap(blocks);
  }

  /** The name of the time that this map tells of, as the replica gave it; null: it tells nothing of any replica. */
  get tenure(): string | null {
    return this.#tenure;
  }

  /** Bytes that resync still has to send, in whole blocks. */
  get missedBytes(): number {
    return Math.min(this.#missed.count * DIRTY_BLOCK_BYTES, this.sizeBytes);
  }

  /** Whether the replica acknowledged blocks that no flush has covered yet. */
  get hasVolatile(): boolean {
    return this.#volatile.count > 0;
  }

  get isFlushing(): boolean {
    return this.#isFlushing;
  }

  /** The replica may not have this content. */
  missed(offset: number, lengthBytes: number): void {
    this.#missed.set(blockOf(offset), blockAfter(offset + lengthBytes));
  }

  /**
   * Whose lack this map tells from now on.
   * @param tenure the replica's name for the time from now on; null: it has none
   * @param isKnown whether the replica knows the map's tenure: if not it is another one, or was written by somebody
   * else, and lacks everything
   */
  describe(tenure: string | null, isKnown: boolean): Promise<void> {
    if (!isKnown) this.#missed.setAll();
    this.#tenure = tenure;
    return Promise.resolve();
  }

  /** The replica acknowledged a write; that alone makes no missed block whole. */
  acknowledged(offset: number, lengthBytes: number): void {
    this.#volatile.set(blockOf(offset), blockAfter(offset + lengthBytes));
  }

  /** The replica acknowledged the whole newest content of these blocks, which are aligned to DIRTY_BLOCK_BYTES. */
  resynced(offset: number, lengthBytes: number): void {
    this.acknowledged(offset, lengthBytes);
    this.#missed.clear(blockOf(offset), blockAfter(offset + lengthBytes));
  }

  /** A flush of the replica begins: it will cover what was acknowledged up to now. One at a time. */
  beginFlush(): void {
    if (this.#isFlushing) throw new Error("dirty map: one flush at a time");
    this.#isFlushing = true;
    [this.#volatile, this.#flushing] = [this.#flushing, this.#volatile];
  }

  endFlush(isDurable: boolean): void {
    if (!isDurable) this.#volatile.add(this.#flushing);
    this.#flushing.clearAll();
    this.#isFlushing = false;
  }

  /** The link is gone: whatever the replica had only in memory has to be sent again. */
  linkLost(): void {
    this.#missed.add(this.#volatile);
    this.#missed.add(this.#flushing);
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
}

function blockOf(offset: number): number {
  return Math.floor(offset / DIRTY_BLOCK_BYTES);
}

function blockAfter(end: number): number {
  return Math.ceil(end / DIRTY_BLOCK_BYTES);
}
