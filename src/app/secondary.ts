/** The composition root of repl-secondary. */
import { DEFAULT_REPLICATION, type SecondaryConfig } from "../config/schema.js";
import { ExportTable } from "../nbd/server/exports.js";
import { NbdServer } from "../nbd/server/server.js";
import { blockJobCommands, jobErrorEvent, jobEvent } from "../qmp/commands/block-jobs.js";
import { nbdServerCommands } from "../qmp/commands/nbd-server.js";
import { replicaCommands, secondaryPairCommands } from "../qmp/commands/pair.js";
import { type ReplicationGroup, replicationCommands } from "../qmp/commands/replication.js";
import { yankCommands } from "../qmp/commands/yank.js";
import { CHECKPOINT_EVENT, CHECKPOINT_FAILED_EVENT, ROLLBACK_LOST_EVENT } from "../replication/protocol.js";
import { Secondary } from "../replication/secondary/secondary.js";
import { DISCONNECT_DEADLINE_MS, ReplicationServer } from "./replication-server.js";
import { type NodeParts, runNode, type RunningNode } from "./run-node.js";
import { closeGuests, linkEvents, primaryGroup } from "./primary.js";
import { jobControls, yankable } from "./primary-status.js";
import { commitJob, secondaryJobs, secondaryStatus } from "./secondary-status.js";

/** Runs a secondary in the foreground. @returns the exit code @throws ReplError if it can't start */
export function runSecondary(config: SecondaryConfig): Promise<number> {
  return runNode(config, (parts) => startSecondary(config, parts));
}

async function startSecondary(config: SecondaryConfig, parts: NodeParts): Promise<RunningNode> {
  const { directory, disks, log, lifecycle, emit } = parts;
  const writers = new ReplicationServer(log.child({ component: "replication" }), parts.nbdAccess);
  const secondary = await Secondary.open({
    directory,
    disks,
    onUndoError: config.onUndoError,
    discardLocalChanges: config.discardLocalChanges,
    demote: config.demote,
    asPrimary: {
      ...DEFAULT_REPLICATION,
      events: linkEvents(emit, () => secondary.promoted.rate.bytesPerSecond),
    },
    log,
    events: {
      disconnectWriters: () => writers.disconnectWriters(),
      checkpointDurable: (epoch) => {
        emit(CHECKPOINT_EVENT, { epoch });
      },
      checkpointFailed: (failed) => {
        emit(CHECKPOINT_FAILED_EVENT, failed);
      },
      rollbackLost: (lost) => {
        emit(ROLLBACK_LOST_EVENT, lost);
      },
      stageChanged: (stage) => {
        emit("X_REPL_STAGE", { stage });
      },
      commitEnded: (error) => {
        const job = commitJob(secondary);
        if (job === null) return;
        if (error !== null) emit("BLOCK_JOB_ERROR", jobErrorEvent(job));
        emit("BLOCK_JOB_COMPLETED", jobEvent(job, error));
      },
    },
  });
  lifecycle.add(() => secondary.close());
  writers.serve(secondary);
  lifecycle.add(() => writers.close());

  const view = new NbdServer({
    exports: viewExports(secondary),
    log: log.child({ component: "view" }),
    ...parts.nbdAccess,
  });
  lifecycle.add(() =>
    secondary.stage === "done"
      ? closeGuests(view, secondary.promoted)
      : view.close(DISCONNECT_DEADLINE_MS, "refuse"),
  );
  for (const address of config.view) await view.listen(address);
  if (config.listen.length + config.sockets.length > 0) await writers.startAll(config.listen, config.sockets);

  return {
    commands: [
      ...replicationCommands(() => replicationGroup(secondary), emit),
      ...secondaryPairCommands(secondary),
      ...replicaCommands(() => secondary.promoted, {
        quit: parts.quit,
        tls: parts.linkTls,
        listeners: () => [...view.addresses, ...writers.addresses],
      }),
      ...nbdServerCommands(writers),
      ...yankCommands(yankable(() => (secondary.stage === "done" ? secondary.promoted : null))),
      ...blockJobCommands({
        jobs: () => secondaryJobs(secondary),
        ...jobControls(() => secondary.promoted),
      }),
    ],
    status: () => secondaryStatus(parts, secondary, writers, view),
    brokenPromise: () => secondary.brokenPromise(),
  };
}

function viewExports(secondary: Secondary): ExportTable {
  const exports = new ExportTable();
  for (const { name, viewExport } of secondary.disks) {
    exports.add({ name, description: `view of disk ${name}`, readOnly: false, device: viewExport });
  }
  return exports;
}

/**
 * To a manager a promoted node is a secondary that is done, which ignores whatever is asked, until it is given a replica: from then on it is
 * that one's primary, which knows what the replica lacks.
 */
function replicationGroup(secondary: Secondary): ReplicationGroup {
  const promoted = secondary.stage === "done" ? secondary.promoted : null;
  if (promoted !== null && promoted.replica !== null) return primaryGroup(promoted);
  return {
    mode: "secondary",
    start: (mode) => secondary.start(mode),
    stop: (isFailover) => (isFailover ? secondary.failOverOnce() : secondary.stop(null)),
    checkpoint: async () => {
      await secondary.checkpoint({ session: null, epoch: null });
      await secondary.checkpointDurable();
    },
    getError: () => {
      secondary.getError();
    },
    isActive: secondary.stage === "running" || secondary.stage === "failover-failed",
  };
}
