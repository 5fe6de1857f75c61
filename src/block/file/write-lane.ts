/**
 * Short writes of one disk on a thread of its own, many to a wake-up.
 *
 * libuv's pool is woken for each write and wakes the event loop for each; on two busy cores that costs more than the write.
 * Here all writes of a turn of the event loop are one wake-up each way. And a disk that stalls holds up nobody else's
 * file calls. Measured in docs/performance.md.
 *
 * Invariants:
 * - A request is in the ring or waits, in order of arrival; those in the ring are completed in order.
 * - A slot and its bytes are reused only after the request was completed.
 * - After the thread has failed every request fails; nothing is retried behind the caller's back.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { constants } from "node:os";
import { Worker } from "node:worker_threads";

import { Control, LANE_MAXIMUM_BYTES, type LaneRing, laneRing, RING_REQUESTS } from "./write-lane-ring.js";
import type { LaneThreadData } from "./write-lane-thread.js";

/** The heap of a thread that makes no garbage. */
const THREAD_HEAP_MB = 8;

/** @param doneBytes how much of a failed write is known to be done */
type Callback = (errno: number, doneBytes: number) => void;

interface WaitingWrite {
  readonly from: Buffer;
  readonly offset: number;
  readonly callback: Callback;
}

export class WriteLane {
  readonly #ring: LaneRing = laneRing();
  readonly #worker: Worker;
  readonly #callbacks: (Callback | null)[] = new Array<Callback | null>(RING_REQUESTS).fill(null);
  readonly #waiting: WaitingWrite[] = [];
  readonly #exited: Promise<void>;
  #submitted = 0;
  #completed = 0;
  /** Where the next bytes go; those from #tail to here are in use, around the end. */
  #head = 0;
  #tail = 0;
  #usedBytes = 0;
  #isOnline = false;
  #isNotifying = false;
  #failure: Error | null = null;

  /** @param fd to be closed only after close() */
  constructor(fd: number) {
    const workerData: LaneThreadData = { shared: this.#ring.shared, fd };
    this.#worker = new Worker(new URL("./write-lane-thread.js", import.meta.url), {
      workerData,
      resourceLimits: { maxOldGenerationSizeMb: THREAD_HEAP_MB, maxYoungGenerationSizeMb: 1 },
    });
    this.#worker.once("online", () => {
      this.#isOnline = true;
    });
    this.#worker.once("error", (error) => {
      this.#fail(error);
    });
    this.#exited = new Promise((resolve) => {
      this.#worker.once("exit", () => {
        resolve();
      });
    });
    this.#awaitCompletions();
  }

  /** Resolves when the thread runs. */
  async online(): Promise<void> {
    if (!this.#isOnline) await once(this.#worker, "online");
  }

  /** Whether it takes a write of this length now, or another way is better. */
  takes(lengthBytes: number): boolean {
    return this.#isOnline && lengthBytes <= LANE_MAXIMUM_BYTES;
  }

  /** Writes all of `from`, which is lent until the callback is called, with 0 or an errno. */
  write(from: Buffer, offset: number, callback: Callback): void {
    assert(from.length > 0 && from.length <= LANE_MAXIMUM_BYTES);
    if (this.#failure !== null) callback(constants.errno.EIO, 0);
    else if (this.#waiting.length > 0 || !this.#submit(from, offset, callback)) {
      this.#waiting.push({ from, offset, callback });
    }
  }

  /** Ends the thread; every request has been called back. */
  async close(): Promise<void> {
    Atomics.store(this.#ring.control, Control.closing, 1);
    Atomics.add(this.#ring.control, Control.submitted, 1);
    Atomics.notify(this.#ring.control, Control.submitted);
    // Whoever waits for completions sees that there will be none.
    Atomics.notify(this.#ring.control, Control.completed);
    await this.#exited;
  }

  /** False if there is no room now. */
  #submit(from: Buffer, offset: number, callback: Callback): boolean {
    if (this.#submitted - this.#completed === RING_REQUESTS) return false;
    const start = this.#take(from.length);
    if (start === null) return false;
    const { bytes, offsets, starts, lengths } = this.#ring;
    const slot = this.#submitted % RING_REQUESTS;
    from.copy(bytes, start);
    offsets[slot] = offset;
    starts[slot] = start;
    lengths[slot] = from.length;
    this.#callbacks[slot] = callback;
    this.#submitted++;
    if (!this.#isNotifying) {
      this.#isNotifying = true;
      process.nextTick(this.#notify);
    }
    return true;
  }

  readonly #notify = (): void => {
    this.#isNotifying = false;
    Atomics.store(this.#ring.control, Control.submitted, this.#submitted | 0);
    Atomics.notify(this.#ring.control, Control.submitted);
  };

  /** Where so many bytes in one piece are free, or null. */
  #take(lengthBytes: number): number | null {
    const capacity = this.#ring.bytes.length;
    const start = this.#head + lengthBytes <= capacity ? this.#head : 0;
    const skipped = start === this.#head ? 0 : capacity - this.#head;
    if (this.#usedBytes + skipped + lengthBytes > capacity) return null;
    this.#usedBytes += skipped + lengthBytes;
    this.#head = start + lengthBytes;
    return start;
  }

  #awaitCompletions(): void {
    const { control } = this.#ring;
    const wait = Atomics.waitAsync(control, Control.completed, this.#completed | 0);
    const next = wait.async ? wait.value : Promise.resolve(wait.value);
    void next.then(() => {
      if (this.#failure !== null || Atomics.load(control, Control.closing) !== 0) return;
      this.#reap(Atomics.load(control, Control.completed));
      this.#awaitCompletions();
    });
  }

  /** @param completed as the thread counts: modulo 2^32 */
  #reap(completed: number): void {
    const { starts, lengths, errors, doneBytes } = this.#ring;
    while ((this.#completed | 0) !== completed) {
      const slot = this.#completed % RING_REQUESTS;
      const callback = this.#callbacks[slot];
      this.#callbacks[slot] = null;
      this.#free((starts[slot] ?? 0) + (lengths[slot] ?? 0));
      this.#completed++;
      callback?.(errors[slot] ?? 0, doneBytes[slot] ?? 0);
    }
    for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
      if (!this.#submit(next.from, next.offset, next.callback)) break;
      this.#waiting.shift();
    }
  }

  /** Requests are freed in the order of their submission: all up to here. */
  #free(end: number): void {
    const capacity = this.#ring.bytes.length;
    const freed = end > this.#tail ? end - this.#tail : capacity - this.#tail + end;
    this.#tail = end;
    this.#usedBytes -= freed;
    if (this.#usedBytes === 0) {
      this.#head = 0;
      this.#tail = 0;
    }
  }

  #fail(error: Error): void {
    this.#failure = error;
    const { EIO } = constants.errno;
    const waiting = this.#waiting.splice(0);
    for (; this.#completed < this.#submitted; this.#completed++) {
      const slot = this.#completed % RING_REQUESTS;
      const callback = this.#callbacks[slot];
      this.#callbacks[slot] = null;
      callback?.(EIO, 0);
    }
    for (const { callback } of waiting) callback(EIO, 0);
  }
}
