/**
 * Holds changes back until something has been recorded that has to be on record before them.
 *
 * Invariant: changes go on in their order of arrival; after a record that failed they are refused, until await() names another.
 */
import { describeError, DeviceError } from "../errors.js";
import type { Passage } from "./filters/held.js";

export class OnRecord implements Passage {
  /** What changes wait for, or are refused by; null: all is on record. */
  #record: Promise<void> | null = null;
  #hasFailed = false;

  /** @param record changes that come from now on wait for it, and are refused if it rejects; null: it is on record already */
  await(record: Promise<void> | null): void {
    if (record === null) {
      if (this.#hasFailed) this.#record = null;
      this.#hasFailed = false;
      return;
    }
    const awaited = record.catch((cause: unknown) => {
      throw new DeviceError("EIO", `it can't be recorded who writes: ${describeError(cause)}`, { cause });
    });
    this.#record = awaited;
    this.#hasFailed = false;
    awaited.then(
      () => {
        if (this.#record === awaited) this.#record = null;
      },
      // Whoever changes something is told.
      () => {
        if (this.#record === awaited) this.#hasFailed = true;
      },
    );
  }

  change(apply: () => Promise<void>): Promise<void> {
    return this.#record === null ? apply() : this.#record.then(apply);
  }

  /** Flushes change nothing. */
  finish(apply: () => Promise<void>): Promise<void> {
    return apply();
  }
}
