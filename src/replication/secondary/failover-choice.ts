/**
 * What a failover would cost, and why there can be none: asked before it is begun, and changes nothing.
 */
import { StateError } from "../../errors.js";
import type { SecondaryMetadata } from "../../meta/metadata.js";
import type { DiskGroup } from "./disk-group.js";
import type { Epoch } from "./epoch.js";
import type { MetadataKeeper } from "../metadata-keeper.js";
import { hasOwnData, promotionRemedy } from "../roles.js";
import type { SecondaryStages } from "./stages.js";
import { type FailoverTarget, hasChangedDisks, isPromoted } from "../stage.js";
import type { WriterTracker } from "./writer-tracker.js";

/** What is lost by a failover to `to`. */
export interface FailoverOption {
  readonly to: FailoverTarget;
  readonly lost: { readonly bytes: number; readonly seconds: number };
  /** Why it can't be done; null if it can. */
  readonly refusal: string | null;
  /** What to know before choosing it; null if there is nothing. */
  readonly warning: string | null;
}

export interface FailoverChoiceParts {
  readonly stages: SecondaryStages;
  readonly group: DiskGroup;
  readonly metadata: MetadataKeeper<SecondaryMetadata>;
  readonly tracker: WriterTracker;
}

export class FailoverChoice {
  readonly #parts: FailoverChoiceParts;

  constructor(parts: FailoverChoiceParts) {
    this.#parts = parts;
  }

  /** What a failover now would cost, target by target. @throws StateError if there is nothing to fail over */
  options(): FailoverOption[] {
    const { group, metadata, tracker } = this.#parts;
    this.refuseSecond();
    if (group.epoch === null) throw this.#nothing();
    const { checkpointAt, failoverTarget } = metadata.current;
    const begunTo = hasChangedDisks(metadata.current) ? failoverTarget : null;
    return optionsOf(
      group.epoch,
      group.pendingBytes,
      secondsSince(checkpointAt, group.epochSeconds),
      tracker.gap,
    ).map((option) =>
      begunTo === null || option.to === begunTo
        ? option
        : { ...option, refusal: `the failover to ${begunTo} has changed the disks already` },
    );
  }

  /** @throws StateError if a failover is under way or done, to whichever target */
  refuseSecond(): void {
    const { stage } = this.#parts.stages;
    if (isPromoted(stage))
      throw new StateError("promoted", `failover is ${stage === "done" ? "done" : "under way"} already`);
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
}

/**
 * @param pendingBytes received, and not in the overlays yet
 * @param gap why the replica may have holes, or null
 */
function optionsOf(
  epoch: Epoch,
  pendingBytes: number,
  secondsSinceCheckpoint: number,
  gap: string | null,
): FailoverOption[] {
  let received = pendingBytes;
  let speculative = 0;
  for (const { hidden, active } of epoch.overlays) {
    received += hidden.mappedBytes;
    speculative += active.mappedBytes;
  }
  return [
    {
      to: "checkpoint",
      lost: { bytes: received, seconds: received > 0 ? secondsSinceCheckpoint : 0 },
      refusal: epoch.lost === null ? null : `the last checkpoint is lost: ${epoch.lost}`,
      warning: null,
    },
    {
      to: "latest",
      lost: { bytes: speculative, seconds: speculative > 0 ? secondsSinceCheckpoint : 0 },
      refusal: null,
      warning: gap === null ? null : `what was received may have holes: ${gap}`,
    },
  ];
}

/** @param epochSeconds as DiskGroup.epochSeconds */
function secondsSince(checkpointAt: string | null, epochSeconds: number | null): number {
  if (checkpointAt === null) return 0;
  return epochSeconds ?? Math.max(0, (Date.now() - Date.parse(checkpointAt)) / 1000);
}
