/**
 * Which extents of a disk may be written to without a word on stable storage (DRBD: the activity log).
 *
 * Invariants:
 * - An extent is durably hot before a write to it is issued, and stays so while one is under way.
 * - It cools down only when nothing of it is under way or volatile, and after its part of the dirty map was made
 *   durable with no write since.
 *
 * The life of an extent, and what a crash makes of it:
 *
 *   cold      its bits in the file count, block by block
 *   heating   begin() found it cold: the next write of the file says that it is hot; who wants to write to it waits for that
 *   hot       all of it counts as missed, whatever its bits say
 *   chosen    by chooseCooling(), for nobody writes to it; as hot, while the disk is flushed
 *   cooling   as hot, while its bits are written; a change that begins now makes it hot again, without a word to the file
 *   cold      cooled(); until the next write of the file says so, a crash takes it for hot
 *
 * No I/O here: the dirty map writes what this tells it to.
 */
import { Bitmap } from "./bitmap.js";

/** Coarse: a working set of 4 GiB costs one sync for each of its extents, once. */
export const EXTENT_BYTES = 4 * 1024 * 1024;
/** As many are hot at a time, besides those that can't cool down yet: what a crash costs a copy of. */
export const MAX_HOT_EXTENTS = 1024;
/** For every so many that are hot, one more is made hot ahead of need. */
const AHEAD_PER_HOT = 8;
const MAX_AHEAD = 64;
/** With more than this hot, extents are made hot ahead of need only where writes come in order: others may have to cool down for them. */
const PLENTY_EXTENTS = MAX_HOT_EXTENTS / 2;
/** So many more than needed are cooled down at a time, since each time costs a flush of the disk. */
const SPARE_EXTENTS = 128;

export class HotExtents {
  /** Hot extents: on stable storage, or in the next write to it. */
  readonly bits: Bitmap;
  readonly #durable: Bitmap;
  /** Written to since the clock's hand came by. */
  readonly #recent: Bitmap;
  readonly #underWay: Uint32Array;
  #heating: number[] = [];
  #hand = 0;

  constructor(sizeBytes: number) {
    const extents = Math.ceil(sizeBytes / EXTENT_BYTES);
    this.bits = new Bitmap(extents);
    this.#durable = new Bitmap(extents);
    this.#recent = new Bitmap(extents);
    this.#underWay = new Uint32Array(extents);
  }

  /** Whether more are hot than should be. */
  get isFull(): boolean {
    return this.bits.count > MAX_HOT_EXTENTS;
  }

  /** A write to the extents [first, last] begins. @returns whether all of them are durably hot */
  begin(first: number, last: number): boolean {
    let isHot = true;
    for (let extent = first; extent <= last; extent++) {
      this.#underWay[extent] = this.#writes(extent) + 1;
      this.#recent.set(extent, extent + 1);
      if (this.#durable.has(extent)) continue;
      isHot = false;
      if (this.bits.has(extent)) continue;
      this.#heat(extent);
    }
    return isHot;
  }

  /**
   * Together with those behind it that are likely to be written to next, more of them the more extents are hot: a sync costs the
   * same for many as for one. Those that nobody does write to cool down first.
   */
  #heat(first: number): void {
    const { count } = this.bits;
    const isLikely = count < PLENTY_EXTENTS || (first > 0 && this.#recent.has(first - 1));
    const room = MAX_HOT_EXTENTS - count;
    const ahead = isLikely ? Math.min(Math.floor(count / AHEAD_PER_HOT), MAX_AHEAD, room - 1) : 0;
    const end = Math.min(first + 1 + Math.max(0, ahead), this.bits.length);
    for (let extent = first; extent < end; extent++) {
      if (this.bits.has(extent)) continue;
      this.bits.set(extent, extent + 1);
      this.#heating.push(extent);
    }
  }

  /** A write to the extents [first, last] is over, on both sides. */
  end(first: number, last: number): void {
    for (let extent = first; extent <= last; extent++) this.#underWay[extent] = this.#writes(extent) - 1;
  }

  /** Those that became hot since the last call: to be written. */
  takeHeating(): number[] {
    const heating = this.#heating;
    this.#heating = [];
    return heating;
  }

  /** That these are hot is on stable storage. */
  heated(extents: readonly number[]): void {
    for (const extent of extents) this.#durable.set(extent, extent + 1);
  }

  /**
   * Extents that may cool down once their part of the map is durable.
   * @param isIdleDue true: all that nobody has written to since the last time; false: only as many as there are too many
   * @param isVolatile whether the replica has something of the extent in memory only
   */
  chooseCooling(isIdleDue: boolean, isVolatile: (extent: number) => boolean): number[] {
    const { isFull } = this;
    if (!isFull && !isIdleDue) return [];
    const cooling = new Set<number>();
    const wanted = isFull ? this.bits.count - MAX_HOT_EXTENTS + SPARE_EXTENTS : Infinity;
    // Twice around if it must be: the first time every extent may have been written to since.
    const rounds = isFull ? 2 : 1;
    for (let steps = rounds * this.bits.count; steps > 0 && cooling.size < wanted; steps--) {
      const next = this.#durable.nextSet(this.#hand);
      const extent = next === -1 ? this.#durable.nextSet(0) : next;
      if (extent === -1) break;
      this.#hand = extent + 1 === this.bits.length ? 0 : extent + 1;
      const isRecent = this.#recent.has(extent);
      this.#recent.clear(extent, extent + 1);
      if (!isRecent && this.#writes(extent) === 0 && !isVolatile(extent)) cooling.add(extent);
    }
    return [...cooling];
  }

  /** Their part of the map is durable. @returns those that did cool down: no write came meanwhile */
  cooled(extents: readonly number[], isVolatile: (extent: number) => boolean): number[] {
    const cold = extents.filter(
      (extent) => !this.#recent.has(extent) && this.#writes(extent) === 0 && !isVolatile(extent),
    );
    for (const extent of cold) {
      this.bits.clear(extent, extent + 1);
      this.#durable.clear(extent, extent + 1);
    }
    return cold;
  }

  #writes(extent: number): number {
    return this.#underWay[extent] ?? 0;
  }
}
