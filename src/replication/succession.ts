/**
 * A secondary takes its primary's place: by a failover, to either target, or because the primary hands over.
 *
 * Invariants:
 * - From the fence on, no replication write reaches a disk: the export is closed before the view becomes the disk.
 * - The checkpoint is gone to only if it is whole when the last write has been taken.
 * - `promoted` is the primary that the node is, from the instant on at which its view becomes writable as one.
 */
import type { Logger } from "pino";
import { StateError } from "../errors.js";
import type { SecondaryMetadata } from "../meta/metadata.js";
import type { StateDirectory } from "../meta/state-directory.js";
import type { Commit } from "./commit.js";
import type { DiskGroup } from "./disk-group.js";
import type { Epoch } from "./epoch.js";
import type { EpochChanger } from "./epoch-changer.js";
import { Failover, type FailoverOption, failoverOptions } from "./failover.js";
import type { MetadataKeeper } from "./metadata-keeper.js";
import type { OwnData } from "./own-data.js";
import type { Primary } from "./primary.js";
import type { WriterSessions } from "./writer-sessions.js";
import { guestExportsOf, type PrimarySettings, promote, tellChanges } from "./promotion.js";
import { hasOwnData, promotionRemedy } from "./roles.js";
import type { Reserve } from "./reserve.js";
import type { SecondaryCheckpoints } from "./secondary-checkpoints.js";
import type { SecondaryStages } from "./secondary-stages.js";
import type { Serial } from "./serial.js";
import { type FailoverTarget, hasChangedDisks, isPromoted } from "./stage.js";
import { TAKE_OVER_FAILED } from "./take-over.js";
import type { WriterTracker } from "./writer-tracker.js";

export interface SuccessionParts {
  readonly directory: StateDirectory;
  /** How it replicates once it takes a replica. */
  readonly asPrimary: PrimarySettings;
  readonly stages: SecondaryStages;
  readonly group: DiskGroup;
  readonly epochs: EpochChanger;
  readonly metadata: MetadataKeeper<SecondaryMetadata>;
  readonly serial: Serial;
  readonly own: OwnData;
  readonly tracker: WriterTracker;
  /** Let go of when a failover begins. */
  readonly reserve: Reserve;
  readonly sessions: WriterSessions;
  readonly checkpoints: SecondaryCheckpoints;
  /** As WriterSessionsParts.disconnectWriters. */
  readonly disconnectWriters: () => Promise<void>;
  /** The background part of a failover has ended; the stage says so already. */
  readonly ended: (failure: Error | null) => void;
  readonly log: Logger;
}

export class Succession {
  readonly #parts: SuccessionParts;
  readonly #failover: Failover;
  #isFenced = false;
  /** Whether the failover was asked for before this start. */
  #isResumed = false;
  #promoted: Primary | null = null;
  /** Why the failover failed the last time in this life, or null. */
  #failure: Error | null = null;

