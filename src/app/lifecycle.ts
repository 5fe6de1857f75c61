/** What a node has opened, closed again in reverse order: at the end of its life, or when its start fails half way. */
import { asError } from "../errors.js";

export class Lifecycle {
  readonly #closers: (() => Promise<void>)[] = [];

  /** To be closed before everything that was added earlier. */
  add(close: () => Promise<void>): void {
    this.#closers.push(close);
  }

  /** Closes everything, whatever fails; throws the first failure. */
  async close(): Promise<void> {
    let failure: Error | null = null;
    for (let close = this.#closers.pop(); close !== undefined; close = this.#closers.pop()) {
      try {
        await close();
      } catch (error) {
        failure ??= asError(error);
      }
    }
    if (failure !== null) throw failure;
  }
}
