/**
 * A bound on memory that requests hold, served in order of arrival: who finds it used up waits.
 *
 * Invariants: taken bytes never exceed the limit, except that a single request larger than the limit is admitted
 * alone; nobody overtakes, so a large request can't starve. While it is drawn down the limit falls with what is given back.
 */
import assert from "node:assert/strict";
import { Deferred } from "../deferred.js";

/** Of what is given back while the memory is drawn down so much is not taken again: who waits goes on, at a quarter of the pace. */
const DRAWN_DOWN_PART = 3 / 4;

export class MemoryBudget {
  readonly limitBytes: number;
  #takenBytes = 0;
  /** Less than `limitBytes` while it is drawn down. */
  #allowedBytes: number;
  #drawnDown: { readonly toBytes: number; readonly reached: Deferred<void> } | null = null;
  readonly #waiting: { readonly bytes: number; readonly admit: () => void }[] = [];

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
    this.#allowedBytes = limitBytes;
  }

  get takenBytes(): number {
    return this.#takenBytes;
  }

  /** Takes the bytes at once and returns true, if nobody waits and they fit. */
  tryTake(bytes: number): boolean {
    if (this.#waiting.length > 0 || !this.#fits(bytes)) return false;
    this.#takenBytes += bytes;
    return true;
  }

  /** Whether so many bytes more go past the limit, as against what it is while the memory is drawn down. */
  wouldExceed(bytes: number): boolean {
    return this.#takenBytes + bytes > this.limitBytes;
  }

  take(bytes: number): Promise<void> {
    if (this.tryTake(bytes)) return Promise.resolve();
    return new Promise((resolve) => this.#waiting.push({ bytes, admit: resolve }));
  }

  give(bytes: number): void {
    this.#takenBytes -= bytes;
    if (this.#drawnDown !== null) {
      const { toBytes, reached } = this.#drawnDown;
      this.#allowedBytes = Math.max(toBytes, this.#allowedBytes - bytes * DRAWN_DOWN_PART);
      if (this.#takenBytes <= toBytes) reached.resolve();
    }
    this.#admit();
  }

  /**
   * Has what is taken fall to `toBytes`, while others go on taking, more slowly. Once at a time.
   * @returns when it has; call what it resolves with when that much may be exceeded again
   */
  async drawDown(toBytes: number): Promise<() => void> {
    assert(this.#drawnDown === null, "drawn down already");
    const reached = new Deferred<void>();
    this.#drawnDown = { toBytes, reached };
    this.#allowedBytes = Math.max(toBytes, Math.min(this.#takenBytes, this.limitBytes));
    if (this.#takenBytes > toBytes) await reached.promise;
    return () => {
      this.#drawnDown = null;
      this.#allowedBytes = this.limitBytes;
      this.#admit();
    };
  }

  #admit(): void {
    for (let next = this.#waiting[0]; next !== undefined && this.#fits(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift();
      this.#takenBytes += next.bytes;
      next.admit();
    }
  }

  #fits(bytes: number): boolean {
    return this.#takenBytes === 0 || this.#takenBytes + bytes <= this.#allowedBytes;
  }
}
