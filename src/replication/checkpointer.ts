/**
 * Checkpoints as the primary takes them: finds an instant at which both sides are the same and tells the secondary.
 *
 * Invariant: from the moment no write is under way until the secondary has answered, no write begins; if it does not
 * answer, the link is destroyed before the next write. So the checkpoint holds exactly the writes before it.
 */
import type { Gate } from "../block/gate.js";
import { LinkError, StateError } from "../errors.js";
import { Deferred } from "../deferred.js";
import { Serial } from "./serial.js";

/** How long after its instant a checkpoint may take to become durable on the secondary. */
const DURABLE_TIMEOUT_MS = 60_000;

export interface CheckpointerParts {
  /** Every guest's writes pass it. */
  readonly gate: Gate;
  /** Resolves when the replica has answered everything that was sent to it. */
  readonly drain: () => Promise<void>;
  /** Why there can be no checkpoint now, or null. */
  readonly refusal: () => string | null;
  /** Number of the epoch to begin. */
  readonly nextEpoch: () => number;
  /** Has the secondary begin it. */
  readonly send: (epoch: number) => Promise<void>;
  /** Both sides are in the epoch. */
  readonly onCheckpoint: (epoch: number, pauseMs: number) => void;
}

export class Checkpointer {
  readonly #parts: CheckpointerParts;
  readonly #serial = new Serial();
  #awaited: { readonly epoch: number; readonly durable: Deferred<undefined> } | null = null;

  constructor(parts: CheckpointerParts) {
    this.#parts = parts;
  }

  /**
   * Takes a checkpoint; resolves with its epoch when it is durable on the secondary.
   * @throws StateError with the reason if it is refused
   */
  checkpoint(): Promise<number> {
    return this.#serial.run(() => this.#checkpoint());
  }

  /** The secondary says that an epoch is durable. */
  durable(epoch: number): void {
    if (this.#awaited !== null && epoch >= this.#awaited.epoch) this.#awaited.durable.resolve(undefined);
  }

  /** The link is lost: nobody will say whether the checkpoint became durable. */
  linkLost(reason: Error): void {
    this.#awaited?.durable.reject(reason);
  }

  async #checkpoint(): Promise<number> {
    const { gate, drain, send, nextEpoch, onCheckpoint } = this.#parts;
    this.#refuse();
    const durable = new Deferred<undefined>();
    const startMs = performance.now();
    await gate.shut();
    let epoch: number;
    try {
      await drain();
      // A write may have failed while it was waited for.
      this.#refuse();
      epoch = nextEpoch();
      this.#awaited = { epoch, durable };
      await send(epoch);
    } finally {
      gate.reopen();
    }
    onCheckpoint(epoch, performance.now() - startMs);
    const timer = setTimeout(() => {
      durable.reject(
        new LinkError("timeout", `epoch ${epoch} is not durable after ${DURABLE_TIMEOUT_MS} ms`),
      );
    }, DURABLE_TIMEOUT_MS);
    try {
      await durable.promise;
    } finally {
      clearTimeout(timer);
      this.#awaited = null;
    }
    return epoch;
  }

  #refuse(): void {
    const refusal = this.#parts.refusal();
    if (refusal !== null) throw new StateError("checkpoint-refused", `checkpoint refused: ${refusal}`);
  }
}
