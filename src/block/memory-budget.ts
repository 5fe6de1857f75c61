/**
 * A bound on memory that requests hold, served in order of arrival: who finds it used up waits.
 *
 * Invariants: taken bytes never exceed the limit, except that a single request larger than the limit is admitted
 * alone; nobody overtakes, so a large request can't starve.
 */
export class MemoryBudget {
  readonly limitBytes: number;
  #takenBytes = 0;
  readonly #waiting: { readonly bytes: number; readonly admit: () => void }[] = [];

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
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

  take(bytes: number): Promise<void> {
    if (this.tryTake(bytes)) return Promise.resolve();
    return new Promise((resolve) => this.#waiting.push({ bytes, admit: resolve }));
  }

  give(bytes: number): void {
    this.#takenBytes -= bytes;
    for (let next = this.#waiting[0]; next !== undefined && this.#fits(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift();
      this.#takenBytes += next.bytes;
      next.admit();
    }
  }

  #fits(bytes: number): boolean {
    return this.#takenBytes === 0 || this.#takenBytes + bytes <= this.limitBytes;
  }
}
