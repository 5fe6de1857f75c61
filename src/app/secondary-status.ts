/** A secondary's status, as `x-repl-status` and the command line show it. */
import { DEFAULT_REPLICATION } from "../config/schema.js";
import type { NbdServer } from "../nbd/server/server.js";
import type { Secondary } from "../replication/secondary.js";
import type { DiskStatus, JobStatus, NodeStatus } from "../status.js";
import type { ReplicationServer } from "./replication-server.js";
import { mirrorJobs, primaryDiskPart, primaryPart } from "./primary-status.js";
import { listenerStatus, type NodeParts } from "./run-node.js";

const ROLLBACK_LOST = "a before-image could not be kept: there is no rollback until the next checkpoint";

export function secondaryStatus(
  parts: NodeParts,
  secondary: Secondary,
  writers: ReplicationServer,
  view: NbdServer,
): NodeStatus {
  const { metadata, overlays } = secondary;
  const isLost = overlays?.isBroken === true;
  return {
    role: "secondary",
    version: parts.version,
    stage: secondary.stage,
    epoch: secondary.epoch,
    generation: metadata.generation,
    error: secondary.error,
    checkpointRefusal: secondary.checkpointRefusal(),
    lastCheckpoint:
      metadata.checkpointAt === null ? null : { epoch: metadata.epoch, at: metadata.checkpointAt },
    uptimeSeconds: (Date.now() - parts.startedMs) / 1000,
    stateDirectory: parts.directory.path,
    disks: secondary.disks.map((_disk, index) => diskStatus(secondary, index)),
    listeners: [
      ...listenerStatus("replication", writers.addresses, writers.peers.length),
      ...listenerStatus("view", view.addresses, view.connections().length),
      ...parts.qmpListeners(),
    ],
    jobs: secondaryJobs(secondary),
    ...(secondary.stage === "done" && {
      primary: primaryPart(secondary.promoted, DEFAULT_REPLICATION, parts.startedMs),
    }),
    secondary: {
      rollback: overlays === null ? "none" : isLost ? "lost" : "available",
      rollbackLostReason: isLost ? ROLLBACK_LOST : null,
      undoBytes: overlays?.undoBytes ?? 0,
      writer: writers.peers[0] ?? null,
    },
  };
}

export function secondaryJobs(secondary: Secondary): JobStatus[] {
  if (secondary.stage === "done") return mirrorJobs(secondary.promoted);
  return secondary.commit === null ? [] : [commitJob(secondary)];
}

/** The merge of a failover, of all disks together. */
export function commitJob(secondary: Secondary): JobStatus {
  const { commit } = secondary;
  const len = commit?.totalBytes ?? 0;
  return {
    id: "commit",
    type: "commit",
    disk: secondary.disks.map(({ name }) => name).join(","),
    offset: commit?.doneBytes ?? len,
    len,
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
