/** What a node says about itself, as text for people: the most important line first, then one line for each thing. */
import { formatSeconds, formatSize } from "../config/units.js";
import type {
  ClientStatus,
  DiskStatus,
  FailoverOutcome,
  FailoverPlan,
  JobStatus,
  LinkState,
  NodeStatus,
  PrimaryStatus,
  RecordedError,
  SecondaryStatus,
  VerifyReport,
} from "../status.js";

type Paint = (text: string, style: keyof typeof STYLES) => string;

/** A label, and what stands beside it; an empty label continues the line above. */
type Row = readonly [label: string, text: string];

const STYLES = { good: "32", bad: "1;31", faint: "2" } as const;

/** The text of `status`. `nowMs` is the reader's clock; `colour` adds escape sequences. */
export function renderStatus(status: NodeStatus, nowMs: number, colour: boolean): string {
  const paint: Paint = (text, style) => (colour ? `\x1b[${STYLES[style]}m${text}\x1b[0m` : text);
  const troubles = troublesOf(status, nowMs);
  const rows: Row[] = [
    ...(status.primary === undefined ? [] : primaryRows(status.primary, nowMs)),
    ...(status.secondary === undefined ? [] : secondaryRows(status.secondary)),
    ...status.disks.flatMap((disk) => diskRows(disk, nowMs)),
    ...status.jobs.map(jobRow),
    ...status.listeners.map(({ purpose, address, clients }): Row => [
      `${purpose} at`,
      `${address}, ${count(clients, "client")}`,
    ]),
    ...clientRows(status.clients),
    ["state in", status.stateDirectory],
    [
      "node",
      `version ${status.version}, up ${formatSeconds(status.uptimeSeconds)}, generation ${status.generation ?? "none"}`,
    ],
  ];
  return [
    paint(headline(status, nowMs), troubles.length === 0 ? "good" : "bad"),
    ...troubles.map((trouble) => paint(`! ${trouble}`, "bad")),
    ...align(rows, paint),
  ].join("\n");
}

/** The text of `failover`, before it or after it. */
export function renderFailoverPlan(plan: FailoverPlan): string {
  const first = plan.dryRun
    ? `failover to ${plan.to} in epoch ${plan.epoch} ${describeOutcome(plan, "would lose")}`
    : `failover to ${plan.to} begun in epoch ${plan.epoch}, ${describeOutcome(plan, "loses")}`;
  const others = plan.dryRun ? plan.alternatives : [];
  return [
    first,
    ...others.map((other) => `instead, to ${other.to}: ${describeOutcome(other, "would lose")}`),
  ].join("\n");
}

/** One line on what a verify found. */
export function renderVerify(report: VerifyReport): string {
  const { outcome, error, comparedBytes, skippedBytes, differingBytes, repairedBytes } = report;
  const parts = [
    `verify ${outcome}${error === null ? "" : ` (${error})`}: ${formatSize(comparedBytes)} compared`,
    differingBytes === 0 ? "no difference" : `${formatSize(differingBytes)} differ`,
  ];
  if (repairedBytes > 0) parts.push(`${formatSize(repairedBytes)} sent again`);
  if (skippedBytes > 0) parts.push(`${formatSize(skippedBytes)} not compared, as they are dirty`);
  return parts.join(", ");
}

function headline(status: NodeStatus, nowMs: number): string {
  const { lastCheckpoint } = status;
  const checkpoint =
    lastCheckpoint === null ? "no checkpoint yet" : `last checkpoint ${ago(lastCheckpoint.at, nowMs)}`;
  const link = status.primary === undefined ? "" : `, ${describeLink(status.primary.link.state)}`;
  return `${status.role}: ${status.stage}${link}, epoch ${status.epoch}, ${checkpoint}`;
}

