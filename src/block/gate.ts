/**
 * A gate that requests pass through and that an operation can shut: after `shut()` resolves nothing is
 * inside, and newcomers wait until `reopen()`. This is how a checkpoint finds its instant.
 *
 * Invariants: `inside` counts the requests between enter and leave; while shut, it only falls;
 * newcomers are admitted in their order of arrival.
 */
export class Gate {
  #inside = 0;
  #shut = false;
  #drained: (() => void) | null = null;
  #waiting: (() => void)[] = [];

  get inside(): number {
    return this.#inside;
  }

  get isShut(): boolean {
    return this.#shut;
  }

  /** Enters at once and returns true, unless the gate is shut. */
  tryEnter(): boolean {
    if (this.#shut) return false;
    this.#inside++;
    return true;
  }

  /** Resolves when the caller is inside. */
  enter(): Promise<void> {
    if (this.tryEnter()) return Promise.resolve();
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  leave(): void {
    this.#inside--;
    if (this.#inside === 0) this.#drained?.();
  }

  /** Resolves when the last request inside has left; nobody enters from now on. Not reentrant. */
  shut(): Promise<void> {
    if (this.#shut) throw new Error("gate is shut already");
    this.#shut = true;
    if (this.#inside === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#drained = (): void => {
        this.#drained = null;
        resolve();
      };
    });
  }

  /** Lets the waiting in and opens for all. */
  reopen(): void {
    this.#shut = false;
    const waiting = this.#waiting;
    this.#waiting = [];
    this.#inside += waiting.length;
    for (const admit of waiting) admit();
  }
}
