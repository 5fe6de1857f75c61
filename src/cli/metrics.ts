/**
 * What a node says about itself, as metrics in Prometheus' text format, version 0.0.4:
 * https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
 *
 * Every sample has the label `role`, so that what a primary and a secondary on one host say can be scraped together. Instants are
 * Unix time in seconds: how old something is, the query reckons.
 */
import {
  type DiskStatus,
  type JobStatus,
  LINK_STATES,
  NODE_STAGES,
  type NodeStatus,
  type PrimaryStatus,
  ROLLBACK_STATES,
  type SecondaryStatus,
  type VerifyReport,
} from "../status.js";

type Labels = Readonly<Record<string, string>>;

interface Sample {
  readonly value: number;
  /** Besides `role`. */
  readonly labels?: Labels;
}

interface Metric {
  /** Without the prefix. */
  readonly name: string;
  readonly type: "gauge" | "counter";
  readonly help: string;
  /** None where the node has no such thing. */
  readonly samples: (status: NodeStatus) => readonly Sample[];
}

const PREFIX = "nbd_replication_";

const METRICS: readonly Metric[] = [
  gauge("up", "1: the node answers.", () => [{ value: 1 }]),
  gauge("info", "What the node is; always 1.", ({ version, cache, stateDirectory, generation }) => [
    { value: 1, labels: { version, cache, state_directory: stateDirectory, generation: generation ?? "" } },
  ]),
  gauge("uptime_seconds", "How long the node has been running.", ({ uptimeSeconds }) => [
    { value: uptimeSeconds },
  ]),
  gauge("stage", "The stage of replication: 1 for the one that the node is in.", ({ stage }) =>
    oneHot("stage", NODE_STAGES, stage),
  ),
  gauge("epoch", "Number of the epoch that writes belong to.", ({ epoch }) => [{ value: epoch }]),
  gauge(
    "promise_broken",
    "1: the node can't keep a promise, and would end with exit code 1.",
    ({ brokenPromise }) => [isThere(brokenPromise)],
  ),
  gauge(
    "swallowed_errors",
    "I/O errors that no client was told of, since the last time all was well.",
    ({ error }) => [{ value: error?.count ?? 0 }],
  ),
  gauge("checkpoint_refused", "1: a checkpoint would be refused now.", ({ checkpointRefusal }) => [
    isThere(checkpointRefusal),
  ]),
  gauge(
    "last_checkpoint_timestamp_seconds",
    "When the last checkpoint was taken; none: no sample.",
    ({ lastCheckpoint }) => (lastCheckpoint === null ? [] : [{ value: unixSeconds(lastCheckpoint.at) }]),
  ),
  gauge("clients", "Clients that are connected.", ({ listeners }) => {
    const sums = new Map<string, number>();
    for (const { purpose, clients } of listeners) sums.set(purpose, (sums.get(purpose) ?? 0) + clients);
    return [...sums].map(([purpose, value]) => ({ value, labels: { purpose } }));
  }),
  gauge(
    "disk_size_bytes",
    "Size of the disk.",
    ofDisks(({ sizeBytes }) => sizeBytes),
  ),

  gauge("link_state", "The link to the replica: 1 for the state that it is in.", ofPrimary(linkStates)),
  gauge(
    "link_state_timestamp_seconds",
    "When the link to the replica came into its state.",
    ofPrimary(({ link }) => [{ value: unixSeconds(link.since) }]),
  ),
  counter(
    "link_reconnects_total",
    "How often the link to the replica was built anew.",
    ofPrimary(({ link }) => [{ value: link.reconnects }]),
  ),
  gauge(
    "link_error",
    "1: the link was lost and is not whole again, or the last replica was not attached.",
    ofPrimary(({ link }) => [isThere(link.lastError)]),
  ),
  gauge(
    "replica_rollback_lost",
    "1: the replica can't go back to its last checkpoint.",
    ofPrimary(({ link }) => [isThere(link.rollbackLost)]),
  ),
  gauge(
    "new_data",
    "1: a disk is another file than the one on record, and no replica has taken its content.",
    ofPrimary(({ newData }) => [isThere(newData)]),
  ),
  gauge(
    "waiting_changes",
    "Changes of guests that wait for the replica.",
    ofPrimary(({ waitingChanges }) => [{ value: waitingChanges }]),
  ),
  gauge(
    "checkpoint_interval_seconds",
    "Time between periodic checkpoints; 0: on demand only.",
    ofPrimary(({ checkpointIntervalMs }) => [{ value: checkpointIntervalMs / 1000 }]),
  ),
  gauge(
    "checkpoint_failures",
    "Checkpoints that were refused or failed since the last one was taken.",
    ofPrimary(({ checkpointFailure }) => [{ value: checkpointFailure?.attempts ?? 0 }]),
  ),
  counter(
    "disk_errors_total",
    "I/O errors of the disk itself, which guests are told of.",
    ofPrimaryDisks(({ error }) => error?.count ?? 0),
  ),
  gauge(
    "disk_dirty_bytes",
    "What the replica lacks.",
    ofPrimaryDisks(({ dirtyBytes }) => dirtyBytes),
  ),
  counter(
    "disk_replicated_writes_total",
    "Changes that the replica has acknowledged.",
    ofPrimaryDisks(({ writesReplicated }) => writesReplicated),
  ),
  counter(
    "disk_replicated_bytes_total",
    "Bytes of changes that the replica has acknowledged.",
    ofPrimaryDisks(({ bytesReplicated }) => bytesReplicated),
  ),
  counter(
    "disk_resynced_bytes_total",
    "Content sent by resyncs, or found on the replica.",
    ofPrimaryDisks(({ bytesResynced }) => bytesResynced),
  ),
  counter(
    "disk_found_bytes_total",
    "Content that resyncs found on the replica and did not send.",
    ofPrimaryDisks(({ bytesFound }) => bytesFound),
  ),
  gauge(
    "disk_in_flight_requests",
    "Requests sent to the replica and not answered.",
    ofPrimaryDisks(({ inFlight }) => inFlight),
  ),
  gauge(
    "disk_verify_differing_bytes",
    "What the last verify found to differ and did not send again; no verify since the start: no sample.",
    ofVerifies(({ differingBytes, repairedBytes }) => differingBytes - repairedBytes),
  ),
  gauge(
    "disk_verify_timestamp_seconds",
    "When the last verify ended.",
    ofVerifies(({ endedAt }) => unixSeconds(endedAt)),
  ),

  gauge(
    "rollback",
    "Whether a failover can go back to the last checkpoint: 1 for what holds.",
    ofSecondary(({ rollback }) => oneHot("state", ROLLBACK_STATES, rollback)),
  ),
  gauge(
    "conflict",
    "1: the last primary was refused for its data's history, split brain for example.",
    ofSecondary(({ conflict }) => [isThere(conflict)]),
  ),
  gauge(
    "writer_connected",
    "1: a primary is connected.",
    ofSecondary(({ writer }) => [isThere(writer)]),
  ),
  gauge(
    "undo_log_bytes",
    "Size of the log of before-images, of all disks together.",
    ofSecondary(({ undoBytes }) => [{ value: undoBytes }]),
  ),
  gauge(
    "disk_undo_bytes",
    "Before-images in the hidden overlay.",
    ofSecondaryDisks(({ undoBytes }) => undoBytes),
  ),
  gauge(
    "disk_active_bytes",
    "Writes through the view in the active overlay.",
    ofSecondaryDisks(({ activeBytes }) => activeBytes),
  ),
  gauge(
    "disk_pending_bytes",
    "Received, acknowledged and not on the disk yet.",
    ofSecondaryDisks(({ pendingBytes }) => pendingBytes),
  ),

  gauge(
    "job_offset_bytes",
    "How far a block job is.",
    ofJobs(({ offset }) => offset),
  ),
  gauge(
    "job_length_bytes",
    "How much a block job has to do in all.",
    ofJobs(({ len }) => len),
  ),
];

