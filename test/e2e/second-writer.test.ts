/** A client that writes to the replica behind the primary's back. */
import { expect } from "chai";

import { expectPattern, qemuIo, tryQemuIo, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { Host } from "../tools/host.js";
import type { NodeProcess } from "../tools/node-process.js";
import { MEBIBYTE, startPair } from "../tools/pair.js";
import { failureOf } from "../tools/outcome.js";
import { useWorkspace } from "../tools/workspace.js";

describe("a second writer beside the primary", () => {
  const workspace = useWorkspace();

  it("may read and is refused each write, which costs the pair nothing: no connection, no checkpoint, no copy", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    const before = await pair.primary.status();
    const uri = `nbd://${pair.addresses.replication}/disk0`;
    expect(await qemuIo(uri, "read -P 0x11 0 1M")).to.include("read 1048576/1048576");
    for (const change of ["write -P 0x99 0 64k", "write -z 0 64k", "discard 0 64k"]) {
      const { stdout, stderr } = await tryQemuIo(uri, change);
      expect(`${stdout}${stderr}`, change).to.match(
        /failed: (Operation not permitted|Input\/output error|Permission denied)/,
      );
    }
    await pair.secondary.logged("writer refused", ({ msg }) => msg === "writer refused");
    await expectPattern(pair.viewUri(), [0x11, "0", "1M"]);

    await writePattern(pair.primaryUri(), 0x22, "64k", "64k");
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x11, "0", "64k"], [0x22, "64k", "64k"]);
    const after = await pair.primary.status();
    expect(after.primary?.link).to.deep.equal(before.primary?.link);
    expect(after.disks[0]?.primary?.bytesResynced).to.equal(before.disks[0]?.primary?.bytesResynced);
    await pair.primary.succeed("stop");
    await pair.secondary.succeed("stop");
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });

  it("is refused while the primary is away, which comes back without a copy", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    const { epoch } = await pair.secondary.status();
    await pair.primary.succeed("stop");
    await pair.secondary.waitForStatus("nobody there", ({ secondary }) => secondary?.writer === null);
    const { stdout, stderr } = await tryQemuIo(
      `nbd://${pair.addresses.replication}/disk0`,
      "write -P 0x99 0 64k",
    );
    expect(`${stdout}${stderr}`).to.match(/write failed/);
    await expectPattern(pair.viewUri(), [0x11, "0", "1M"]);
    expect(await pair.secondary.status()).to.include({ epoch, stage: "running" });
    await pair.startPrimary();
    await pair.synchronised();
    await pair.checkpoint();
    expect((await pair.primary.status()).disks[0]?.primary?.bytesResynced).to.equal(0);
    await pair.primary.succeed("stop");
    await pair.secondary.succeed("stop");
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });

  it("is refused before the primary has written anything, too", async () => {
    const pair = await startPair(workspace);
    const { stdout, stderr } = await tryQemuIo(
      `nbd://${pair.addresses.replication}/disk0`,
      "write -P 0x99 0 64k",
    );
    expect(`${stdout}${stderr}`).to.match(/write failed/);
    await writePattern(pair.primaryUri(), 0x11, "0", "64k");
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x11, "0", "64k"]);
    expect((await pair.primary.status()).primary?.link.reconnects).to.equal(0);
  });

  it("finds the primary's name for an export in no status and no log", async () => {
    const pair = await startPair(workspace);
    await pair.secondary.withQmp((client) =>
      client.execute("nbd-server-remove", { name: "disk0", mode: "hard" }),
    );
    const { primary } = await pair.primary.waitForStatus("refused", ({ primary: part }) =>
      (part?.link.lastError ?? "").includes("no export"),
    );
    expect(primary?.link.lastError).to.equal(
      `${pair.addresses.replication}: the server refuses the export "disk0": there is no export "disk0": it has to be the node of --replica-qmp, and to export the disk`,
    );
    await pair.secondary.withQmp((client) =>
      client.execute("nbd-server-add", { device: "disk0", writable: true }),
    );
    await pair.synchronised();
    for (const node of [pair.primary, pair.secondary]) {
      expect(JSON.stringify([node.log, await node.status()])).not.to.match(/disk0@/);
    }
  });
});