function troublesOf(status: NodeStatus, nowMs: number): string[] {
  const { error, brokenPromise, checkpointRefusal, primary, secondary } = status;
  const checkpointFailure = primary?.checkpointFailure ?? null;
  const troubles: string[] = [];
  if (brokenPromise !== null)
    troubles.push(`a promise can't be kept, the node would end with exit code 1: ${brokenPromise}`);
  if (status.cache === "unsafe")
    troubles.push("cache unsafe: a power loss of this host can cost the disks and the checkpoint");
  if (status.stage === "failover-failed")
    troubles.push("the failover failed; ask for it again when the cause is mended");
  if (error !== null) troubles.push(describeErrors(error, count(error.count, "error"), nowMs));
  if (secondary?.rollback === "lost") {
    troubles.push(
      `no rollback until the next checkpoint: ${secondary.rollbackLostReason ?? "reason unknown"}`,
    );
  }
  if (secondary !== undefined && secondary.conflict !== null)
    troubles.push(`a primary was refused: ${secondary.conflict}`);
  const newData = primary?.newData ?? null;
  if (newData !== null)
    troubles.push(
      `new data, ${newData}: put the disk back; or start the secondary once with --discard-local-changes, to replace what it has`,
    );
  if (primary?.link.state === "refused")
    troubles.push(`the replica refuses: ${primary.link.lastError ?? "no reason given"}`);
  // Whom an operator detached has no error any more.
  if (primary?.link.state === "detached" && primary.link.lastError !== null)
    troubles.push(`a replica was not attached: ${primary.link.lastError}`);
  if (primary !== undefined && primary.link.rollbackLost !== null)
    troubles.push(`the replica can't go back to its last checkpoint: ${primary.link.rollbackLost}`);
  if (primary !== undefined && primary.waitingChanges > 0) {
    troubles.push(
      `guests wait for the replica with ${count(primary.waitingChanges, "change")}: repl-${status.role} detach goes on without it`,
    );
  }
  for (const { name, primary: disk } of status.disks) {
    const diskError = disk?.error ?? null;
    if (diskError !== null) {
      const errors = count(diskError.count, "error");
      troubles.push(describeErrors(diskError, `${errors} of the disk itself, which guests see`, nowMs));
    }
    const report = disk?.lastVerify ?? null;
    const differing = report === null ? 0 : report.differingBytes - report.repairedBytes;
    if (differing > 0) {
      troubles.push(
        `the replica of ${name} differs in ${formatSize(differing)}: repl-${status.role} verify --repair sends them again`,
      );
    }
  }
  // Before the start, and after a failover without a replica, there is nothing that a checkpoint could be refused to.
  const hasReplica = status.stage === "done" && (primary?.link.state ?? "detached") !== "detached";
  if (checkpointRefusal !== null && (status.stage === "running" || hasReplica))
    troubles.push(`a checkpoint would be refused: ${checkpointRefusal}`);
  if (checkpointFailure !== null) {
    const { attempts, since, reason } = checkpointFailure;
    troubles.push(
      `no checkpoint in ${count(attempts, "attempt")}, the first ${ago(since, nowMs)}, the last: ${reason}`,
    );
  }
  return troubles;
}

/** @param errors what they are, and how many */
function describeErrors(first: RecordedError, errors: string, nowMs: number): string {
  const { operation, disk, offsetBytes, lengthBytes, errno, message, firstAt } = first;
  return `${errors}, the first ${ago(firstAt, nowMs)}: ${operation} on ${disk} at ${offsetBytes}+${lengthBytes}: ${errno}: ${message}`;
}

function primaryRows(primary: PrimaryStatus, nowMs: number): Row[] {
  const { link } = primary;
  const interval =
    primary.checkpointIntervalMs === 0
      ? "on demand"
      : `every ${formatSeconds(primary.checkpointIntervalMs / 1000)}`;
  const rows: Row[] = [
    [
      "replica",
      `${link.replica ?? "none"}, ${link.state} for ${formatSeconds(secondsSince(link.since, nowMs))}`,
    ],
    [
      "",
      `ack mode ${primary.ackMode}, timeout ${formatSeconds(primary.replicaTimeoutMs / 1000)}, checkpoints ${interval}`,
    ],
  ];
  if (primary.onReplicaError === "stop") rows.push(["", "changes wait while the replica can't take them"]);
  if (link.reconnects > 0) rows.push(["", count(link.reconnects, "reconnect")]);
  // Of the others it is among the troubles.
  const isTold = link.state === "refused" || link.state === "detached";
  if (link.lastError !== null && !isTold) rows.push(["", `last error: ${link.lastError}`]);
  return rows;
}

function secondaryRows(secondary: SecondaryStatus): Row[] {
  const rows: Row[] = [["primary", secondary.writer ?? "not connected"]];
  if (secondary.salvage !== null) rows.push(["salvage", secondary.salvage]);
  if (secondary.rollback !== "none") {
    const rollback = secondary.rollback === "available" ? "possible" : "lost";
    rows.push(["rollback", `${rollback}, ${formatSize(secondary.undoBytes)} kept for it`]);
  } else if (secondary.rollbackLostReason !== null) {
    rows.push(["rollback", `none: ${secondary.rollbackLostReason}`]);
  }
  return rows;
}

