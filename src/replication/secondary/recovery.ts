/**
 * How a secondary is started: what its state directory says, whether it may be trusted, and how the node goes on from there.
 *
 * Invariant: nothing is written before the directory is found to be that of these disks.
 */
import { MetadataError } from "../../errors.js";
import { findForeignDisk, identifyDisks } from "../../meta/disk-identity.js";
import {
  checkDisks,
  newSecondaryMetadata,
  readMetadata,
  type SecondaryMetadata,
} from "../../meta/metadata.js";
import type { StateDirectory } from "../../meta/state-directory.js";
import type { DiskGroup } from "./disk-group.js";
import type { EpochStore } from "./epoch.js";
import type { Failover } from "./failover.js";
import type { MetadataKeeper } from "../metadata-keeper.js";
import { asSecondary, type SecondaryStart } from "../roles.js";
import type { NamedDisk } from "../named-disk.js";
import type { SecondaryStages } from "./stages.js";
import { hasChangedDisks, resumedStage } from "../stage.js";
import type { WriterTracker } from "./writer-tracker.js";

export interface SecondaryState {
  readonly metadata: SecondaryMetadata;
  /** Whether there was no metadata yet. */
  readonly isNew: boolean;
  /** Whether the directory was a primary's, or a promoted node's, until now. */
  readonly hasChangedRole: boolean;
}

/** @throws MetadataError if the state directory can't be trusted or belongs to other disks; StateError if a failover is under way */
export async function readSecondaryState(
  directory: StateDirectory,
  disks: readonly NamedDisk[],
  start: SecondaryStart,
): Promise<SecondaryState> {
  const identities = await identifyDisks(disks, true);
  const known = await readMetadata(directory);
  if (known !== null) checkDisks(directory, known.disks, identities);
  const found = known ?? newSecondaryMetadata(identities);
  const metadata = asSecondary(found, start);
  // Before-images and what a primary knows of this node belong to the disks as they were.
  const foreign = known === null ? null : findForeignDisk(known.disks, identities, disks);
  if (foreign !== null && (metadata.generation !== null || metadata.stage !== "none")) {
    throw new MetadataError(
      "foreign-disk",
      `${foreign.reason}: ${directory.path} does not belong to it: put the disk back as it was, or remove the directory, which costs a full copy`,
    );
  }
  return { metadata, isNew: known === null, hasChangedRole: found !== metadata };
}

/** @throws MetadataError if there are overlays that no metadata tells anything of */
export async function refuseLeftovers({ path }: StateDirectory, store: EpochStore): Promise<void> {
  const leftover = await store.anyFile();
  if (leftover === null) return;
  throw new MetadataError(
    "missing",
    `${path}/metadata.json is missing although ${leftover} is there: restore it, or remove the directory, which costs a full copy`,
  );
}

export interface RecoveryParts {
  readonly disks: readonly NamedDisk[];
  readonly metadata: MetadataKeeper<SecondaryMetadata>;
  readonly store: EpochStore;
  readonly group: DiskGroup;
  readonly stages: SecondaryStages;
  readonly failover: Failover;
  readonly tracker: WriterTracker;
}

/** Takes up where the node stopped or crashed, in the epoch and stage on record. @throws MetadataError if a log is missing or damaged */
export async function recover(parts: RecoveryParts): Promise<void> {
  const { disks, metadata, store, group, stages, failover, tracker } = parts;
  const { epoch, failoverTarget: target, cleanShutdown, logs, mixed } = metadata.current;
  const stage = resumedStage(metadata.current);
  const overlays =
    stage === "none" || stage === "done"
      ? null
      : await store.recover(epoch, logs).catch((error: unknown) => {
          throw withRemedy(error, metadata.current);
        });
  if (overlays === null) await store.removeAllBut(null);
  else if (mixed !== null) overlays.distrust(mixed);
  stages.recovered(stage, target);
  if (stage !== "none" && stage !== "running") failover.refuseWriters();
  await metadata.save({ cleanShutdown: false, logs: [], disks: await identifyDisks(disks, false) });
  if (stage === "none") return;
  if (overlays === null || target !== null) {
    await failover.resume(overlays, target);
    return;
  }
  // Also after a failover that could not begin: the views are what they were.
  group.resume(overlays);
  tracker.resume();
  if (cleanShutdown) return;
  tracker.writeFailed("the secondary was not shut down cleanly and may have lost acknowledged writes");
}

/** The overlays can't be trusted: what the disks hold without them depends on where the node was. */
function withRemedy(error: unknown, metadata: SecondaryMetadata): unknown {
  if (!(error instanceof MetadataError) || error.code === "version") return error;
  const { mixed, failoverTarget } = metadata;
  const isMerging = failoverTarget === "checkpoint" && hasChangedDisks(metadata);
  const copy = "if the primary is alive, remove the state directory: it copies everything";
  const remedy =
    mixed === null && !isMerging
      ? `the disks hold all that was received: ${copy}; if it is lost, start repl-primary on them with a new --state-dir`
      : `the disks are ${isMerging ? "half of what the failover makes of them" : `no whole (${mixed ?? ""})`}: restore it; or, ${copy}`;
  return new MetadataError(error.code, `${error.message}: ${remedy}`, { cause: error });
}
