/** A primary's status, as `x-repl-status` and the command line show it. */
import type { PrimaryConfig } from "../config/schema.js";
import { LinkError } from "../errors.js";
import type { NbdServer } from "../nbd/server/server.js";
import type { Primary } from "../replication/primary/primary.js";
import type { Resync } from "../replication/primary/resync.js";
import type { Verify } from "../replication/primary/verify.js";
import type { BlockJobsParts } from "../qmp/commands/block-jobs.js";
import type { Yankable } from "../qmp/commands/yank.js";
import type { DiskStatus, JobStatus, NodeStatus, PrimaryStatus } from "../status.js";
import { clientStatus, listenerStatus, type NodeParts } from "./run-node.js";

export function primaryStatus(
  parts: NodeParts,
  config: PrimaryConfig,
  primary: Primary,
  guests: NbdServer,
): NodeStatus {
  const { metadata } = primary;
  return {
    role: "primary",
    version: parts.version,
    stage: primary.stage,
    epoch: primary.epoch,
    generation: metadata.generation,
    error: primary.error,
    checkpointRefusal: primary.checkpointRefusal(),
    brokenPromise: primary.brokenPromise(),
    lastCheckpoint: primary.lastCheckpoint,
    // Not by the wall clock, which may be set.
    uptimeSeconds: process.uptime(),
    stateDirectory: parts.directory.path,
    cache: parts.cache,
    disks: primary.disks.map((_disk, index) => diskStatus(primary, index)),
    listeners: [...listenerStatus("guest", guests), ...parts.qmpListeners()],
    clients: clientStatus("guest", guests.connections()),
    jobs: primaryJobs(primary),
    primary: primaryPart(primary, config),
  };
}

/** How a node replicates to its replica. */
export function primaryPart(
  primary: Primary,
  config: Pick<PrimaryConfig, "ackMode" | "onReplicaError" | "replicaTimeoutMs">,
): PrimaryStatus {
  const { link, linkSince, linkError, lastReplica, checkpointIntervalMs, checkpointFailure } = primary;
  return {
    ackMode: config.ackMode,
    onReplicaError: config.onReplicaError,
    waitingChanges: primary.waitingChanges,
    newData: primary.newData,
    checkpointIntervalMs,
    replicaTimeoutMs: config.replicaTimeoutMs,
    checkpointFailure,
    link: {
      state: link?.state ?? "detached",
      replica: lastReplica?.uri ?? null,
      since: linkSince.toISOString(),
      lastError: linkError?.message ?? null,
      reconnects: link?.reconnects ?? 0,
      rollbackLost: link?.rollbackLost ?? null,
    },
  };
}

export function primaryJobs(primary: Primary): JobStatus[] {
  const { bytesPerSecond } = primary.rate;
  return [
    ...(primary.link?.resyncs ?? []).map((resync) => mirrorJob(resync, bytesPerSecond)),
    ...primary.verifier.verifies.map(verifyJob),
  ];
}

/** What a manager can do to the jobs of a primary. */
export function jobControls(primary: () => Primary): Omit<BlockJobsParts, "jobs"> {
  const verifyOf = (id: string): Verify | null =>
    primary().verifier.verifies.find((verify) => verifyJob(verify).id === id) ?? null;
  return {
    setSpeed: (id, bytesPerSecond) => {
      (verifyOf(id)?.rate ?? primary().rate).set(bytesPerSecond);
    },
    cancel: (id) => {
      verifyOf(id)?.cancel();
    },
  };
}

/** The connections that a manager can cut. @param primary null: the node is none */
export function yankable(primary: () => Primary | null): Yankable {
  return {
    connected: () => {
      const node = primary();
      return node?.link?.isConnected === true ? node.disks.map(({ name }) => name) : [];
    },
    yank: () => primary()?.link?.giveUp(new LinkError("yanked", "the connection was yanked by command")),
  };
}

export function verifyJob(verify: Verify): JobStatus {
  const { name } = verify.disk;
  return {
    id: `verify-${name}`,
    type: "verify",
    disk: name,
    offset: verify.doneBytes,
    len: verify.totalBytes,
    elapsedSeconds: verify.elapsedSeconds,
    speed: verify.rate.bytesPerSecond,
    ready: false,
  };
}

export function mirrorJob(resync: Resync, speed: number): JobStatus {
  const { name } = resync.disk;
  return {
    id: `mirror-${name}`,
    type: "mirror",
    disk: name,
    offset: resync.doneBytes,
    len: resync.totalBytes,
    elapsedSeconds: resync.elapsedSeconds,
    speed,
    ready: resync.doneBytes === resync.totalBytes,
  };
}

function diskStatus(primary: Primary, index: number): DiskStatus {
  const disk = primary.disks[index];
  if (disk === undefined) throw new RangeError(`no disk ${index}`);
  return {
    name: disk.name,
    path: disk.path,
    sizeBytes: disk.local.info.sizeBytes,
    primary: primaryDiskPart(primary, index),
  };
}

export function primaryDiskPart(primary: Primary, index: number): NonNullable<DiskStatus["primary"]> {
  const disk = primary.disks[index];
  if (disk === undefined) throw new RangeError(`no disk ${index}`);
  return {
    dirtyBytes: disk.dirty.missedBytes,
    writesReplicated: disk.forwarded.writes,
    bytesReplicated: disk.forwarded.bytes,
    bytesResynced: disk.resyncedBytes,
    bytesFound: disk.foundBytes,
    inFlight: primary.link?.inFlight(index) ?? 0,
    error: disk.error,
    lastVerify: primary.verifier.lastReport(disk),
  };
}
