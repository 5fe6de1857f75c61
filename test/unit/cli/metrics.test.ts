import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect } from "chai";

import { renderMetrics } from "../../../src/cli/metrics.js";
import type { NodeStatus } from "../../../src/status.js";
import { parseMetrics, type Series } from "../../tools/prometheus.js";
import { ERROR, linkPart, primaryPart, primaryStatus, secondaryStatus } from "./statuses.js";

/** Seen from dist/test/unit/cli/. */
const CLI_DOCUMENT = fileURLToPath(new URL("../../../../docs/cli.md", import.meta.url));

/** A secondary that was promoted, and everything it can be. */
const promotedStatus: NodeStatus = {
  ...secondaryStatus,
  ...(primaryStatus.primary !== undefined && { primary: primaryStatus.primary }),
  stage: "done",
  listeners: primaryStatus.listeners,
  jobs: primaryStatus.jobs,
  disks: primaryStatus.disks.map((disk, index) => ({
    ...disk,
    ...secondaryStatus.disks[index],
    ...(disk.primary !== undefined && {
      primary: {
        ...disk.primary,
        lastVerify: {
          startedAt: "2026-01-02T03:03:00.000Z",
          endedAt: "2026-01-02T03:04:00.500Z",
          outcome: "completed",
          error: null,
          comparedBytes: 1024 ** 3,
          skippedBytes: 0,
          differingBytes: 12_288,
          repairedBytes: 4096,
          differences: [],
          differencesAreAll: false,
        },
      },
    }),
  })),
};

function seriesOf(status: NodeStatus, name: string): readonly Series[] {
  return parseMetrics(`${renderMetrics(status)}\n`).get(`nbd_replication_${name}`)?.series ?? [];
}

function valueOf(status: NodeStatus, name: string): number | undefined {
  const series = seriesOf(status, name);
  expect(series.length, name).to.be.at.most(1);
  return series[0]?.value;
}

/** The state that a one-hot family says; throws unless it says one. */
function stateOf(status: NodeStatus, name: string, label: string): string | undefined {
  const series = seriesOf(status, name);
  expect(series.map(({ value }) => value).sort()).to.deep.equal([
    ...series.slice(1).map(() => 0),
    ...series.slice(0, 1).map(() => 1),
  ]);
  return series.find(({ value }) => value === 1)?.labels[label];
}

const secondaryPart = (change: Partial<NonNullable<NodeStatus["secondary"]>>): NodeStatus => {
  const { secondary } = secondaryStatus;
  if (secondary === undefined) throw new Error("the status is not a secondary's");
  return { ...secondaryStatus, secondary: { ...secondary, ...change } };
};