function diskRows(disk: DiskStatus, nowMs: number): Row[] {
  const rows: Row[] = [[disk.name, `${formatSize(disk.sizeBytes)}, ${disk.path}`]];
  if (disk.primary !== undefined) {
    const { dirtyBytes, bytesReplicated, writesReplicated, inFlight } = disk.primary;
    const sent = `${formatSize(bytesReplicated)} in ${count(writesReplicated, "write")} replicated`;
    rows.push(["", `${formatSize(dirtyBytes)} dirty, ${sent}, ${inFlight} in flight`]);
    if (disk.primary.lastVerify !== null) {
      rows.push([
        "",
        `last ${renderVerify(disk.primary.lastVerify)}, ${ago(disk.primary.lastVerify.endedAt, nowMs)}`,
      ]);
    }
  }
  if (disk.secondary !== undefined) {
    const { undoBytes, activeBytes, pendingBytes } = disk.secondary;
    rows.push([
      "",
      `${formatSize(undoBytes)} undo, ${formatSize(activeBytes)} active, ${formatSize(pendingBytes)} not yet on the disk`,
    ]);
  }
  return rows;
}

/** Of which there may be a thousand; `--json` has them all. */
const SHOWN_CLIENTS = 16;

function clientRows(clients: readonly ClientStatus[]): Row[] {
  const rows = clients.slice(0, SHOWN_CLIENTS).map((client): Row => {
    const { purpose, peer, tls } = client;
    const secured =
      tls === null ? "no TLS" : `${tls.version ?? "TLS"}${tls.user === null ? "" : ` as ${tls.user}`}`;
    return [`${purpose} from`, `${peer}, ${client.export ?? "no export yet"}, ${secured}`];
  });
  const left = clients.length - rows.length;
  return left === 0 ? rows : [...rows, ["", `and ${count(left, "other client")}`]];
}

const BAR_COLUMNS = 20;
/** Before that a rate says nothing. */
const RATE_FROM_SECONDS = 0.5;

function jobRow(job: JobStatus): Row {
  const done = job.len === 0 ? 1 : job.offset / job.len;
  const bar = "#".repeat(Math.floor(done * BAR_COLUMNS)).padEnd(BAR_COLUMNS, "-");
  const parts = [`${job.type} of ${job.disk} [${bar}] ${Math.floor(done * 100)}% of ${formatSize(job.len)}`];
  if (job.elapsedSeconds >= RATE_FROM_SECONDS && job.offset > 0 && done < 1) {
    const bytesPerSecond = job.offset / job.elapsedSeconds;
    parts.push(`${formatSize(Math.round(bytesPerSecond))}/s`);
    parts.push(`${formatSeconds((job.len - job.offset) / bytesPerSecond)} left`);
  }
  if (job.speed > 0) parts.push(`at most ${formatSize(job.speed)}/s`);
  if (job.ready) parts.push("ready");
  return [`job ${job.id}`, parts.join(", ")];
}

function describeLink(state: LinkState): string {
  switch (state) {
    case "detached":
      return "no replica";
    case "connecting":
    case "handshaking":
    case "resyncing":
    case "replicating":
      return state;
    case "disconnected":
      return "replica disconnected";
    case "refused":
      return "replica refused";
  }
}

function describeOutcome(outcome: FailoverOutcome, loses: string): string {
  if (!outcome.possible) return `is not possible: ${outcome.reason ?? "reason unknown"}`;
  const { bytes, seconds } = outcome.lost;
  const warning = outcome.warning === null ? "" : `; but ${outcome.warning}`;
  if (bytes === 0) return `${loses} nothing${warning}`;
  const what = outcome.to === "checkpoint" ? "the primary's writes" : "the writes made through the view";
  return `${loses} ${formatSize(bytes)}, ${what} of the last ${formatSeconds(seconds)}${warning}`;
}

function align(rows: readonly Row[], paint: Paint): string[] {
  const width = Math.max(...rows.map(([label]) => label.length));
  return rows.map(([label, text]) => `  ${paint(label.padEnd(width), "faint")}  ${text}`);
}

function ago(instant: string, nowMs: number): string {
  return `${formatSeconds(secondsSince(instant, nowMs))} ago`;
}

function secondsSince(instant: string, nowMs: number): number {
  // The node's clock may be ahead of ours.
  return Math.max(0, (nowMs - Date.parse(instant)) / 1000);
}

function count(n: number, noun: string): string {
  return `${n.toLocaleString("en-US")} ${noun}${n === 1 ? "" : "s"}`;
}
