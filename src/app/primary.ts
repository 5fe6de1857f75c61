/** The composition root of repl-primary. */
import { afterRunning, systemClock } from "../clock.js";
import type { PrimaryConfig } from "../config/schema.js";
import { StateError } from "../errors.js";
import { ExportTable } from "../nbd/server/exports.js";
import { NbdServer } from "../nbd/server/server.js";
import type { Farewell } from "../nbd/server/transmission.js";
import { blockJobCommands, jobErrorEvent, jobEvent } from "../qmp/commands/block-jobs.js";
import { primaryPairCommands } from "../qmp/commands/pair.js";
import { type ReplicationGroup, replicationCommands } from "../qmp/commands/replication.js";
import { yankCommands } from "../qmp/commands/yank.js";
import { Primary } from "../replication/primary/primary.js";
import type { PrimaryOptions } from "../replication/primary/options.js";
import type { Replica } from "../replication/primary/replica-attachment.js";
import { refuseItself, replicaOf } from "../replication/primary/replica-uri.js";
import { dirtyContext } from "./dirty-context.js";
import { jobControls, mirrorJob, primaryJobs, primaryStatus, verifyJob, yankable } from "./primary-status.js";
import { linkTlsOf, type NodeParts, runNode, type RunningNode } from "./run-node.js";

/** How long guests may take to take their last replies when the node stops. */
const CLOSE_DEADLINE_MS = 5000;
/** How much of that they need, at most, once a replica that does not answer was given up. */
const LAST_REPLIES_MS = 1000;

/** Runs a primary in the foreground. @returns the exit code @throws ReplError if it can't start */
export async function runPrimary(config: PrimaryConfig): Promise<number> {
  // Before anything is made, since it may be a mistake.
  const replica =
    config.replica === null ? null : replicaOf(config.replica, config.replicaQmp, linkTlsOf(config.tls));
  if (replica !== null) refuseItself(replica, config.listen);
  return runNode(config, (parts) => startPrimary(config, replica, parts));
}

async function startPrimary(
  config: PrimaryConfig,
  replica: Replica | null,
  parts: NodeParts,
): Promise<RunningNode> {
  const { directory, disks, log, lifecycle, emit } = parts;
  const primary = await Primary.open({
    directory,
    disks,
    ackMode: config.ackMode,
    onCongestion: config.onCongestion,
    onReplicaError: config.onReplicaError,
    replicaTimeoutMs: config.replicaTimeoutMs,
    resyncBytesPerSecond: config.resyncBytesPerSecond,
    checkpointIntervalMs: config.checkpointIntervalMs,
    log,
    events: linkEvents(emit, () => primary.rate.bytesPerSecond),
  });
  lifecycle.add(() => primary.close());
  if (replica?.control === null && primary.newData !== null) {
    throw new StateError(
      "other-disk",
      `${primary.newData}, and a replica without --replica-qmp can't refuse its content: put the disk back; to begin with a new disk, use another --state-dir`,
    );
  }
  // Before the first guest: a node that was replaced by its secondary must not serve the disk that it lost.
  if (replica !== null) await primary.attach(replica);

  const guests = new NbdServer({
    exports: guestExports(primary),
    log: log.child({ component: "nbd" }),
    ...parts.nbdAccess,
  });
  lifecycle.add(() => closeGuests(guests, primary));
  for (const address of config.listen) await guests.listen(address);
  for (const { fd } of config.sockets) await guests.listenOn(fd);

  return {
    commands: [
      ...replicationCommands(() => primaryGroup(primary), emit),
      ...yankCommands(yankable(() => primary)),
      ...primaryPairCommands(primary, {
        quit: parts.quit,
        tls: parts.linkTls,
        listeners: () => guests.addresses,
      }),
      ...blockJobCommands({
        jobs: () => primaryJobs(primary),
        ...jobControls(() => primary),
      }),
    ],
    status: () => primaryStatus(parts, config, primary, guests),
    brokenPromise: () => primary.brokenPromise(),
  };
}

/** The node stops: guests' last requests are finished and answered, whatever the replica does meanwhile. */
export async function closeGuests(server: NbdServer, primary: Primary): Promise<void> {
  primary.refuseWaiting();
  const cancel = afterRunning(systemClock, CLOSE_DEADLINE_MS - LAST_REPLIES_MS, () => {
    primary.giveUpAwaitedReplica();
  });
  try {
    await server.close(CLOSE_DEADLINE_MS, farewellOf(primary));
  } finally {
    cancel();
  }
}

/** How a node that ends leaves its guests: after a switch-over those that connect again ask the other one. */
function farewellOf(primary: Primary): Farewell {
  return primary.isElsewhere ? "ignore" : "refuse";
}

/** What a node that replicates tells its QMP clients. @param speed the limit of its copying */
export function linkEvents(emit: NodeParts["emit"], speed: () => number): PrimaryOptions["events"] {
  return {
    stateChanged: (state) => {
      emit("X_REPL_LINK", { state });
    },
    jobEnded: (resync, error) => {
      const data = jobEvent(mirrorJob(resync, speed()), error);
      if (error === null) emit("BLOCK_JOB_READY", data);
      else emit("BLOCK_JOB_ERROR", jobErrorEvent(mirrorJob(resync, speed())));
      emit("BLOCK_JOB_COMPLETED", data);
    },
    verifyEnded: (verify, { outcome, error }) => {
      const data = jobEvent(verifyJob(verify), error === null ? null : new Error(error));
      emit(outcome === "cancelled" ? "BLOCK_JOB_CANCELLED" : "BLOCK_JOB_COMPLETED", data);
    },
  };
}

function guestExports(primary: Primary): ExportTable {
  const exports = new ExportTable();
  for (const { name, guestExport, dirty } of primary.disks) {
    const contexts = [dirtyContext(dirty)];
    exports.add({ name, description: `disk ${name}`, readOnly: false, device: guestExport, contexts });
  }
  return exports;
}

/** To a manager a node that has a replica, or may be given one. */
export function primaryGroup(primary: Primary): ReplicationGroup {
  return {
    mode: "primary",
    start: (mode) => primary.start(mode),
    stop: (isFailover) => primary.stop(isFailover),
    // As in QEMU, this side of a checkpoint has nothing to do: the manager talks to the secondary as well. But it knows of holes.
    checkpoint: () =>
      Promise.resolve().then(() => {
        primary.refuseHole();
      }),
    getError: () => {
      primary.getError();
    },
    isActive: primary.stage === "running",
  };
}
