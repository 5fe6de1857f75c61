/**
 * Group commit: callers that want a flush at the same time share one.
 *
 * Invariants:
 * - At most one flush runs. A caller that comes while one runs is served by the next one, since the running
 *   one may have begun before the caller's writes; all who come meanwhile share that next one.
 * - The first failure is final. The kernel reports a failed write-back once and then forgets the dirty
 *   pages, so that a later fsync succeeds over lost data; here each later flush fails too.
 */
import { asError } from "../errors.js";

export class GroupFlush {
  readonly #sync: () => Promise<void>;
  #running: Promise<void> | null = null;
  #following: Promise<void> | null = null;
  #failure: { readonly error: unknown } | null = null;

  /**
   * @param sync makes everything durable that was written before its call
   * @param failure a flush has failed before; null: none has
   */
  constructor(sync: () => Promise<void>, failure: Error | null = null) {
    this.#sync = sync;
    if (failure !== null) this.#failure = { error: failure };
  }

  /** Resolves when everything written before this call is durable; rejects with the first failure for ever. */
  flush(): Promise<void> {
    if (this.#failure !== null) return Promise.reject(asError(this.#failure.error));
    if (this.#running === null) {
      this.#running = this.#sync().then(this.#succeed, this.#fail);
      return this.#running;
    }
    this.#following ??= this.#running.then(this.#follow, this.#follow);
    return this.#following;
  }

  /** Resolves when no flush runs any more, and none is to follow. */
  async settled(): Promise<void> {
    while (this.#running !== null) await Promise.allSettled([this.#running, this.#following]);
  }

  readonly #succeed = (): void => {
    this.#settled();
  };

  readonly #fail = (error: unknown): never => {
    this.#failure ??= { error };
    this.#settled();
    throw error;
  };

  /** While another one follows, `#running` stays: who comes before that starts must join it, not start a second. */
  #settled(): void {
    if (this.#following === null) this.#running = null;
  }

  readonly #follow = (): Promise<void> => {
    this.#following = null;
    this.#running = null;
    return this.flush();
  };
}