describe("a writer that is no primary, before one comes", () => {
  const workspace = useWorkspace();

  /** Whether the node says that a failover can go back to a checkpoint, in its metrics. */
  async function rollbackOf(node: NodeProcess): Promise<string | undefined> {
    return /^nbd_replication_rollback\{.*state="(\w+)"\} 1$/m.exec(await node.succeed("metrics"))?.[1];
  }

  it("spoils a node's own data: what a primary's resync begins on is no checkpoint, and nobody goes back to it", async () => {
    const [a, b] = ["a", "b"].map((name) => new Host(workspace, name, 16 * MEBIBYTE)) as [Host, Host];
    await b.startSecondary();
    await a.startPrimary(b);
    await a.synchronised();
    await writePattern(a.uri, 0x11, "0", "16M");
    await a.kill();
    await b.failOver("latest");
    await b.node.succeed("stop");

    await a.startSecondary();
    await writePattern(`nbd://${await a.node.tcpAddress("replication")}/disk0`, 0x99, "0", "8M");
    await b.startPrimary(a, "--resync-rate", "1M");
    await b.node.waitForStatus("a resync", ({ jobs: [job] }) => (job?.offset ?? 0) > 0);

    const why = /writer \S+ wrote to the disks while replication was not running/;
    await b.node.waitForStatus("what the replica lacks", ({ primary }) =>
      why.test(primary?.link.rollbackLost ?? ""),
    );
    for (const restart of [false, true]) {
      if (restart) {
        await a.kill();
        await a.startSecondary();
      }
      const status = await a.node.status();
      expect(status).to.include({ stage: "running", lastCheckpoint: null });
      expect(status.secondary?.rollback).to.equal("lost");
      expect(status.secondary?.rollbackLostReason).to.match(why);
      expect(await rollbackOf(a.node)).to.equal("lost");
      expect(await a.node.succeed("status")).to.match(
        new RegExp(
          `^! no rollback until the next checkpoint: the last checkpoint is lost: ${why.source}$`,
          "m",
        ),
      );
      expect((await tryQemuIo(a.uri, "read 0 4k")).stdout).to.include("read failed: Input/output error");
      const [first, second] = (await a.node.succeed("failover", "--dry-run")).split("\n");
      expect(first).to.match(
        new RegExp(
          `^failover to checkpoint in epoch \\d+ is not possible: the last checkpoint is lost: ${why.source}$`,
        ),
      );
      expect(second).to.match(
        /^instead, to latest: would lose nothing; but what was received may have holes: /,
      );
      const refused = await a.node.verb("failover", "--yes");
      expect(refused.code).to.equal(3);
      expect(refused.stderr).to.match(
        /^repl-secondary: failover refused: .* wrote to the disks .*: wait for the next one, or .* \(--to latest\)\n$/,
      );
      const manager = a.node.withQmp((client) => client.execute("x-colo-lost-heartbeat"));
      expect((await failureOf(manager)).message).to.match(/^failover refused: the last checkpoint is lost/);
    }
    await b.node.succeed("stop");
    await b.startPrimary(a);
    await b.synchronised();
    const whole = await a.node.status();
    expect(whole.secondary).to.include({ rollback: "available", rollbackLostReason: null });
    expect(whole.lastCheckpoint).to.not.equal(null);
    await writePattern(b.uri, 0x22, "0", "1M");
    await b.kill();
    await a.failOver("checkpoint");
    await expectPattern(a.uri, [0x11, "0", "16M"]);
  });

  it("writes to a replica that was stopped: until the copy of a primary is finished there is no checkpoint, but for who says so", async () => {
    const pair = await startPair(workspace, { sizeBytes: 16 * MEBIBYTE, primary: ["--resync-rate", "1M"] });
    const { secondary } = pair;
    const replication = (enable: boolean): Promise<unknown> =>
      secondary.withQmp((client) => client.execute("xen-set-replication", { enable, primary: false }));
    await writePattern(pair.primaryUri(), 0x11, "0", "16M");
    await pair.checkpoint();
    await pair.primary.succeed("stop");
    await replication(false);
    await writePattern(`nbd://${pair.addresses.replication}/disk0`, 0x99, "0", "8M");
    await pair.startPrimary();
    await pair.primary.waitForStatus("a resync", ({ jobs: [job] }) => (job?.offset ?? 0) > 0);

    const status = await secondary.status();
    expect(status).to.include({ stage: "none", lastCheckpoint: null });
    const { rollback, rollbackLostReason } = status.secondary ?? {};
    expect([rollback, rollbackLostReason]).to.deep.equal([
      "none",
      "replication was stopped without a failover",
    ]);
    expect(await rollbackOf(secondary)).to.equal("none");
    expect(await secondary.succeed("status")).to.match(
      /^ {2}rollback +none: replication was stopped without a failover$/m,
    );
    for (const options of [["--dry-run"], ["--yes"], ["--yes", "--to", "latest"]]) {
      const { code, stderr } = await secondary.verb("failover", ...options);
      expect([code, stderr], options.join(" ")).to.deep.equal([
        3,
        "repl-secondary: Block replication is not running: there is nothing to fail over to, for replication was stopped without a failover: wait for the end of a primary's copy; or, to take the disks as they are, give that copy up and start replication (QMP xen-set-replication, enable: false, then true, primary: false), then fail over (repl-secondary failover --to latest)\n",
      ]);
    }

    // In a disaster somebody may have to.
    await pair.primary.process.kill();
    await replication(false);
    await replication(true);
    await pair.failOver();
    await expectPattern(pair.viewUri(), [0x11, "12M", "4M"]);
  });
});
