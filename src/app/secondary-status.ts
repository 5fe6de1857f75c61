/** A secondary's status, as `x-repl-status` and the command line show it. */
import { DEFAULT_REPLICATION } from "../config/schema.js";
import type { SecondaryMetadata } from "../meta/metadata.js";
import type { NbdServer } from "../nbd/server/server.js";
import type { Secondary } from "../replication/secondary/secondary.js";
import type { DiskStatus, JobStatus, NodeStatus } from "../status.js";
import type { ReplicationServer } from "./replication-server.js";
import { primaryJobs, primaryDiskPart, primaryPart } from "./primary-status.js";
import { clientStatus, listenerStatus, type NodeParts } from "./run-node.js";

export function secondaryStatus(
  parts: NodeParts,
  secondary: Secondary,
  writers: ReplicationServer,
  view: NbdServer,
): NodeStatus {
  const { metadata, overlays } = secondary;
  const lost = overlays?.lost ?? null;
  const mixed = secondary.stage === "none" ? metadata.mixed : null;
  const promoted = secondary.stage === "done" ? secondary.promoted : null;
  return {
    role: "secondary",
    version: parts.version,
    stage: secondary.stage,
    epoch: secondary.epoch,
    generation: metadata.generation,
    error: promoted === null ? secondary.error : promoted.error,
    checkpointRefusal: (promoted ?? secondary).checkpointRefusal(),
    brokenPromise: secondary.brokenPromise(),
    lastCheckpoint: promoted === null ? lastCheckpoint(metadata) : promoted.lastCheckpoint,
    // Not by the wall clock, which may be set.
    uptimeSeconds: process.uptime(),
    stateDirectory: parts.directory.path,
    cache: parts.cache,
    disks: secondary.disks.map((_disk, index) => diskStatus(secondary, index)),
    listeners: [
      ...listenerStatus("replication", writers),
      ...listenerStatus("view", view),
      ...parts.qmpListeners(),
    ],
    clients: [
      ...clientStatus("replication", writers.connections()),
      ...clientStatus("view", view.connections()),
    ],
    jobs: secondaryJobs(secondary),
    ...(promoted !== null && { primary: primaryPart(promoted, DEFAULT_REPLICATION) }),
    secondary: {
      rollback: overlays === null ? "none" : lost === null ? "available" : "lost",
      rollbackLostReason: lost === null ? mixed : `the last checkpoint is lost: ${lost}`,
      undoBytes: overlays?.undoBytes ?? 0,
      conflict: secondary.conflict,
      salvage: secondary.salvage,
      writer: secondary.tracker.peer,
    },
  };
}

function lastCheckpoint({ checkpointAt, epoch }: SecondaryMetadata): NodeStatus["lastCheckpoint"] {
  return checkpointAt === null ? null : { epoch, at: checkpointAt };
}

export function secondaryJobs(secondary: Secondary): JobStatus[] {
  if (secondary.stage === "done") return primaryJobs(secondary.promoted);
  // One that failed is over, until it is tried again.
  const job = secondary.stage === "failover" ? commitJob(secondary) : null;
  return job === null ? [] : [job];
}

/** The merge of a failover, of all disks together; null while there is none, as with one to the latest content. */
export function commitJob({ commit, disks }: Secondary): JobStatus | null {
  if (commit === null) return null;
  return {
    id: "commit",
    type: "commit",
    disk: disks.map(({ name }) => name).join(","),
    offset: commit.doneBytes,
    len: commit.totalBytes,
    elapsedSeconds: commit.elapsedSeconds,
    speed: 0,
    ready: false,
  };
}

function diskStatus(secondary: Secondary, index: number): DiskStatus {
  const disk = secondary.disks[index];
  if (disk === undefined) throw new RangeError(`no disk ${index}`);
  const overlays = secondary.overlays?.overlays[index];
  return {
    name: disk.name,
    path: disk.path,
    sizeBytes: disk.disk.info.sizeBytes,
    secondary: {
      undoBytes: overlays?.hidden.mappedBytes ?? 0,
      activeBytes: overlays?.active.mappedBytes ?? 0,
      pendingBytes: disk.copyBeforeWrite.pendingBytes,
    },
    ...(secondary.stage === "done" && { primary: primaryDiskPart(secondary.promoted, index) }),
  };
}
