/**
 * Work that nobody waits for, begun together: one turn of the event loop, one write of the log and one wake-up of the disk's
 * thread for many requests, and nothing in the way of the acknowledgements of the others.
 *
 * Invariant: what has joined begins within PATIENCE_MS, and at once when there is much of it or somebody waits.
 */
import type { Cancel, Clock } from "../../clock.js";

/** At 5,000 writes a second a dozen and more begin together; a client that waits for the disk ends the wait. */
const PATIENCE_MS = 4;
/** This much begins at once: more would make one turn of the event loop too long. */
const MANY_REQUESTS = 16;
const MANY_BYTES = 256 * 1024;

export class CommonStart<Work> {
  readonly #clock: Clock;
  readonly #onStart: (together: readonly Work[]) => void;
  #joined: Work[] = [];
  #lengthBytes = 0;
  #cancelPatience: Cancel | null = null;
  #isDue = false;

  /** @param onStart gets what has joined, in order; called after the acknowledgements of that turn of the event loop are sent */
  constructor(clock: Clock, onStart: (together: readonly Work[]) => void) {
    this.#clock = clock;
    this.#onStart = onStart;
  }

  /** @param isAwaited somebody waits for it: it begins at the end of this turn of the event loop */
  join(work: Work, lengthBytes: number, isAwaited: boolean): void {
    this.#joined.push(work);
    this.#lengthBytes += lengthBytes;
    if (isAwaited || this.#joined.length >= MANY_REQUESTS || this.#lengthBytes >= MANY_BYTES) this.hurry();
    else this.#cancelPatience ??= this.#clock.after(PATIENCE_MS, this.#start);
  }

  /** Somebody waits for what has joined. */
  hurry(): void {
    if (this.#joined.length === 0 || this.#isDue) return;
    this.#isDue = true;
    setImmediate(this.#start);
  }

  readonly #start = (): void => {
    this.#cancelPatience?.();
    this.#cancelPatience = null;
    this.#isDue = false;
    this.#lengthBytes = 0;
    const together = this.#joined;
    this.#joined = [];
    if (together.length > 0) this.#onStart(together);
  };
}
