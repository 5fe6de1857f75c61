/**
 * A primary's checkpoints: when they are taken, why one is refused, and what becomes of the dirty maps with each.
 *
 * Invariants:
 * - No checkpoint is taken while the replica lacks anything, or the primary disk may.
 * - Periodic ones are taken between `begin()` and `end()`, that is while a replica is attached.
 */
import type { Logger } from "pino";
import type { Gate } from "../../block/gate.js";
import type { MemoryBudget } from "../../block/memory-budget.js";
import type { Cancel, Clock } from "../../clock.js";
import { formatSize } from "../../config/units.js";
import { describeError, LinkError } from "../../errors.js";
import type { CheckpointFailure } from "../../status.js";
import { Checkpointer } from "./checkpointer.js";
import type { Link } from "./link.js";
import { missedBytesOf, type PrimaryDisk, troubleOf } from "./disk.js";
import type { PrimaryLineage } from "./lineage.js";
import type { FailedCheckpoint } from "../protocol.js";

/** In ack mode `async`: what guests have to wait for at a checkpoint. A second, over a link of 1 MB/s. */
const UNANSWERED_BYTES = 1024 * 1024;

export interface PrimaryCheckpointsParts {
  /** 0: on demand only. */
  readonly intervalMs: number;
  readonly disks: readonly PrimaryDisk[];
  /** Every guest's writes pass it. */
  readonly gate: Gate;
  /** As MirrorOptions.memory, of all disks. */
  readonly memory: MemoryBudget;
  readonly link: () => Link | null;
  readonly lineage: PrimaryLineage;
  readonly clock: Clock;
  readonly log: Logger;
}

/** A checkpoint that the secondary confirmed as durable. */
export interface ReportedCheckpoint {
  readonly epoch: number;
  /** When it was asked for. */
  readonly at: string;
}

export class PrimaryCheckpoints {
  readonly #parts: PrimaryCheckpointsParts;
  readonly #checkpointer: Checkpointer;
  #intervalMs: number;
  #last: ReportedCheckpoint | null = null;
  #failure: CheckpointFailure | null = null;
  /** Of the next periodic one; null: there are none. */
  #cancelTimer: Cancel | null = null;

