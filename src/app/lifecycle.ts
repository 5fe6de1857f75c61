/** What a node has opened, closed again in reverse order: at the end of its life, or when its start fails half way. */
import { asError } from "../errors.js";

export class Lifecycle {
  readonly #closers: ((failure: Error | null) => Promise<void>)[] = [];

  /**
   * To be closed before everything that was added earlier.
   * @param close is told the first failure of what was closed before it
   */
  add(close: (failure: Error | null) => Promise<void>): void {
    this.#closers.push(close);
  }

  /** Closes everything, whatever fails; throws the first failure. */
  async close(): Promise<void> {
    let failure: Error | null = null;
    for (let close = this.#closers.pop(); close !== undefined; close = this.#closers.pop()) {
      try {
        await close(failure);
      } catch (error) {
        failure ??= asError(error);
      }
    }
    if (failure !== null) throw failure;
  }
}
