/** The verb `metrics`, as whoever feeds Prometheus runs it, against nodes that fare well and nodes that don't. */
import { expect } from "chai";

import { writePattern } from "../tools/clients.js";
import { type NodeProcess, runNode } from "../tools/node-process.js";
import { MEBIBYTE, startPair } from "../tools/pair.js";
import { type Family, parseMetrics } from "../tools/prometheus.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 8 * MEBIBYTE;

describe("metrics", () => {
  const workspace = useWorkspace();

  const metricsOf = async (node: NodeProcess): Promise<Map<string, Family>> =>
    parseMetrics(await node.succeed("metrics"));

  /** The value of a node's series with these labels besides its role; undefined: there is none. */
  const value = (
    metrics: Map<string, Family>,
    name: string,
    labels: Readonly<Record<string, string>> = {},
  ): number | undefined =>
    metrics
      .get(`nbd_replication_${name}`)
      ?.series.find((series) =>
        Object.entries(labels).every(([label, text]) => series.labels[label] === text),
      )?.value;

  it("a pair: each node has the figures of its status", async () => {
    const pair = await startPair(workspace, { sizeBytes: SIZE_BYTES });
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    const [primary, secondary] = [await metricsOf(pair.primary), await metricsOf(pair.secondary)];
    const status = await pair.primary.status();
    expect(primary.get("nbd_replication_info")?.series).to.deep.equal([
      {
        labels: {
          role: "primary",
          version: status.version,
          cache: "writeback",
          state_directory: pair.primary.stateDirectory,
          generation: status.generation,
        },
        value: 1,
      },
    ]);
    for (const [role, metrics] of Object.entries({ primary, secondary })) {
      expect(value(metrics, "stage", { stage: "running" }), role).to.equal(1);
      expect(value(metrics, "epoch"), role).to.equal(status.epoch);
      expect(value(metrics, "promise_broken"), role).to.equal(0);
      expect(value(metrics, "checkpoint_refused"), role).to.equal(0);
      expect(value(metrics, "disk_size_bytes", { disk: "disk0" }), role).to.equal(SIZE_BYTES);
    }
    const at = status.lastCheckpoint?.at ?? "";
    expect(value(primary, "last_checkpoint_timestamp_seconds")).to.equal(Date.parse(at) / 1000);
    expect(value(primary, "link_state", { state: "replicating" })).to.equal(1);
    expect(value(primary, "disk_replicated_bytes_total", { disk: "disk0" })).to.equal(MEBIBYTE);
    expect(value(primary, "disk_dirty_bytes", { disk: "disk0" })).to.equal(0);
    expect(value(primary, "rollback")).to.equal(undefined);
    expect(value(secondary, "rollback", { state: "available" })).to.equal(1);
    expect(value(secondary, "writer_connected")).to.equal(1);
    expect(value(secondary, "clients", { purpose: "replication" })).to.equal(1);
    expect(value(secondary, "link_state")).to.equal(undefined);
  });

  it("a primary that lost its replica, then a secondary that was promoted", async () => {
    const pair = await startPair(workspace, {
      sizeBytes: SIZE_BYTES,
      primary: ["--checkpoint-interval", "100ms"],
    });
    await pair.secondary.process.kill();
    await writePattern(pair.primaryUri(), 0x22, "0", "64k");
    await pair.primary.waitForStatus(
      "a checkpoint in vain",
      ({ primary }) => (primary?.checkpointFailure?.attempts ?? 0) > 0 && primary?.link.lastError !== null,
    );
    const primary = await metricsOf(pair.primary);
    expect(value(primary, "link_state", { state: "replicating" })).to.equal(0);
    expect(value(primary, "link_error")).to.equal(1);
    expect(value(primary, "checkpoint_refused")).to.equal(1);
    expect(value(primary, "checkpoint_failures")).to.be.greaterThan(0);
    expect(value(primary, "swallowed_errors")).to.be.greaterThan(0);
    expect(value(primary, "disk_dirty_bytes", { disk: "disk0" })).to.be.at.least(64 * 1024);
    expect(await pair.primary.succeed("status")).to.match(/^! no checkpoint in \d+ attempts?, the first /m);
    await pair.startSecondary();
    await pair.primary.succeed("stop");
    await pair.failOver();
    const promoted = await metricsOf(pair.secondary);
    expect(value(promoted, "stage", { stage: "done" })).to.equal(1);
    expect(value(promoted, "rollback", { state: "none" })).to.equal(1);
    expect(value(promoted, "link_state", { state: "detached" })).to.equal(1);
  });

  it("a node that can't be reached: exit code 4, nothing on standard output", async () => {
    for (const role of ["primary", "secondary"] as const) {
      const nowhere = workspace.path("nowhere");
      expect(await runNode(role, ["metrics", "--state-dir", nowhere])).to.deep.include({
        code: 4,
        stdout: "",
        stderr: `repl-${role}: can't reach a QMP server at unix:${nowhere}/qmp.sock: connect ENOENT ${nowhere}/qmp.sock: start the node, or name another by --state-dir, --config or --qmp\n`,
      });
    }
  });
});