  constructor(parts: SuccessionParts) {
    this.#parts = parts;
    const { group, epochs, metadata, serial, log } = parts;
    this.#failover = new Failover({
      group,
      epochs,
      metadata,
      serial,
      promote: async (overlays, target) => {
        const primary = await this.#promote();
        await tellChanges(primary, metadata.current, overlays, target, this.#isResumed, log);
        return primary;
      },
      onEnd: (failure) => {
        this.#ended(failure);
      },
      log,
    });
  }

  /**
   * This node as a primary, which can take a replica of its own.
   * @throws StateError if it was not promoted, or its failover is not over
   */
  get promoted(): Primary {
    const { stage } = this.#parts.stages;
    if (stage === "done" && this.#promoted !== null) return this.#promoted;
    throw new StateError(
      "not-promoted",
      isPromoted(stage) || stage === "failover-failed"
        ? "the failover is not over: this node can't take a replica before it is"
        : "this node is a secondary: only after a failover can it take a replica of its own",
    );
  }

  /** The commit of a failover, while there is one. */
  get commit(): Commit | null {
    return this.#failover.commit;
  }

  /** Resolves when the background part of a failover has ended, one way or the other. */
  get ended(): Promise<void> {
    return this.#failover.ended;
  }

  /** Why the replication exports take nobody, or null. */
  exportRefusal(): string | null {
    return this.#isFenced
      ? "this node was promoted by a failover and takes no replication writes any more: start the old primary's node as its secondary (repl-secondary on its state directory), or this one with --demote"
      : null;
  }

  /** Which promise this node can't keep because of its failover, or as a primary, or null. */
  brokenPromise(): string | null {
    if (this.#parts.stages.stage === "failover-failed") {
      const why = this.#failure === null ? "" : `: ${this.#failure.message}`;
      return `the failover has failed${why}`;
    }
    return this.#promoted?.brokenPromise() ?? null;
  }

  /** What a failover now would cost, target by target. @throws StateError if there is nothing to fail over */
  options(): FailoverOption[] {
    const { stages, group, metadata, tracker } = this.#parts;
    if (isPromoted(stages.stage)) {
      throw new StateError(
        "promoted",
        `failover is ${stages.stage === "done" ? "done" : "under way"} already`,
      );
    }
    if (group.epoch === null) throw this.#nothing();
    const { checkpointAt } = metadata.current;
    const seconds = checkpointAt === null ? 0 : Math.max(0, (Date.now() - Date.parse(checkpointAt)) / 1000);
    const begunTo = hasChangedDisks(metadata.current) ? metadata.current.failoverTarget : null;
    return failoverOptions(group.epoch, group.pendingBytes, seconds, tracker.gap).map((option) =>
      begunTo === null || option.to === begunTo
        ? option
        : { ...option, refusal: `the failover to ${begunTo} has changed the disks already` },
    );
  }

  /** @throws StateError if there is no checkpoint to fail over to, or nothing at all: a stop that failed has given it up */
  refuseLostCheckpoint(target: FailoverTarget | null): void {
    const { stages, group } = this.#parts;
    if (target !== null && stages.stage === "running" && group.epoch === null) throw this.#nothing();
    const lost = group.epoch?.lost ?? null;
    if (target !== "checkpoint" || lost === null) return;
    const refusal = `the last checkpoint is lost, ${lost}: wait for the next one, or fail over to the latest content instead (--to latest)`;
    throw new StateError("checkpoint-lost", `failover refused: ${refusal}`);
  }

  /**
   * The replication exports are closed, and what they took is on the disks.
   * @throws StateError if that has cost the checkpoint to fail over to: there is no failover then
   */
  async fence(target: FailoverTarget): Promise<void> {
    const { group } = this.#parts;
    const wasFenced = this.#isFenced;
    this.#isFenced = true;
    group.setFenced(true);
    try {
      await this.#settleWrites(target);
    } catch (error) {
      // Whoever was cut off may come back: nothing is on record, and the node is what it was.
      this.#isFenced = wasFenced;
      group.setFenced(wasFenced);
      throw error;
    }
  }

  async #settleWrites(target: FailoverTarget): Promise<void> {
    const { group, epochs, reserve, disconnectWriters } = this.#parts;
    await disconnectWriters();
    await group.drain();
    await epochs.settled();
    // The last writes may have cost the checkpoint. Before anything is on record, the other target is still open.
    this.refuseLostCheckpoint(target);
    // Nothing is received any more that could take the room.
    await reserve.release();
  }

  /** The failover begins, behind the fence; its end is told to `ended`. */
  begin(target: FailoverTarget): Promise<void> {
    const { epoch } = this.#parts.group;
    if (epoch === null) throw new Error("failover without overlays");
    return this.#failover.begin(epoch, target);
  }

  /** As Failover.begun(). */
  begun(): Promise<void> {
    return this.#failover.begun();
  }

  /** A primary hands over at a checkpoint. @throws StateError if this node can't take over: nothing has changed then */
  async beginTakeOver(primary: string, epoch: number): Promise<void> {
    const { stages } = this.#parts;
    if (isPromoted(stages.stage) || stages.stage === "failover-failed") return;
    const refusal = this.#takeOverRefusal(primary, epoch);
    if (refusal !== null) throw new StateError("no-take-over", `take-over refused: ${refusal}`);
    await stages.apply({ type: "stop", failover: "latest" });
  }

  /** @returns this node's new generation @throws StateError if it has not taken over, or in another epoch, or that is undecided */
  takenOver(epoch: number): string {
    const { stages, metadata } = this.#parts;
    const { generation, epoch: number } = metadata.current;
    if (stages.stage === "failover-failed") {
      const remedy = "mend what its log names, then fail over there again";
      throw new StateError(TAKE_OVER_FAILED, `the take-over has begun and failed: ${remedy}`);
    }
    if (stages.stage !== "done" || generation === null || number !== epoch) {
      throw new StateError("no-take-over", `take-over refused: this node was promoted in epoch ${number}`);
    }
    return generation;
  }

  /** After a restart, in a stage from which replication doesn't go on. */
  refuseWriters(): void {
    this.#isFenced = true;
    this.#parts.group.setFenced(true);
  }

  /** After a restart: goes on where the failover was. @param overlays null: it was done */
  async resume(overlays: Epoch | null, target: FailoverTarget | null): Promise<void> {
    const { group, stages } = this.#parts;
    this.#isResumed = true;
    if (overlays === null) {
      await group.showDisks(async () => {
        group.setFronts(guestExportsOf(await this.#promote()));
      });
      return;
    }
    group.adopt(overlays);
    if (stages.stage === "failover") await this.begin(target ?? "checkpoint");
    else if (target === "latest") await this.#failover.showLatest(overlays);
    else await this.#failover.showCommit(overlays);
  }

  /** The node stops: a merge is interrupted, and what the node is as a primary is closed. */
  async close(): Promise<void> {
    await this.#promoted?.close();
    await this.#failover.interrupt();
  }

  #takeOverRefusal(primary: string, epoch: number): string | null {
    const { group, epochs, checkpoints, sessions } = this.#parts;
    const refusal = checkpoints.obstacle();
    if (refusal !== null) return refusal;
    if (!sessions.isLast(primary)) return "another primary introduced itself last";
    if (epochs.number !== epoch) return `this node is in epoch ${epochs.number}, not ${epoch}`;
    const isSame = group.epoch?.overlays.every(({ hidden }) => hidden.mappedBytes === 0) === true;
    return isSame && group.pendingBytes === 0 ? null : "something was received since the checkpoint";
  }

  /** There is nothing to fail over to: says why, if something is known to be wrong with the disks, and what to do. */
  #nothing(): StateError {
    const { stages, metadata } = this.#parts;
    const { mixed } = metadata.current;
    const isStopping = stages.stage === "running";
    const remedy = `wait for the end of a primary's copy; or, ${promotionRemedy(metadata.current, isStopping)}`;
    const own = hasOwnData(metadata.current)
      ? ": this node came back and has its own data still; to go on with that, start it as a primary again (repl-primary on its state directory)"
      : "";
    const given = metadata.current.handedOver
      ? `, for this node handed its disks over to another one: if that is lost, ${promotionRemedy(metadata.current)}`
      : own;
    const why = mixed === null ? given : `, for ${mixed}: ${remedy}`;
    return new StateError(
      "not-running",
      `Block replication is not running: there is nothing to fail over to${why}`,
    );
  }

  async #promote(): Promise<Primary> {
    const { directory, asPrimary, group, metadata, own, log } = this.#parts;
    // From here on they are the dirty maps of the primary that this node becomes.
    await own.close();
    this.#promoted ??= await promote(group.disks, metadata, { directory, log, ...asPrimary });
    return this.#promoted;
  }

  #ended(failure: Error | null): void {
    const { stages, log } = this.#parts;
    this.#failure = failure;
    if (failure !== null) log.error({ error: failure.message }, "failover failed");
    if (stages.stage === "failover") {
      const failed = this.#failover.hasBegun ? "commit-failed" : "begin-failed";
      stages.happened(failure === null ? "commit-succeeded" : failed);
    }
    this.#parts.ended(failure);
  }
}
