/**
 * Work that nobody waits for, begun together: one turn of the event loop, one write of the log and one wake-up of the disk's
 * thread for many requests, and nothing in the way of the acknowledgements of the others.
 *
 * Invariant: what has joined begins within PATIENCE_MS, and at once when there is much of it or somebody waits.
 */
import { Deferred } from "../../deferred.js";

/** At 5,000 writes a second a dozen begin together; a client that waits for the disk hurries it. */
const PATIENCE_MS = 4;
/** What a turn of the event loop may be long for. */
const MANY_REQUESTS = 16;
const MANY_BYTES = 256 * 1024;

export class CommonStart {
  #start: Deferred<void> | null = null;
  #requests = 0;
  #lengthBytes = 0;
  #patience: NodeJS.Timeout | null = null;
  #isDue = false;

  /** Resolves when the work begins: after all acknowledgements of the turn of the event loop that it falls in. */
  join(lengthBytes: number, isAwaited: boolean): Promise<void> {
    const start = (this.#start ??= new Deferred<void>());
    this.#requests++;
    this.#lengthBytes += lengthBytes;
    if (isAwaited || this.#requests >= MANY_REQUESTS || this.#lengthBytes >= MANY_BYTES) this.hurry();
    else this.#patience ??= setTimeout(this.#begin, PATIENCE_MS);
    return start.promise;
  }

  /** Somebody waits for what has joined. */
  hurry(): void {
    if (this.#start === null || this.#isDue) return;
    this.#isDue = true;
    setImmediate(this.#begin);
  }

  readonly #begin = (): void => {
    if (this.#patience !== null) clearTimeout(this.#patience);
    const start = this.#start;
    this.#patience = null;
    this.#start = null;
    this.#isDue = false;
    this.#requests = 0;
    this.#lengthBytes = 0;
    start?.resolve();
  };
}
