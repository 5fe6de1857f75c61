/**
 * When a replica is to make durable what it acknowledged.
 *
 * A flush makes the replica's kernel write out at once what is about to be overwritten again, on the disk that guests' writes wait
 * for. So flushes of a disk under load take a part of the time only. At each look a disk is flushed that is idle; that is being copied
 * to, since the copy's progress counts from a flush on; or whose dirty map is crowded, since only a flush lets extents cool down.
 */

/** The part of the time that flushes may take. */
const FLUSH_PART = 0.1;
/** But disks under load are flushed this often, however long that takes. */
const MAXIMUM_INTERVAL_MS = 5000;

/** Of a disk's dirty map. */
export interface FlushState {
  /** Counts up. */
  readonly acknowledgements: number;
  /** More than 0: a copy to the replica is under way, or will be. */
  readonly missedBytes: number;
  /** As DirtyMap.isCrowded. */
  readonly isCrowded: boolean;
}

export class FlushPace {
  #nextMs = -Infinity;
  /** What each disk had counted when it was last looked at. */
  #seen: readonly number[] = [];

  /** The disks, by their places, that are due now. To be followed by flushed(). */
  due(nowMs: number, disks: readonly FlushState[]): ReadonlySet<number> {
    const isDue = nowMs >= this.#nextMs;
    const due = new Set<number>();
    for (const [index, { acknowledgements, missedBytes, isCrowded }] of disks.entries()) {
      const isResting = acknowledgements === this.#seen[index];
      if (isDue || isResting || missedBytes > 0 || isCrowded) due.add(index);
    }
    this.#seen = disks.map(({ acknowledgements }) => acknowledgements);
    return due;
  }

  /** The flushes of those that were due at `begunMs` are over. */
  flushed(begunMs: number, endedMs: number): void {
    if (begunMs < this.#nextMs) return;
    const tookMs = endedMs - begunMs;
    this.#nextMs = begunMs + Math.min(tookMs / FLUSH_PART, MAXIMUM_INTERVAL_MS);
  }
}