/** The text of `metrics`, without the end of its last line. */
export function renderMetrics(status: NodeStatus): string {
  return METRICS.flatMap(({ name, type, help, samples }) => {
    const lines = samples(status).map(
      ({ value, labels }) => `${PREFIX}${name}{${renderLabels({ role: status.role, ...labels })}} ${value}`,
    );
    const head = [`# HELP ${PREFIX}${name} ${help}`, `# TYPE ${PREFIX}${name} ${type}`];
    return lines.length === 0 ? [] : [...head, ...lines];
  }).join("\n");
}

function renderLabels(labels: Labels): string {
  return Object.entries(labels)
    .map(([name, value]) => `${name}="${escapeLabel(value)}"`)
    .join(",");
}

function escapeLabel(value: string): string {
  return value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}

function gauge(name: string, help: string, samples: Metric["samples"]): Metric {
  return { name, type: "gauge", help, samples };
}

function counter(name: string, help: string, samples: Metric["samples"]): Metric {
  return { name, type: "counter", help, samples };
}

function oneHot<T extends string>(label: string, states: readonly T[], now: T): Sample[] {
  return states.map((state) => ({ value: state === now ? 1 : 0, labels: { [label]: state } }));
}

function linkStates({ link }: PrimaryStatus): Sample[] {
  return oneHot("state", LINK_STATES, link.state);
}

function isThere(text: string | null): Sample {
  return { value: text === null ? 0 : 1 };
}

function unixSeconds(instant: string): number {
  return Date.parse(instant) / 1000;
}

function ofPrimary(samples: (primary: PrimaryStatus) => Sample[]): Metric["samples"] {
  return ({ primary }) => (primary === undefined ? [] : samples(primary));
}

function ofSecondary(samples: (secondary: SecondaryStatus) => Sample[]): Metric["samples"] {
  return ({ secondary }) => (secondary === undefined ? [] : samples(secondary));
}

/** @param valueOf undefined: the disk has no such thing */
function ofDisks(valueOf: (disk: DiskStatus) => number | undefined): Metric["samples"] {
  return ({ disks }) =>
    disks.flatMap((disk) => {
      const value = valueOf(disk);
      return value === undefined ? [] : [{ value, labels: { disk: disk.name } }];
    });
}

function ofPrimaryDisks(valueOf: (disk: NonNullable<DiskStatus["primary"]>) => number): Metric["samples"] {
  return ofDisks(({ primary }) => (primary === undefined ? undefined : valueOf(primary)));
}

function ofSecondaryDisks(
  valueOf: (disk: NonNullable<DiskStatus["secondary"]>) => number,
): Metric["samples"] {
  return ofDisks(({ secondary }) => (secondary === undefined ? undefined : valueOf(secondary)));
}

function ofVerifies(valueOf: (report: VerifyReport) => number): Metric["samples"] {
  return ofDisks(({ primary }) => {
    const report = primary?.lastVerify ?? null;
    return report === null ? undefined : valueOf(report);
  });
}

function ofJobs(valueOf: (job: JobStatus) => number): Metric["samples"] {
  return ({ jobs }) =>
    jobs.map((job) => ({ value: valueOf(job), labels: { job: job.id, type: job.type, disk: job.disk } }));
}
