/**
 * A secondary's checkpoints: on whose word one is taken, why it is refused, and the epochs that begin with them.
 *
 * Invariant: no checkpoint is taken while the disks may lack something that their writer believes to be there; nor, unless a primary
 * of ours vouches for it, of what a writer left that was cut off; nor on a manager's word while a primary of ours replicates,
 * whose epochs would have other numbers then.
 *
 * Its operations run one at a time: the caller sees to that.
 */
import { StateError } from "../../errors.js";
import type { DiskGroup } from "./disk-group.js";
import type { EpochChanger } from "./epoch-changer.js";
import type { IoTrouble } from "./io-trouble.js";
import type { WriterSessions } from "./writer-sessions.js";
import type { EpochToBegin, SecondaryStages } from "./stages.js";
import type { SessionId, WriterTracker } from "./writer-tracker.js";

export interface CheckpointRequest {
  /** Who asks; null: a manager, who vouches for nothing. */
  readonly session: SessionId | null;
  /** Number of the epoch to begin; null: the next. */
  readonly epoch: number | null;
}

export interface SecondaryCheckpointsParts {
  readonly stages: SecondaryStages;
  readonly sessions: WriterSessions;
  readonly group: DiskGroup;
  readonly epochs: EpochChanger;
  readonly tracker: WriterTracker;
  readonly trouble: IoTrouble;
}

export class SecondaryCheckpoints {
  readonly #parts: SecondaryCheckpointsParts;

  constructor(parts: SecondaryCheckpointsParts) {
    this.#parts = parts;
  }

  /** Why one would be refused now, or null. */
  refusal(): string | null {
    return this.obstacle() ?? this.#parts.tracker.cutOff;
  }

  /** Why one would be refused although a primary says that nothing is missing, or null. */
  obstacle(): string | null {
    const { stages, group, epochs, tracker } = this.#parts;
    if (stages.stage !== "running") return "Block replication is not running";
    return epochs.obstacle ?? group.failure ?? tracker.gap;
  }

  /**
   * @returns the number of the epoch that began; it is durable later
   * @throws StateError with the reason if it is refused: nothing has changed then
   */
  async take({ session, epoch }: CheckpointRequest): Promise<number> {
    const { stages, sessions, epochs } = this.#parts;
    if (session !== null) sessions.trust(session);
    else if (stages.stage === "running" && sessions.isReserved)
      throw new StateError(
        "checkpoint-refused",
        "checkpoint refused: this node's primary takes them: have it take one (repl-primary checkpoint)",
      );
    const refusal = stages.stage === "running" ? this.refusal() : null;
    if (refusal !== null) throw new StateError("checkpoint-refused", `checkpoint refused: ${refusal}`);
    // The checkpoint that ends the first copy of a primary of ours starts replication.
    const isFirst = stages.stage === "none" && session !== null;
    await stages.apply(isFirst ? { type: "start", mode: "secondary" } : { type: "checkpoint" }, {
      number: epoch,
      lineage: session === null ? {} : sessions.adopted(epoch),
    });
    if (session !== null) this.#mended();
    return epochs.number;
  }

  /** One is about to be taken: what can be done before it is, so that nobody waits for that. */
  async prepare(epoch: number): Promise<void> {
    if (this.#parts.stages.stage === "running") await this.#parts.epochs.prepare(epoch);
  }

  async beginEpoch({ number, lineage }: EpochToBegin): Promise<void> {
    const { group, epochs, tracker } = this.#parts;
    // Before the first write of the epoch, so that none is lost unseen.
    if (group.epoch === null) tracker.begin();
    // Whoever begins one vouches for what it begins on, except a primary that introduces itself: its lineage says why not.
    await epochs.begin(number ?? epochs.number + 1, { mixed: null, ...lineage });
  }

  /** Replication ends without a failover; everything received stays. */
  async dropOverlays(): Promise<void> {
    const { epochs, tracker, trouble } = this.#parts;
    await epochs.end();
    tracker.end();
    trouble.clear();
  }

  #mended(): void {
    this.#parts.trouble.clear();
    this.#parts.stages.happened("errors-mended");
  }
}