describe("cli/metrics", () => {
  it("has everything that a secondary says, and nothing of a primary, in Prometheus' text format", () => {
    expect(renderMetrics(secondaryStatus).split("\n")).to.deep.equal([
      "# HELP nbd_replication_up 1: the node answers.",
      "# TYPE nbd_replication_up gauge",
      'nbd_replication_up{role="secondary"} 1',
      "# HELP nbd_replication_info What the node is; always 1.",
      "# TYPE nbd_replication_info gauge",
      'nbd_replication_info{role="secondary",version="1.2.3",cache="writeback",state_directory="/state",generation="5f3c"} 1',
      "# HELP nbd_replication_uptime_seconds How long the node has been running.",
      "# TYPE nbd_replication_uptime_seconds gauge",
      'nbd_replication_uptime_seconds{role="secondary"} 18720',
      "# HELP nbd_replication_stage The stage of replication: 1 for the one that the node is in.",
      "# TYPE nbd_replication_stage gauge",
      'nbd_replication_stage{role="secondary",stage="none"} 0',
      'nbd_replication_stage{role="secondary",stage="running"} 1',
      'nbd_replication_stage{role="secondary",stage="failover"} 0',
      'nbd_replication_stage{role="secondary",stage="failover-failed"} 0',
      'nbd_replication_stage{role="secondary",stage="done"} 0',
      "# HELP nbd_replication_epoch Number of the epoch that writes belong to.",
      "# TYPE nbd_replication_epoch gauge",
      'nbd_replication_epoch{role="secondary"} 12',
      "# HELP nbd_replication_promise_broken 1: the node can't keep a promise, and would end with exit code 1.",
      "# TYPE nbd_replication_promise_broken gauge",
      'nbd_replication_promise_broken{role="secondary"} 0',
      "# HELP nbd_replication_swallowed_errors I/O errors that no client was told of, since the last time all was well.",
      "# TYPE nbd_replication_swallowed_errors gauge",
      'nbd_replication_swallowed_errors{role="secondary"} 0',
      "# HELP nbd_replication_checkpoint_refused 1: a checkpoint would be refused now.",
      "# TYPE nbd_replication_checkpoint_refused gauge",
      'nbd_replication_checkpoint_refused{role="secondary"} 0',
      "# HELP nbd_replication_last_checkpoint_timestamp_seconds When the last checkpoint was taken; none: no sample.",
      "# TYPE nbd_replication_last_checkpoint_timestamp_seconds gauge",
      'nbd_replication_last_checkpoint_timestamp_seconds{role="secondary"} 1767323045',
      "# HELP nbd_replication_disk_size_bytes Size of the disk.",
      "# TYPE nbd_replication_disk_size_bytes gauge",
      'nbd_replication_disk_size_bytes{role="secondary",disk="disk0"} 1073741824',
      "# HELP nbd_replication_rollback Whether a failover can go back to the last checkpoint: 1 for what holds.",
      "# TYPE nbd_replication_rollback gauge",
      'nbd_replication_rollback{role="secondary",state="available"} 1',
      'nbd_replication_rollback{role="secondary",state="lost"} 0',
      'nbd_replication_rollback{role="secondary",state="none"} 0',
      "# HELP nbd_replication_conflict 1: the last primary was refused for its data's history, split brain for example.",
      "# TYPE nbd_replication_conflict gauge",
      'nbd_replication_conflict{role="secondary"} 0',
      "# HELP nbd_replication_writer_connected 1: a primary is connected.",
      "# TYPE nbd_replication_writer_connected gauge",
      'nbd_replication_writer_connected{role="secondary"} 1',
      "# HELP nbd_replication_undo_log_bytes Size of the log of before-images, of all disks together.",
      "# TYPE nbd_replication_undo_log_bytes gauge",
      'nbd_replication_undo_log_bytes{role="secondary"} 1536',
      "# HELP nbd_replication_disk_undo_bytes Before-images in the hidden overlay.",
      "# TYPE nbd_replication_disk_undo_bytes gauge",
      'nbd_replication_disk_undo_bytes{role="secondary",disk="disk0"} 1536',
      "# HELP nbd_replication_disk_active_bytes Writes through the view in the active overlay.",
      "# TYPE nbd_replication_disk_active_bytes gauge",
      'nbd_replication_disk_active_bytes{role="secondary",disk="disk0"} 0',
      "# HELP nbd_replication_disk_pending_bytes Received, acknowledged and not on the disk yet.",
      "# TYPE nbd_replication_disk_pending_bytes gauge",
      'nbd_replication_disk_pending_bytes{role="secondary",disk="disk0"} 512',
    ]);
  });

  it("has what only a primary says", () => {
    const own = [...parseMetrics(`${renderMetrics(primaryStatus)}\n`)].filter(
      ([name]) => !renderMetrics(secondaryStatus).includes(`# TYPE ${name} `),
    );
    const role = { role: "primary" };
    const disk = { ...role, disk: "disk0" };
    const job = { ...role, job: "sync0", type: "mirror", disk: "disk0" };
    const link = (state: string, value: number): Series => ({ labels: { ...role, state }, value });
    const one = (value: number, labels: Record<string, string> = role): Series[] => [{ labels, value }];
    expect(Object.fromEntries(own.map(([name, { series }]) => [name, series]))).to.deep.equal({
      nbd_replication_clients: one(1, { ...role, purpose: "guest" }),
      nbd_replication_link_state: [
        link("detached", 0),
        link("connecting", 0),
        link("handshaking", 0),
        link("resyncing", 0),
        link("replicating", 1),
        link("disconnected", 0),
        link("refused", 0),
      ],
      nbd_replication_link_state_timestamp_seconds: one(1_767_322_848),
      nbd_replication_link_reconnects_total: one(0),
      nbd_replication_link_error: one(0),
      nbd_replication_replica_rollback_lost: one(0),
      nbd_replication_new_data: one(0),
      nbd_replication_waiting_changes: one(0),
      nbd_replication_checkpoint_interval_seconds: one(5),
      nbd_replication_checkpoint_failures: one(0),
      nbd_replication_disk_errors_total: one(0, disk),
      nbd_replication_disk_dirty_bytes: one(0, disk),
      nbd_replication_disk_replicated_writes_total: one(4000, disk),
      nbd_replication_disk_replicated_bytes_total: one(12 * 1024 ** 2, disk),
      nbd_replication_disk_resynced_bytes_total: one(5_000_000, disk),
      nbd_replication_disk_found_bytes_total: one(3_000_000, disk),
      nbd_replication_disk_in_flight_requests: one(3, disk),
      nbd_replication_job_offset_bytes: one(512 * 1024 ** 2, job),
      nbd_replication_job_length_bytes: one(1024 ** 3, job),
    });
  });

  it("has no sample where there is nothing to say", () => {
    expect(valueOf({ ...primaryStatus, lastCheckpoint: null }, "last_checkpoint_timestamp_seconds")).to.equal(
      undefined,
    );
    expect(valueOf(primaryStatus, "disk_verify_differing_bytes")).to.equal(undefined);
    expect(seriesOf({ ...primaryStatus, jobs: [] }, "job_offset_bytes")).to.deep.equal([]);
    expect(seriesOf({ ...primaryStatus, generation: null }, "info")[0]?.labels["generation"]).to.equal("");
  });

  it("tells what the last verify left different, and when it ended, also in parts of a second", () => {
    expect(valueOf(promotedStatus, "disk_verify_differing_bytes")).to.equal(8192);
    expect(valueOf(promotedStatus, "disk_verify_timestamp_seconds")).to.equal(1_767_323_040.5);
  });

  it("adds up the clients of all listeners for one purpose", () => {
    const status: NodeStatus = {
      ...secondaryStatus,
      listeners: [
        { purpose: "view", address: "unix:/a", clients: 3 },
        { purpose: "view", address: "unix:/b", clients: 2 },
        { purpose: "qmp", address: "unix:/c", clients: 1 },
      ],
    };
    expect(seriesOf(status, "clients")).to.deep.equal([
      { labels: { role: "secondary", purpose: "view" }, value: 5 },
      { labels: { role: "secondary", purpose: "qmp" }, value: 1 },
    ]);
  });

  const troubles: readonly (readonly [name: string, status: NodeStatus, value: number])[] = [
    ["promise_broken", { ...secondaryStatus, brokenPromise: "the last checkpoint is lost" }, 1],
    ["swallowed_errors", { ...primaryStatus, error: ERROR }, 3],
    ["checkpoint_refused", { ...primaryStatus, checkpointRefusal: "no replica is attached" }, 1],
    ["link_error", linkPart({ lastError: "ECONNREFUSED" }), 1],
    ["link_reconnects_total", linkPart({ reconnects: 7 }), 7],
    ["replica_rollback_lost", linkPart({ rollbackLost: "log full" }), 1],
    ["new_data", primaryPart({ newData: "disk disk0: /a is another file" }), 1],
    ["waiting_changes", primaryPart({ waitingChanges: 2 }), 2],
    [
      "checkpoint_failures",
      primaryPart({
        checkpointFailure: { reason: "log full", since: "2026-01-02T03:02:08.000Z", attempts: 24 },
      }),
      24,
    ],
    ["conflict", secondaryPart({ conflict: "split brain" }), 1],
    ["writer_connected", secondaryPart({ writer: null }), 0],
  ];
  for (const [name, status, value] of troubles) {
    it(`${name} becomes ${value} when the status says so`, () => {
      const well = status.role === "primary" ? primaryStatus : secondaryStatus;
      expect([valueOf(well, name), valueOf(status, name)]).to.deep.equal([
        name === "writer_connected" ? 1 : 0,
        value,
      ]);
    });
  }

  it("counts the errors of each disk", () => {
    const [disk] = primaryStatus.disks;
    if (disk?.primary === undefined) throw new Error("the status is not a primary's");
    const disks = [disk, { ...disk, name: "disk1", primary: { ...disk.primary, error: ERROR } }];
    expect(seriesOf({ ...primaryStatus, disks }, "disk_errors_total")).to.deep.equal([
      { labels: { role: "primary", disk: "disk0" }, value: 0 },
      { labels: { role: "primary", disk: "disk1" }, value: 3 },
    ]);
  });

  it("says in which of several states a node is", () => {
    for (const stage of ["none", "running", "failover", "failover-failed", "done"] as const)
      expect(stateOf({ ...primaryStatus, stage }, "stage", "stage")).to.equal(stage);
    for (const state of ["detached", "connecting", "resyncing", "disconnected", "refused"] as const)
      expect(stateOf(linkPart({ state }), "link_state", "state")).to.equal(state);
    for (const rollback of ["available", "lost", "none"] as const)
      expect(stateOf(secondaryPart({ rollback }), "rollback", "state")).to.equal(rollback);
  });

  it("escapes what a label's value may not have as it is", () => {
    const stateDirectory = 'C:\\new "state"\nof {a}, b="c"';
    const text = renderMetrics({ ...primaryStatus, stateDirectory });
    expect(text).to.include('state_directory="C:\\\\new \\"state\\"\\nof {a}, b=\\"c\\""');
    expect(seriesOf({ ...primaryStatus, stateDirectory }, "info")[0]?.labels["state_directory"]).to.equal(
      stateDirectory,
    );
  });

  it("a primary and a secondary of one host say nothing twice, and describe the same alike", () => {
    const families = [primaryStatus, secondaryStatus, promotedStatus].map((status) =>
      parseMetrics(`${renderMetrics(status)}\n`),
    );
    const heads = new Map<string, string>();
    for (const [name, { type, help, series }] of families.flatMap((found) => [...found])) {
      expect(heads.get(name) ?? `${type} ${help}`).to.equal(`${type} ${help}`);
      heads.set(name, `${type} ${help}`);
      expect(series.every(({ labels }) => labels["role"] !== undefined)).to.equal(true);
    }
  });

  it("docs/cli.md lists all metrics with their types and labels, and nothing else", () => {
    const documented = [
      ...readFileSync(CLI_DOCUMENT, "utf8").matchAll(
        /^\| `(nbd_replication_\w+)` \| (\w+) \| ([^|]*?) ?\|/gm,
      ),
    ].map(([, name, type, labels]) => `${name} ${type} ${(labels?.match(/\w+/g) ?? []).join(" ")}`);
    const metrics = [...parseMetrics(`${renderMetrics(promotedStatus)}\n`)].map(
      ([name, { type, series }]) => {
        const labels = Object.keys(series[0]?.labels ?? {}).filter((label) => label !== "role");
        return `${name} ${type} ${labels.join(" ")}`;
      },
    );
    expect(documented).to.deep.equal(metrics);
  });
});
