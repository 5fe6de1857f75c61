/**
 * Checkpoints as the primary takes them: finds an instant at which both sides are the same and tells the secondary.
 *
 * Invariant: from the moment no write is under way until the secondary has answered, no write begins; if it does not
 * answer, the link is destroyed before the next write. So the checkpoint holds exactly the writes before it.
 */
import type { Gate } from "../../block/gate.js";
import { afterRunning, type Clock } from "../../clock.js";
import { asError, LinkError, ReplError, StateError } from "../../errors.js";
import { Deferred } from "../../deferred.js";
import type { FailedCheckpoint } from "../protocol.js";
import { Serial } from "../serial.js";

/** How long after its instant a checkpoint may take to become durable on the secondary. */
const DURABLE_TIMEOUT_MS = 60_000;

export interface CheckpointerParts {
  /** Every guest's writes pass it. */
  readonly gate: Gate;
  /**
   * Resolves when little of what was sent to the replica is unanswered: guests have to wait for the rest. Keeps it so until what it
   * resolves with is called.
   */
  readonly drawDown: () => Promise<() => void>;
  /** Resolves when the replica has answered everything that was sent to it. */
  readonly drain: () => Promise<void>;
  /** Why there can be no checkpoint now, or null. */
  readonly refusal: () => string | null;
  /** Number of the epoch to begin. */
  readonly nextEpoch: () => number;
  /** Has the secondary do beforehand, while guests go on, what needs no instant. */
  readonly prepare: () => Promise<void>;
  /** Called at the instant; what it returns is told whether everything before the instant became durable. */
  readonly atInstant: () => (isDurable: boolean) => void;
  /** Has the secondary begin it. */
  readonly send: (epoch: number) => Promise<void>;
  /** Both sides are in the epoch. */
  readonly onCheckpoint: (epoch: number, pauseMs: number) => void;
  readonly clock: Clock;
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
   * @throws StateError with the reason if it is refused, ReplError "checkpoint-failed" if it does not become durable
   */
  checkpoint(): Promise<number> {
    return this.#serial.run(() => this.#checkpoint());
  }

  /**
   * As checkpoint(), and when it is durable `then` runs before any later write: both sides are the same all through.
   * Writes wait for as long as that takes.
   */
  checkpointAndHold<T>(then: (epoch: number) => Promise<T>): Promise<T> {
    return this.#serial.run(async () => {
      const { gate, clock } = this.#parts;
      const startMs = await this.#shut();
      try {
        const epoch = await this.#begin();
        this.#parts.onCheckpoint(epoch, clock.nowMs() - startMs);
        await this.#durable(epoch);
        return await then(epoch);
      } finally {
        gate.reopen();
      }
    });
  }

  /** The secondary says that an epoch is durable. */
  durable(epoch: number): void {
    if (this.#awaited !== null && epoch >= this.#awaited.epoch) this.#awaited.durable.resolve(undefined);
  }

  /** The secondary says that an epoch is not durable. */
  failed({ epoch, reason }: FailedCheckpoint): void {
    if (epoch !== this.#awaited?.epoch) return;
    this.#awaited.durable.reject(
      new ReplError("checkpoint-failed", `checkpoint failed on the secondary: ${reason}`),
    );
  }

  /** The link is lost: nobody will say whether the checkpoint became durable. */
  linkLost(reason: Error): void {
    this.#awaited?.durable.reject(reason);
  }

  async #checkpoint(): Promise<number> {
    const { gate, onCheckpoint, clock } = this.#parts;
    const startMs = await this.#shut();
    let epoch: number;
    try {
      epoch = await this.#begin();
    } finally {
      gate.reopen();
    }
    onCheckpoint(epoch, clock.nowMs() - startMs);
    await this.#durable(epoch);
    return epoch;
  }

  /** Shuts the gate, as late as can be. @returns since when guests wait */
  async #shut(): Promise<number> {
    const { gate, drawDown, prepare, clock } = this.#parts;
    this.#refuse();
    const rise = await drawDown();
    try {
      // The replica may have gone meanwhile, or lack something.
      this.#refuse();
      await prepare();
      const startMs = clock.nowMs();
      await gate.shut();
      return startMs;
    } finally {
      rise();
    }
  }

  /** Both sides enter the next epoch; the gate is shut. @returns its number */
  async #begin(): Promise<number> {
    const { drain, send, nextEpoch, atInstant } = this.#parts;
    await drain();
    // A write may have failed while it was waited for.
    this.#refuse();
    const epoch = nextEpoch();
    const durable = new Deferred<undefined>();
    this.#awaited = { epoch, durable };
    const known = atInstant();
    durable.promise.then(
      () => {
        known(true);
      },
      () => {
        known(false);
      },
    );
    try {
      await send(epoch);
    } catch (error) {
      durable.reject(asError(error));
      throw error;
    }
    return epoch;
  }

  /** Resolves when the epoch that was begun is durable on the secondary. */
  async #durable(epoch: number): Promise<void> {
    const durable = this.#awaited?.durable;
    if (durable === undefined) return;
    const cancel = afterRunning(this.#parts.clock, DURABLE_TIMEOUT_MS, () => {
      durable.reject(
        new LinkError("timeout", `epoch ${epoch} is not durable after ${DURABLE_TIMEOUT_MS} ms`),
      );
    });
    try {
      await durable.promise;
    } finally {
      cancel();
      this.#awaited = null;
    }
  }

  #refuse(): void {
    const refusal = this.#parts.refusal();
    if (refusal !== null) throw new StateError("checkpoint-refused", `checkpoint refused: ${refusal}`);
  }
}
