/**
 * A primary's line of history and its epoch, and what of them has to be on record before data goes on (docs/adr/0001).
 *
 * Invariants:
 * - The present generation is on record as the replica's before a replica is told that it has everything.
 * - Before a change is acknowledged that such a replica lacks, another generation is on record, unless that can't be
 *   written: then the log says so and the guest goes on.
 * - Epochs only grow, also when the replica is another one or comes back from an older state.
 */
import type { Logger } from "pino";
import { describeError } from "../errors.js";
import { branch, type Lineage } from "./generation.js";
import type { PrimaryKeeper } from "./primary-keeper.js";

export class PrimaryLineage {
  readonly #metadata: PrimaryKeeper;
  readonly #log: Logger;
  /** Resolves when it is on record that this side goes on without its replica. */
  #alone: Promise<void> = Promise.resolve();

  constructor(metadata: PrimaryKeeper, log: Logger) {
    this.#metadata = metadata;
    this.#log = log;
  }

  /** The line of history of the data, as of now. */
  get current(): Lineage & { readonly generation: string } {
    return this.#metadata.current;
  }

  get epoch(): number {
    return this.#metadata.current.epoch;
  }

  /** Whether a replica may have the present generation. */
  get isShared(): boolean {
    const { generation, replicaGeneration } = this.#metadata.current;
    return replicaGeneration === generation;
  }

  /** On record before the replica can have it: what is written without it from then on is another line. */
  async share(): Promise<void> {
    const { generation } = this.#metadata.current;
    if (this.#metadata.recorded.replicaGeneration === generation) return;
    await this.#metadata.save({ replicaGeneration: generation });
  }

  /**
   * The guest's data is about to have what the replica has not: another line of history, if the replica may have the
   * present one. Resolves when that is on record.
   */
  goAlone(): Promise<void> {
    if (!this.isShared) return this.#alone;
    this.#alone = this.#metadata.save(branch(this.#metadata.current)).catch((error: unknown) => {
      // An error of the replica never stops the guest. But what it writes now would pass for the replica's line if this node fails too.
      this.#log.error({ error: describeError(error) }, "the new generation could not be written");
    });
    return this.#alone;
  }

  /** The pair is in this epoch, or was. */
  reached(epoch: number): void {
    if (epoch <= this.epoch) return;
    void this.#metadata.saveSoon({ epoch });
  }
}
