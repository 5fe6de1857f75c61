/**
 * A primary's line of history and its epoch, and what of them has to be on record before data goes on (docs/adr/0001).
 *
 * Invariants:
 * - The present generation is on record as the replica's before a replica is told that it has everything.
 * - Before a change is acknowledged that such a replica lacks, another generation is on record, unless that can't be
 *   written: then the guest goes on, and until it could be written, which is tried again, a promise is broken.
 * - Epochs only grow, also when the replica is another one or comes back from an older state.
 * - The number of an epoch is on record before a secondary is asked to begin it, if it can be: who knows of a lower one than that
 *   secondary was asked for is an older copy of this node.
 */
import type { Logger } from "pino";
import type { Cancel, Clock } from "../../clock.js";
import { describeError, StateError } from "../../errors.js";
import { QmpError } from "../../qmp/errors.js";
import { branch, type Lineage } from "../generation.js";
import type { PrimaryFacts, PrimaryKeeper } from "./keeper.js";

/** Between two attempts to record what could not be. */
const RETRY_MS = 1000;

export class PrimaryLineage {
  readonly #metadata: PrimaryKeeper;
  readonly #clock: Clock;
  readonly #log: Logger;
  /** Resolves when it is on record that this side goes on without its replica. */
  #alone: Promise<void> = Promise.resolve();
  /** Why that could not be recorded the last time it was tried; null: it could. */
  #failure: string | null = null;
  #cancelRetry: Cancel | null = null;
  #isClosed = false;
  #epoch: number;
  /**
   * The generation that a replica may have taken over; after a restart the one on record for that. Less than what is on record: that it
   * is about to be told comes first, and may come to nothing. null: none.
   */
  #told: string | null;

  constructor(metadata: PrimaryKeeper, clock: Clock, log: Logger) {
    this.#metadata = metadata;
    this.#clock = clock;
    this.#log = log;
    this.#epoch = metadata.current.epoch;
    this.#told = metadata.current.replicaGeneration;
  }

  /** The line of history of the data, as of now. */
  get current(): Lineage & { readonly generation: string } {
    return this.#metadata.current;
  }

  /** The one that the pair is in. */
  get epoch(): number {
    return this.#epoch;
  }

  /** The highest number that a secondary was, or is about to be, asked to begin, or is in. */
  get knownEpoch(): number {
    return this.#metadata.current.epoch;
  }

  /** Whether a replica may have the present generation. */
  get isShared(): boolean {
    return this.#told === this.#metadata.current.generation;
  }

  /** On record before the replica can have it: what is written without it from then on, in another life of this node too, is another line. */
  async share(): Promise<void> {
    const { generation } = this.#metadata.current;
    if (this.#metadata.recorded.replicaGeneration === generation) return;
    await this.#metadata.save({ replicaGeneration: generation });
  }

  /**
   * Has the replica told that it has everything, by which it takes over the present generation. One that refuses, or is not asked, has
   * not: if each outage then drew another generation, the one that it does have would soon be too old to be remembered.
   * @throws what `tell` does
   */
  async tell(tell: () => Promise<void>): Promise<void> {
    const before = this.#told;
    this.#told = this.#metadata.current.generation;
    try {
      await tell();
    } catch (error) {
      const isRefused = error instanceof StateError || (error instanceof QmpError && error.kind === "state");
      if (isRefused) this.#told = before;
      throw error;
    }
  }

  /**
   * The guest's data is about to have what the replica has not: another line of history, if the replica may have the
   * present one. Resolves when that is on record.
   */
  goAlone(): Promise<void> {
    if (!this.isShared) return this.#alone;
    this.#alone = this.#record(branch(this.#metadata.current));
    return this.#alone;
  }

  /** Which promise can't be kept because the present generation is not on record, or null. */
  brokenPromise(): string | null {
    const { generation } = this.#metadata.current;
    // Whatever else was written has put it on record as well.
    if (this.#failure === null || this.#metadata.recorded.generation === generation) return null;
    return `generation ${generation} is not on record, so that after a crash what guests write without the replica would pass for the replica's: ${this.#failure}`;
  }

  /** Nothing is tried again any more. */
  close(): void {
    this.#isClosed = true;
    this.#cancelRetry?.();
  }

  /** Never rejects: an error of the replica never stops the guest. */
  async #record(change: Partial<PrimaryFacts>): Promise<void> {
    try {
      await this.#metadata.save(change);
      if (this.#failure !== null) this.#log.info("the new generation is on record now");
      this.#failure = null;
    } catch (error) {
      const reason = describeError(error);
      if (reason !== this.#failure)
        this.#log.error({ error: reason }, "the new generation could not be written");
      this.#failure = reason;
      this.#cancelRetry?.();
      if (this.#isClosed) return;
      this.#cancelRetry = this.#clock.after(RETRY_MS, () => {
        if (this.brokenPromise() === null) this.#failure = null;
        else void this.#record({});
      });
    }
  }

  /** The pair is in this epoch, or was. */
  reached(epoch: number): void {
    this.#epoch = Math.max(this.#epoch, epoch);
    void this.announce(epoch);
  }

  /** A secondary may be asked to begin this epoch. Resolves when that is on record, or could not be written, which is logged. */
  async announce(epoch: number): Promise<void> {
    if (epoch <= this.knownEpoch) return;
    // Without it a checkpoint can be taken as well: a crash costs a full copy then.
    await Promise.allSettled([this.#metadata.saveSoon({ epoch })]);
  }
}
