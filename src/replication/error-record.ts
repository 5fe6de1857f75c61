/** What is remembered of errors, so that a status can show them: the first one, and how many. */
import type { RequestFailure } from "../block/failure.js";
import { describeError, errnoOf } from "../errors.js";
import type { RecordedError } from "../status.js";

export class ErrorRecord {
  #first: RecordedError | null = null;
  #count = 0;

  get(): RecordedError | null {
    return this.#first === null ? null : { ...this.#first, count: this.#count };
  }

  /** @returns whether it is the first since the last clear() */
  add(disk: string, failure: RequestFailure): boolean {
    this.#count++;
    if (this.#first !== null) return false;
    this.#first = {
      operation: failure.operation,
      errno: errnoOf(failure.error),
      disk,
      offsetBytes: failure.offset,
      lengthBytes: failure.lengthBytes,
      count: 1,
      firstAt: new Date().toISOString(),
      message: describeError(failure.error),
    };
    return true;
  }

  clear(): void {
    this.#first = null;
    this.#count = 0;
  }
}
