/**
 * Time that passes only when nothing else is left to happen: events in their order, one after the other, and between two of
 * them everything that needs no time runs to its end. So a run is the same for the same seed.
 *
 * Invariant: an event's call is made at its instant, after all promises that could settle before it have settled.
 */
import { type Cancel, type Clock, pause } from "../../src/clock.js";

/** Not an expectation: what needs more events will never end. */
const MAX_EVENTS = 400_000;

interface Timed {
  readonly atMs: number;
  readonly sequence: number;
  call: (() => void) | null;
}

export class VirtualTime {
  readonly #queue = new Queue();
  #nowMs = 0;
  #sequence = 0;
  #events = 0;

  get nowMs(): number {
    return this.#nowMs;
  }

  after(ms: number, call: () => void): Cancel {
    const timed: Timed = { atMs: this.#nowMs + Math.max(0, ms), sequence: this.#sequence++, call };
    this.#queue.push(timed);
    return () => {
      timed.call = null;
    };
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.after(ms, resolve));
  }

  /** Lets time pass until the promise has settled. @throws Error when nothing is left that could settle it */
  async until<T>(promise: Promise<T>): Promise<T> {
    const state = { isSettled: false };
    const settled = (): void => {
      state.isSettled = true;
    };
    promise.then(settled, settled);
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve));
      if (state.isSettled) return promise;
      const next = this.#queue.pop();
      if (next === null) throw new Error(`after ${this.#nowMs} ms nothing is left to happen`);
      if (next.call === null) continue;
      if (++this.#events > MAX_EVENTS)
        throw new Error(`no end after ${MAX_EVENTS} events, at ${this.#nowMs} ms`);
      this.#nowMs = next.atMs;
      next.call();
    }
  }
}

/** The clock of one life of a node: what was set goes off no more when that is over. */
export class LifeClock implements Clock {
  readonly #time: VirtualTime;
  readonly #set = new Set<Cancel>();
  #isOver = false;

  constructor(time: VirtualTime) {
    this.#time = time;
  }

  nowMs(): number {
    return this.#time.nowMs;
  }

  after(ms: number, call: () => void): Cancel {
    if (this.#isOver) return () => undefined;
    const cancelEvent = this.#time.after(ms, () => {
      this.#set.delete(cancel);
      call();
    });
    const cancel = (): void => {
      this.#set.delete(cancel);
      cancelEvent();
    };
    this.#set.add(cancel);
    return cancel;
  }

  every(ms: number, call: () => void): Cancel {
    const again = (): void => {
      cancel = this.after(ms, again);
      call();
    };
    let cancel = this.after(ms, again);
    return () => {
      cancel();
    };
  }

  pause(ms: number): Promise<void> {
    return pause(this, ms);
  }

  end(): void {
    this.#isOver = true;
    for (const cancel of [...this.#set]) cancel();
  }
}

/** A binary heap: the earliest first, of two at the same time the one that was set first. */
class Queue {
  readonly #heap: Timed[] = [];

  push(timed: Timed): void {
    const heap = this.#heap;
    let at = heap.push(timed) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.#swapIfEarlier(at, parent)) break;
      at = parent;
    }
  }

  pop(): Timed | null {
    const heap = this.#heap;
    const [first] = heap;
    const last = heap.pop();
    if (first === undefined || last === undefined) return null;
    if (heap.length === 0) return first;
    heap[0] = last;
    for (let at = 0; ;) {
      const [left, right] = [2 * at + 1, 2 * at + 2];
      const smaller = right < heap.length && this.#isEarlier(right, left) ? right : left;
      if (smaller >= heap.length || !this.#swapIfEarlier(smaller, at)) return first;
      at = smaller;
    }
  }

  #swapIfEarlier(one: number, other: number): boolean {
    if (!this.#isEarlier(one, other)) return false;
    const heap = this.#heap;
    const [a, b] = [heap[one], heap[other]];
    if (a === undefined || b === undefined) return false;
    [heap[one], heap[other]] = [b, a];
    return true;
  }

  #isEarlier(one: number, other: number): boolean {
    const [a, b] = [this.#heap[one], this.#heap[other]];
    if (a === undefined || b === undefined) return false;
    return a.atMs < b.atMs || (a.atMs === b.atMs && a.sequence < b.sequence);
  }
}
