/**
 * Work that nobody waits for, begun together: one turn of the event loop, one write of the log and one wake-up of the disk's
 * thread for many requests, and nothing in the way of the acknowledgements of the others.
 *
 * Invariant: what has joined begins within PATIENCE_MS, and at once when there is much of it or somebody waits.
 */
import type { Cancel, Clock } from "../../clock.js";
import { Deferred } from "../../deferred.js";

/** At 5,000 writes a second a dozen begin together; a client that waits for the disk hurries it. */
const PATIENCE_MS = 4;
/** What a turn of the event loop may be long for. */
const MANY_REQUESTS = 16;
const MANY_BYTES = 256 * 1024;

export class CommonStart {
  readonly #clock: Clock;
  #start: Deferred<void> | null = null;
  #requests = 0;
  #lengthBytes = 0;
  #cancelPatience: Cancel | null = null;
  #isDue = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Resolves when the work begins: after all acknowledgements of the turn of the event loop that it falls in. */
  join(lengthBytes: number, isAwaited: boolean): Promise<void> {
    const start = (this.#start ??= new Deferred<void>());
    this.#requests++;
    this.#lengthBytes += lengthBytes;
    if (isAwaited || this.#requests >= MANY_REQUESTS || this.#lengthBytes >= MANY_BYTES) this.hurry();
    else this.#cancelPatience ??= this.#clock.after(PATIENCE_MS, this.#begin);
    return start.promise;
  }

  /** Somebody waits for what has joined. */
  hurry(): void {
    if (this.#start === null || this.#isDue) return;
    this.#isDue = true;
    setImmediate(this.#begin);
  }

  readonly #begin = (): void => {
    this.#cancelPatience?.();
    const start = this.#start;
    this.#cancelPatience = null;
    this.#start = null;
    this.#isDue = false;
    this.#requests = 0;
    this.#lengthBytes = 0;
    start?.resolve();
  };
}