  constructor(parts: PrimaryCheckpointsParts) {
    this.#parts = parts;
    this.#intervalMs = parts.intervalMs;
    const { disks, gate, memory, link, lineage, clock, log } = parts;
    this.#checkpointer = new Checkpointer({
      gate,
      drawDown: () => memory.drawDown(UNANSWERED_BYTES),
      drain: async () => {
        for (const { mirror } of disks) await mirror.drain();
      },
      refusal: () => this.refusal(),
      nextEpoch: () => lineage.epoch + 1,
      // Not before it is known that one may be taken: what goes on record here is of data that a replica has.
      prepare: async () => {
        const epoch = lineage.epoch + 1;
        await Promise.all([lineage.share(), lineage.announce(epoch), link()?.prepareCheckpoint(epoch)]);
      },
      atInstant: () => this.#beginFlush(),
      send: async (epoch) => {
        // Another one than was prepared, if the secondary has told of a higher one meanwhile.
        void lineage.announce(epoch);
        await lineage.tell(async () => link()?.checkpoint(epoch));
      },
      onCheckpoint: (epoch, pauseMs) => {
        lineage.reached(epoch);
        log.debug({ epoch, pauseMs }, "checkpoint");
      },
      clock,
    });
  }

  /** Between periodic ones; 0: on demand only. */
  get intervalMs(): number {
    return this.#intervalMs;
  }

  /** The last one since this start. */
  get last(): ReportedCheckpoint | null {
    return this.#last;
  }

  /** Those that were tried in vain since the last one was taken, with the replica that is attached; null: none. */
  get failure(): CheckpointFailure | null {
    return this.#parts.link() === null ? null : this.#failure;
  }

  /** Why one would be refused now, or null. */
  refusal(): string | null {
    const link = this.#parts.link();
    if (link === null) return "no replica is attached";
    if (!link.hasControl) return "a manager drives the checkpoints of this replica (no --replica-qmp)";
    return this.hole();
  }

  /** Why the replica that is attached may lack something, or null, also if there is none. */
  hole(): string | null {
    const link = this.#parts.link();
    if (link === null) return null;
    const missedBytes = missedBytesOf(this.#parts.disks);
    if (link.state !== "replicating") {
      const missed = missedBytes > 0 ? `: ${formatSize(missedBytes)} are not replicated` : "";
      return `the replica is ${link.state}${missed}`;
    }
    const trouble = troubleOf(this.#parts.disks);
    if (trouble !== null) return trouble;
    return missedBytes > 0 ? `${formatSize(missedBytes)} are not replicated` : null;
  }

  /** Resolves with the epoch when it is durable on the secondary. @throws StateError if it is refused */
  async take(): Promise<number> {
    try {
      const at = new Date().toISOString();
      const epoch = await this.#checkpointer.checkpoint();
      this.#last = { epoch, at };
      this.#failure = null;
      return epoch;
    } catch (error) {
      this.#record(describeError(error));
      throw error;
    }
  }

  /** As Checkpointer.checkpointAndHold(). */
  takeAndHold<T>(then: (epoch: number) => Promise<T>): Promise<T> {
    return this.#checkpointer.checkpointAndHold(then);
  }

  /** How often one is taken from the next begin() on. */
  setInterval(intervalMs: number): void {
    this.#intervalMs = intervalMs;
  }

  /** A replica is attached. */
  begin(): void {
    this.#failure = null;
    this.#awaitNext();
  }

  /** The replica is about to be left. */
  end(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = null;
  }

  /** The secondary says that an epoch is durable. */
  durable(epoch: number): void {
    this.#checkpointer.durable(epoch);
  }

  /** The secondary says that an epoch is not durable. */
  failed(failed: FailedCheckpoint): void {
    // It is in that epoch, even one whose start it takes back: the next one has another number.
    this.#parts.lineage.reached(failed.epoch);
    this.#checkpointer.failed(failed);
  }

  linkLost(): void {
    this.#checkpointer.linkLost(
      new LinkError("link-lost", "the link was lost before the checkpoint was durable"),
    );
  }

  /** The replica has everything: a checkpoint makes it one to go back to. */
  takeAfterResync(): void {
    if (this.#parts.link()?.hasControl !== true) return;
    this.take().catch((error: unknown) => {
      this.#parts.log.warn({ error: describeError(error) }, "no checkpoint after the resync");
    });
  }

  #awaitNext(): void {
    if (this.#intervalMs === 0) return;
    const cancel = this.#parts.clock.after(this.#intervalMs, () => {
      void this.#takePeriodic().finally(() => {
        // Else the replica was left, and another one may be attached by now, whose checkpoints are awaited already.
        if (this.#cancelTimer === cancel) this.#awaitNext();
      });
    });
    this.#cancelTimer = cancel;
  }

  async #takePeriodic(): Promise<void> {
    // While the replica is away or resyncing there is nothing to take, which the status says, and the link has logged.
    const refusal = this.refusal();
    if (refusal !== null) {
      this.#record(`checkpoint refused: ${refusal}`);
      return;
    }
    const before = this.#failure?.reason;
    try {
      await this.take();
    } catch (error) {
      const reason = describeError(error);
      // A reason that lasts is news once; the status has how often it was tried in vain.
      this.#parts.log[reason === before ? "debug" : "warn"]({ error: reason }, "checkpoint failed");
    }
  }

  /** Not where a manager drives the checkpoints: whoever asks this node for one is told that it can't take any. */
  #record(reason: string): void {
    if (this.#parts.link()?.hasControl !== true) return;
    const { since, attempts } = this.#failure ?? { since: new Date().toISOString(), attempts: 0 };
    this.#failure = { reason, since, attempts: attempts + 1 };
  }

  /** A checkpoint makes durable on the replica what was acknowledged before it, as a flush does. */
  #beginFlush(): (isDurable: boolean) => void {
    const maps = this.#parts.disks.map(({ dirty }) => dirty).filter(({ isFlushing }) => !isFlushing);
    for (const map of maps) map.beginFlush();
    return (isDurable) => {
      for (const map of maps) map.endFlush(isDurable);
    };
  }
}
