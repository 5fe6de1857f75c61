/** What is remembered of errors that were not reported to whoever caused them: the first one, and how many. */
import { describeError, errnoOf, type Errno } from "../errors.js";

export interface RecordedError {
  readonly operation: string;
  readonly errno: Errno;
  readonly disk: string;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly count: number;
  /** ISO 8601. */
  readonly firstAt: string;
  readonly message: string;
}

export class ErrorRecord {
  #first: RecordedError | null = null;
  #count = 0;

  get(): RecordedError | null {
    return this.#first === null ? null : { ...this.#first, count: this.#count };
  }

  /** @returns whether it is the first since the last clear() */
  add(
    disk: string,
    failure: { operation: string; offset: number; lengthBytes: number; error: unknown },
  ): boolean {
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
