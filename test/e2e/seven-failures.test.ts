/**
 * The seven failures of QEMU's docs/block-replication.txt, each brought about for real, with what follows from it: what
 * the guest sees, status, QMP and log; and that the pair is whole again once the cause is gone.
 */
import { expect } from "chai";
import { mkdir, rm, rmdir, writeFile } from "node:fs/promises";

import type { QmpClient } from "../../src/qmp/client.js";
import { expectPattern, tryQemuIo, writePattern } from "../tools/clients.js";
import { LinkProxy } from "../tools/link-proxy.js";
import type { NodeProcess } from "../tools/node-process.js";
import { MEBIBYTE, type Pair, type PairOptions, startPair } from "../tools/pair.js";
import { succeed } from "../tools/process.js";
import { startNbdkit } from "../tools/socket-server.js";
import { waitFor } from "../tools/wait-for.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 16 * MEBIBYTE;
/** Small enough to be full soon, large enough for the logs of two epochs. */
const STATE_SIZE = "4m";

const WARN = 40;

describe("failure of block replication", () => {
  const workspace = useWorkspace();

  const trigger = (): string => workspace.path("trigger");
  const failNow = (): Promise<void> => writeFile(trigger(), "");
  const mend = (): Promise<void> => rm(trigger());

  /** The nodes find out by themselves what has to be sent again; till then a checkpoint is refused. */
  const checkpointWhenMended = async (pair: Pair): Promise<void> => {
    await waitFor(
      "a checkpoint",
      () => pair.primary.verb("checkpoint"),
      ({ code }) => code === 0,
    );
  };

  /** QEMU's answer to its manager. */
  const xenStatus = (node: NodeProcess): Promise<unknown> =>
    node.withQmp((client) => client.execute("query-xen-replication-status"));
  const warned = (node: NodeProcess, message: string): Promise<unknown> =>
    node.logged(message, ({ level, msg }) => level >= WARN && msg.startsWith(message));

  /** A pair of which one disk is behind nbdkit, whose writes fail with EIO while the trigger is there. */
  const startFaultyPair = async (
    faulty: "primary" | "secondary",
    options: PairOptions = {},
  ): Promise<Pair> => {
    const socket = workspace.path("nbdkit.sock");
    const files = { primary: workspace.path("p.img"), secondary: workspace.path("s.img") };
    for (const file of Object.values(files)) await succeed("truncate", ["--size", String(SIZE_BYTES), file]);
    await startNbdkit(
      workspace,
      socket,
      ...["--filter=error", "file", files[faulty]],
      ...["error=EIO", "error-pwrite-rate=100%", "error-zero-rate=100%"],
      ...[`error-pwrite-file=${trigger()}`, `error-zero-file=${trigger()}`],
    );
    const diskPath = (role: "primary" | "secondary"): string =>
      role === faulty ? `nbd+unix:///?socket=${socket}` : files[role];
    return startPair(workspace, { diskPath, sizeBytes: SIZE_BYTES, ...options });
  };

  /** A pair whose secondary has its state on a small file system of its own. */
  const startCrampedPair = async (options: PairOptions = {}): Promise<Pair> => {
    const directory = workspace.path("secondary");
    await mkdir(directory, { mode: 0o700 });
    await succeed("mount", ["-t", "tmpfs", "-o", `size=${STATE_SIZE},mode=0700`, "tmpfs", directory]);
    // Busy until the node that uses it has ended: detached now, gone then.
    workspace.onEnd(() => succeed("umount", ["--lazy", directory]));
    return startPair(workspace, { sizeBytes: SIZE_BYTES, ...options });
  };

  /** The state directory has no byte left. */
  const fill = async (): Promise<void> => {
    await succeed("sh", [
      "-c",
      'dd if=/dev/zero of="$0" bs=4k 2>/dev/null || true',
      workspace.path("secondary/filler"),
    ]);
  };

  /** A client of the view writes from the disk's beginning on until it is refused, and in vain after that: 8 MiB in all. */
  const fillView = async (pair: Pair): Promise<void> => {
    const writes = Array.from({ length: 64 }, (_, index) => `write -P 0x55 ${index * 128}k 128k`);
    const { stdout, stderr } = await tryQemuIo(pair.viewUri(), ...writes, "flush");
    expect(stdout + stderr).to.include("No space left on device");
  };

  /** Nor is there anything that would be let go of to make room. */
  const fillPastReserve = async (): Promise<void> => {
    for (const name of ["spare.log", "reserve"])
      await rm(workspace.path(`secondary/${name}`), { force: true });
    await fill();
  };

  it("1, primary disk: the guest gets the error, and the pair goes on", async () => {
    const pair = await startFaultyPair("primary");
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await failNow();
    const write = await tryQemuIo(pair.primaryUri(), "write -P 0x22 0 64k");
    expect(write.stdout + write.stderr).to.include("Input/output error");
    await warned(pair.primary, "request failed: ");
    await warned(pair.primary, "I/O error of the disk");
    expect((await pair.primary.status()).disks[0]?.primary?.error).to.deep.include({
      ...{ operation: "write", errno: "EIO", disk: "disk0", count: 1 },
      ...{ offsetBytes: 0, lengthBytes: 64 * 1024 },
    });
    expect(await pair.primary.succeed("metrics")).to.include(
      'nbd_replication_disk_errors_total{role="primary",disk="disk0"} 1\n',
    );
    // QEMU's status is about what no guest was told of.
    expect(await xenStatus(pair.primary)).to.deep.equal({ error: false });
    await mend();
    await writePattern(pair.primaryUri(), 0x33, "0", "64k");
    await checkpointWhenMended(pair);
    await expectPattern(pair.primaryUri(), [0x33, "0", "64k"], [0x11, "64k", "960k"]);
    await expectPattern(pair.viewUri(), [0x33, "0", "64k"], [0x11, "64k", "960k"]);
  });

  it("2, forwarding: the guest goes on, the status tells, no checkpoint is taken over the hole", async () => {
    const links: LinkProxy[] = [];
    const pair = await startPair(workspace, {
      sizeBytes: SIZE_BYTES,
      primary: ["--replica-timeout", "1s"],
      route: async ({ replication, qmp }) => {
        for (const target of [replication, qmp]) links.push(await LinkProxy.start(workspace, target));
        const [nbd, control] = links;
        return { replication: nbd?.address ?? "", qmp: control?.address ?? "" };
      },
    });
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    for (const link of links) link.cut();
    await writePattern(pair.primaryUri(), 0x22, "0", "64k");
    expect(await xenStatus(pair.primary)).to.deep.equal({ error: true, desc: "I/O error occurred" });
    expect((await pair.primary.status()).error).to.deep.include({ operation: "write", disk: "disk0" });
    await warned(pair.primary, "change not replicated");
    expect((await pair.primary.verb("checkpoint")).code).to.equal(3);
    await expectPattern(pair.viewUri(), [0x11, "0", "1M"]);
    for (const link of links) link.heal();
    await pair.synchronised();
    await pair.checkpoint();
    expect(await xenStatus(pair.primary)).to.deep.equal({ error: false });
    await expectPattern(pair.viewUri(), [0x22, "0", "64k"], [0x11, "64k", "960k"]);
  });

  it("2, the secondary is gone: a manager's checkpoint on the primary is refused, too, until it is back", async () => {
    const pair = await startPair(workspace, { sizeBytes: SIZE_BYTES });
    const checkpoint = (): Promise<unknown> =>
      pair.primary.withQmp((client) => client.execute("xen-colo-do-checkpoint"));
    expect(await checkpoint()).to.deep.equal({});
    pair.secondary.process.signal("SIGKILL");
    await pair.secondary.process.ended();
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    const refused = await checkpoint().catch((error: unknown) => error);
    expect(refused)
      .to.have.property("message")
      .that.matches(/^checkpoint refused: the replica is .* not replicated$/);
    await pair.startSecondary();
    await pair.synchronised();
    expect(await checkpoint()).to.deep.equal({});
  });

  it("3, backup, break-checkpoint: the write counts, the rollback is lost until the next checkpoint", async () => {
    const pair = await startCrampedPair();
    await writePattern(pair.primaryUri(), 0x11, "0", "8M");
    await pair.checkpoint();
    await fill();
    await writePattern(pair.primaryUri(), 0x22, "0", "1M");
    const status = await pair.secondary.waitForStatus("an error", ({ error }) => error !== null);
    expect(status.error).to.deep.include({
      ...{ operation: "copy-before-write", errno: "ENOSPC" },
      ...{ disk: "disk0", offsetBytes: 0, lengthBytes: MEBIBYTE },
    });
    expect(status.secondary?.rollback).to.equal("lost");
    expect(status.brokenPromise).to.equal("the last checkpoint is lost");
    await pair.primary.waitForStatus(
      "the replica's word",
      ({ primary }) => primary?.link.rollbackLost?.startsWith("its before-images could not be kept") === true,
    );
    expect(await xenStatus(pair.secondary)).to.deep.equal({ error: true, desc: "I/O error occurred" });
    expect(await warned(pair.secondary, "checkpoint lost: no rollback until the next checkpoint")).to.include(
      {
        ...{ errno: "ENOSPC", disk: "disk0", offset: 0, lengthBytes: MEBIBYTE },
      },
    );
    expect((await pair.secondary.verb("failover", "--yes")).stderr).to.include("the last checkpoint is lost");
    await rm(workspace.path("secondary/filler"));
    await pair.checkpoint();
    expect(await xenStatus(pair.secondary)).to.deep.equal({ error: false });
    expect((await pair.secondary.status()).brokenPromise).to.equal(null);
    expect((await pair.primary.status()).primary?.link.rollbackLost).to.equal(null);
    await expectPattern(pair.viewUri(), [0x22, "0", "1M"], [0x11, "1M", "7M"]);
  });

  it("3, backup, break-checkpoint, where before-images alone fill the file system: they make room for what comes next", async () => {
    const pair = await startCrampedPair({ sizeBytes: 32 * MEBIBYTE });
    let pattern = 0x10;
    const lose = async (): Promise<void> => {
      await writePattern(pair.primaryUri(), ++pattern, "0", "16M");
      // Refused at the instant at which there is no room, until the log that fills it is given up.
      await checkpointWhenMended(pair);
      await writePattern(pair.primaryUri(), ++pattern, "0", "16M");
      await pair.secondary.waitForStatus("rollback lost", ({ secondary }) => secondary?.rollback === "lost");
    };
    await lose();
    await checkpointWhenMended(pair);
    await expectPattern(pair.viewUri(), [pattern, "0", "16M"]);
    await lose();
    pair.secondary.process.signal("SIGKILL");
    await pair.secondary.process.ended();
    await pair.startSecondary();
    await pair.synchronised();
    await expectPattern(pair.viewUri(), [pattern, "0", "16M"]);
    await lose();
    await pair.failOver("--to", "latest");
    await expectPattern(pair.viewUri(), [pattern, "0", "16M"]);
  });

  it("3, backup, break-checkpoint, where a view's client fills the file system: what it wrote makes room for what comes next", async () => {
    const pair = await startCrampedPair();
    const lose = async (pattern: number): Promise<void> => {
      await writePattern(pair.primaryUri(), pattern, "12M", "64k");
      await fillView(pair);
      await fill();
      await writePattern(pair.primaryUri(), pattern, "8M", "64k");
      await pair.secondary.waitForStatus("rollback lost", ({ secondary }) => secondary?.rollback === "lost");
    };
    await lose(0x11);
    await checkpointWhenMended(pair);
    await expectPattern(pair.viewUri(), [0, "0", "8M"], [0x11, "8M", "64k"], [0x11, "12M", "64k"]);
    await rm(workspace.path("secondary/filler"));
    await lose(0x22);
    pair.secondary.process.signal("SIGKILL");
    await pair.secondary.process.ended();
    await pair.startSecondary();
    await pair.synchronised();
    await expectPattern(pair.viewUri(), [0, "0", "8M"], [0x22, "8M", "64k"], [0x22, "12M", "64k"]);
  });

  it("5, active disk full of what a view's client wrote, the guest idle: the next checkpoint has room, and drops it", async () => {
    const pair = await startCrampedPair();
    await writePattern(pair.primaryUri(), 0x11, "0", "64k");
    await pair.checkpoint();
    for (let round = 0; round < 2; round++) {
      await fillView(pair);
      await expectPattern(pair.viewUri(), [0x55, "0", "1M"]);
      await pair.checkpoint();
      await expectPattern(pair.viewUri(), [0x11, "0", "64k"], [0, "64k", "8M"]);
    }
  });

  it("3, backup, break-replication: the write is refused, the rollback stays, the guest goes on, and a failover has room", async () => {
    const pair = await startCrampedPair({ secondary: ["--on-undo-error", "break-replication"] });
    await writePattern(pair.primaryUri(), 0x11, "0", "8M");
    await pair.checkpoint();
    await fill();
    await writePattern(pair.primaryUri(), 0x22, "0", "1M");
    const { secondary } = await pair.secondary.waitForStatus("an error", ({ error }) => error !== null);
    expect(secondary?.rollback).to.equal("available");
    await warned(pair.secondary, "I/O error on the secondary");
    expect((await pair.primary.verb("checkpoint")).code).to.not.equal(0);
    await expectPattern(pair.viewUri(), [0x11, "0", "8M"]);
    await pair.failOver();
    await expectPattern(pair.viewUri(), [0x11, "0", "8M"]);
    await pair.secondary.succeed("stop");
    await expectPattern(pair.secondaryFile(), [0x11, "0", "8M"]);
  });

  for (const [what, sizeBytes] of [
    ["a large disk", 1024 * 1024 * MEBIBYTE],
    ["a small one", 16 * MEBIBYTE],
  ] as const) {
    it(`7, failover of ${what}, the state directory full and the node killed: it starts, and has room`, async () => {
      const pair = await startCrampedPair({ sizeBytes });
      await writePattern(pair.primaryUri(), 0x11, "0", "64k");
      await pair.checkpoint();
      await pair.primary.succeed("stop");
      pair.secondary.process.signal("SIGKILL");
      await pair.secondary.process.ended();
      await rm(workspace.path("secondary/spare.log"), { force: true });
      await fill();
      await pair.startSecondary();
      await pair.failOver();
      await writePattern(pair.viewUri(), 0x22, "64k", "64k");
      await expectPattern(pair.viewUri(), [0x11, "0", "64k"], [0x22, "64k", "64k"]);
    });
  }

  it("4, secondary disk: the status of both tells, no checkpoint; mended, the blocks are sent again", async () => {
    const pair = await startFaultyPair("secondary");
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    await failNow();
    await writePattern(pair.primaryUri(), 0x22, "0", "64k");
    const { error } = await pair.secondary.waitForStatus("an error", (status) => status.error !== null);
    expect(error).to.deep.include({ disk: "disk0", errno: "EIO" });
    expect(await xenStatus(pair.secondary)).to.deep.equal({ error: true, desc: "I/O error occurred" });
    await warned(pair.secondary, "I/O error on the secondary");
    expect((await pair.primary.verb("checkpoint")).code).to.not.equal(0);
    await expectPattern(pair.viewUri(), [0x11, "0", "1M"]);
    await mend();
    await checkpointWhenMended(pair);
    await expectPattern(pair.viewUri(), [0x22, "0", "64k"], [0x11, "64k", "960k"]);
    expect(await xenStatus(pair.secondary)).to.deep.equal({ error: false });
  });

  it("5, active disk: the view's client gets the error, replication goes on", async () => {
    const pair = await startCrampedPair();
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    await fill();
    const write = await tryQemuIo(pair.viewUri(), "write -P 0xaa 0 4M", "flush");
    expect(write.stdout + write.stderr).to.match(
      /write failed: (No space left on device|Input\/output error)/,
    );
    await warned(pair.secondary, "request failed: ");
    expect((await pair.secondary.status()).stage).to.equal("running");
    await rm(workspace.path("secondary/filler"));
    await writePattern(pair.primaryUri(), 0x22, "0", "64k");
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x22, "0", "64k"], [0x11, "64k", "960k"]);
  });

  it("6, making the overlays empty: the checkpoint fails and says so, the last one stays", async () => {
    const pair = await startCrampedPair();
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    await writePattern(pair.primaryUri(), 0x22, "0", "64k");
    // It is acknowledged before its image is kept, which must be before the room ends.
    await pair.secondary.waitForStatus(
      "the image",
      ({ disks }) => disks[0]?.secondary?.undoBytes === 64 * 1024,
    );
    await fill();
    const { code, stderr } = await pair.primary.verb("checkpoint");
    expect(code, stderr).to.not.equal(0);
    expect(stderr).to.match(/no space|ENOSPC/i);
    await expectPattern(pair.viewUri(), [0x11, "0", "1M"]);
    await rm(workspace.path("secondary/filler"));
    await pair.synchronised();
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x22, "0", "64k"], [0x11, "64k", "960k"]);
  });

  it("6, recording the checkpoint: the verb says at once why it failed; mended, the next one is taken", async () => {
    const pair = await startPair(workspace, { sizeBytes: SIZE_BYTES });
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    await writePattern(pair.primaryUri(), 0x22, "0", "64k");
    const inTheWay = workspace.path("secondary/metadata.json.tmp");
    await mkdir(inTheWay);
    const { code, stdout, stderr } = await pair.primary.verb("checkpoint");
    expect([code, stdout], stderr).to.deep.equal([1, ""]);
    expect(stderr).to.match(
      /checkpoint failed on the secondary: epoch \d+ is not durable: replacement of \S+metadata\.json failed: EISDIR: .*: mend that, then take another checkpoint; until then a crash goes back to the one before\n$/,
    );
    const reason = (await pair.primary.status()).primary?.checkpointFailure?.reason ?? "";
    expect(stderr).to.include(reason).and.not.equal("");
    await warned(pair.secondary, "checkpoint failed");
    const { error, brokenPromise } = await pair.secondary.status();
    expect([error, brokenPromise?.split(":")[0]]).to.deep.equal([
      null,
      "the last checkpoint could not be made durable",
    ]);
    expect((await pair.primary.verb("checkpoint")).code, "as long as that lasts").to.equal(1);
    await rmdir(inTheWay);
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x22, "0", "64k"], [0x11, "64k", "960k"]);
    expect((await pair.primary.status()).primary?.checkpointFailure).to.equal(null);
    expect((await pair.secondary.status()).brokenPromise).to.equal(null);
  });

  it("7, failover: stage failover-failed, reads and writes go on as specified, and it can be tried again", async () => {
    const pair = await startFaultyPair("secondary");
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    await writePattern(pair.primaryUri(), 0x22, "0", "64k");
    await writePattern(pair.viewUri(), 0xaa, "64k", "64k");
    await pair.primary.succeed("stop");
    await failNow();
    await pair.secondary.withQmp(async (client) => {
      const events = ["BLOCK_JOB_ERROR", "BLOCK_JOB_COMPLETED"].map((name) => client.waitForEvent(name));
      await pair.secondary.verb("failover", "--yes");
      const [failed, completed] = await Promise.all(events);
      expect(failed?.data).to.deep.equal({ device: "commit", operation: "write", action: "report" });
      const job = { device: "commit", type: "commit", len: 131072, offset: 0, speed: 0 };
      expect(completed?.data)
        .to.deep.include(job)
        .and.have.property("error")
        .that.matches(/EIO|I\/O error/i);
    });
    await pair.secondary.waitForStatus("failover-failed", ({ stage }) => stage === "failover-failed");
    expect(await xenStatus(pair.secondary)).to.deep.equal({ error: true, desc: "I/O error occurred" });
    await warned(pair.secondary, "failover failed");
    expect((await pair.secondary.status()).jobs).to.deep.equal([]);
    // Reads through the chain; writes to active where an overlay holds the block, else to the disk, which fails.
    await expectPattern(pair.viewUri(), [0x11, "0", "64k"], [0xaa, "64k", "64k"], [0x11, "128k", "896k"]);
    await writePattern(pair.viewUri(), 0xbb, "0", "4k");
    const write = await tryQemuIo(pair.viewUri(), "write -P 0xcc 512k 4k");
    expect(write.stdout + write.stderr).to.include("Input/output error");
    await mend();
    await writePattern(pair.viewUri(), 0xdd, "512k", "4k");
    // By the command of QEMU's managers, which is refused where there is nothing to end.
    await pair.secondary.withQmp((client) => client.execute("x-colo-lost-heartbeat"));
    await pair.secondary.waitForStatus("failover done", ({ stage }) => stage === "done");
    const expected = [
      [0xbb, "0", "4k"],
      [0x11, "4k", "60k"],
      [0xaa, "64k", "64k"],
      [0x11, "128k", "384k"],
      [0xdd, "512k", "4k"],
    ] as const;
    await expectPattern(pair.viewUri(), ...expected);
    await pair.secondary.succeed("stop");
    await expectPattern(workspace.path("s.img"), ...expected);
  });

  for (const [target, next, isRestarted] of [
    ["checkpoint", "checkpoint", false],
    ["latest", "latest", false],
    ["checkpoint", "latest", false],
    ["latest", "checkpoint", true],
  ] as const) {
    const how = `again${isRestarted ? ", after a restart" : ""}${next === target ? "" : `, to ${next}`}`;
    it(`7, failover to ${target} that can't begin, for the state directory is full: the verb fails, and it can be tried ${how}`, async () => {
      const pair = await startCrampedPair();
      await writePattern(pair.primaryUri(), 0x11, "0", "1M");
      await pair.checkpoint();
      await writePattern(pair.primaryUri(), 0x22, "0", "64k");
      await pair.primary.succeed("stop");
      await fillPastReserve();
      const reason =
        /failover could not begin: replacement of \S+metadata\.json failed: ENOSPC: .*: the node is in stage failover-failed; mend that, then fail over again$/;
      const { code, stdout, stderr } = await pair.secondary.verb("failover", "--yes", "--to", target);
      expect([code, stdout], stderr).to.deep.equal([1, ""]);
      expect(stderr.split("\n")).to.have.length(2);
      expect(stderr.trimEnd()).to.match(reason);
      expect((await pair.secondary.status()).stage).to.equal("failover-failed");
      const again = (client: QmpClient): Promise<unknown> =>
        client.execute("x-repl-failover", { to: target });
      const refused = await pair.secondary.withQmp(again).catch((error: unknown) => error);
      expect(refused).to.deep.include({ qmpClass: "GenericError", kind: "failed", code: "failover-failed" });
      const failures = () => pair.secondary.log.filter(({ msg }) => msg === "failover failed");
      await waitFor("a second line", failures, ({ length }) => length === 2);
      await rm(workspace.path("secondary/filler"));
      if (isRestarted) {
        const { code, stderr } = await pair.secondary.verb("stop");
        expect(code).to.equal(1);
        expect(stderr).to.match(
          /exit code 1: the failover has failed: replacement of \S+metadata\.json failed: ENOSPC/,
        );
        await pair.secondary.process.ended();
        await pair.startSecondary();
        expect((await pair.secondary.status()).stage).to.equal("failover-failed");
      }
      await pair.failOver("--to", next);
      const expected = next === "latest" ? 0x22 : 0x11;
      await expectPattern(pair.viewUri(), [expected, "0", "64k"], [0x11, "64k", "960k"]);
    });
  }

  it("7, a manager's failover that can't begin: it is told so", async () => {
    const pair = await startCrampedPair();
    await pair.primary.succeed("stop");
    await fillPastReserve();
    const failOver = (client: QmpClient): Promise<unknown> =>
      client.execute("xen-set-replication", { enable: false, primary: false, failover: true });
    const refused = await pair.secondary.withQmp(failOver).catch((error: unknown) => error);
    expect(refused).to.deep.include({ qmpClass: "GenericError", code: "failover-failed" });
  });
});
