/** Our primary with a QEMU as its secondary, commanded by QEMU's own QMP. */
import { expect } from "chai";
import { copyFile, rename } from "node:fs/promises";

import { expectPattern, fioResult, startFio, tryQemuIo, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { LinkProxy } from "../tools/link-proxy.js";
import { NodeProcess } from "../tools/node-process.js";
import { MEBIBYTE } from "../tools/pair.js";
import { failureOf } from "../tools/outcome.js";
import { Qemu } from "../tools/qemu.js";
import { waitFor } from "../tools/wait-for.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 32 * MEBIBYTE;
const CHECKPOINTS = 200;

describe("QEMU as the secondary of our primary", () => {
  const workspace = useWorkspace();
  let qemu: Qemu;
  let primary: NodeProcess;

  const guest = (): string => `nbd+unix:///disk0?socket=${workspace.path("guest.sock")}`;

  const startPrimary = async (replicaQmp: string = qemu.peerQmp): Promise<void> => {
    primary = await NodeProcess.start(workspace, "primary", [
      ...["--disk", `disk0=${workspace.path("primary.img")}`, "--size", String(SIZE_BYTES)],
      ...["--listen", `unix:${workspace.path("guest.sock")}`, "--replica-timeout", "5s"],
      ...["--replica", `nbd+unix:///?socket=${qemu.nbdPath}`, "--replica-qmp", replicaQmp],
    ]);
  };

  const synchronised = async (): Promise<void> => {
    await primary.waitForStatus(
      "replicating, with a checkpoint",
      (status) => status.primary?.link.state === "replicating" && status.lastCheckpoint !== null,
    );
  };

  beforeEach(async () => {
    qemu = await Qemu.secondary(workspace, "secondary", SIZE_BYTES);
    await qemu.serve({ disk0: "disk0", view: "top" });
    await startPrimary();
    await synchronised();
  });

  const checkpoint = (): Promise<unknown> => primary.withQmp((client) => client.execute("x-repl-checkpoint"));

  /** Ends the primary as a crash would, and promotes QEMU. */
  const failOver = async (): Promise<void> => {
    await primary.process.kill();
    await qemu.execute("nbd-server-remove", { name: "disk0", mode: "hard" });
    await qemu.execute("xen-set-replication", { enable: false, primary: false, failover: true });
    await waitFor(
      "QEMU to have merged its overlays",
      async () => (await qemu.execute("query-named-block-nodes", { flat: true })) as { drv: string }[],
      (nodes) => !nodes.some(({ drv }) => drv === "qcow2"),
    );
  };

  it("initial copy, forwarding, checkpoint, failover: the view and then the disk have the checkpoint", async () => {
    await writePattern(guest(), 0x11, "0", "1M");
    await checkpoint();
    await writePattern(guest(), 0x22, "512k", "1M");
    await expectPattern(qemu.uri("view"), [0x11, "0", "1M"], [0, "1M", "1M"]);
    await writePattern(qemu.uri("view"), 0xaa, "0", "64k");
    await failOver();
    await expectPattern(qemu.uri("view"), [0xaa, "0", "64k"], [0x11, "64k", "960k"], [0, "1M", "1M"]);
  });

  for (const depth of [1, 32]) {
    it(`${CHECKPOINTS} checkpoints with fio at depth ${depth}: QEMU does not abort, and the disks are the same`, async () => {
      const options = { size: "16m", iodepth: depth, time_based: 1, runtime: 2, verify: "0" };
      for (let taken = 0; taken < CHECKPOINTS;) {
        const fio = await startFio(workspace, guest(), options);
        for (; fio.isRunning; taken++) await checkpoint();
        expect((await fioResult(fio)).error).to.equal(0);
      }
      await checkpoint();
      expect(qemu.process.isRunning).to.equal(true);
      await expectSameContent(workspace.path("primary.img"), workspace.path("secondary.img"));
    });
  }

  it("a link that was cut is resynced inside QEMU's epoch: the view keeps the checkpoint till then", async () => {
    await writePattern(guest(), 0x11, "0", "8M");
    await checkpoint();
    await qemu.execute("nbd-server-remove", { name: "disk0", mode: "hard" });
    await writePattern(guest(), 0x22, "1M", "64k");
    await primary.waitForStatus("the replica missed", ({ error }) => error !== null);
    expect((await primary.verb("checkpoint")).code).to.equal(3);
    await expectPattern(qemu.uri("view"), [0x11, "0", "8M"]);
    const nodes = (await qemu.execute("query-named-block-nodes", { flat: true })) as {
      drv: string;
      "node-name": string;
    }[];
    const device = nodes.find(({ drv }) => drv === "copy-before-write")?.["node-name"];
    await qemu.execute("nbd-server-add", { device, name: "disk0", writable: true });
    await primary.waitForStatus("replicating", (status) => status.primary?.link.state === "replicating");
    await checkpoint();
    await expectPattern(qemu.uri("view"), [0x11, "0", "1M"], [0x22, "1M", "64k"]);
  });

  it("a primary that is cut off while it exports the disk anew does so when it is back; what a manager took away stays away", async () => {
    await primary.succeed("stop");
    const link = await LinkProxy.start(workspace, qemu.peerQmp);
    await startPrimary(`tcp:${link.address}`);
    await synchronised();
    await writePattern(guest(), 0x11, "0", "1M");
    const isCutOff = link.when(
      () => {
        link.reset();
      },
      ["far", "nbd-server-remove"],
      ["near", "BLOCK_EXPORT_DELETED"],
    );
    link.reset();
    await isCutOff;
    await primary.waitForStatus("replicating", (status) => status.primary?.link.state === "replicating");
    await writePattern(guest(), 0x22, "512k", "1M");
    await checkpoint();
    await writePattern(guest(), 0x33, "0", "64k");
    await expectPattern(qemu.uri("view"), [0x11, "0", "512k"], [0x22, "512k", "1M"]);
    await qemu.execute("nbd-server-remove", { name: "disk0", mode: "hard" });
    await primary.waitForStatus("refused", (status) => status.primary?.link.state === "refused");
    expect(await qemu.execute("query-block-exports")).to.have.length(1);
  });

  it("a primary whose disk is another file is refused, and QEMU keeps what it has, until its operator gives that up", async () => {
    await writePattern(guest(), 0x11, "0", "8M");
    await checkpoint();
    await primary.succeed("stop");
    const file = workspace.path("primary.img");
    await copyFile(file, `${file}.other`);
    await writePattern(`${file}.other`, 0x77, "0", "1M");
    await rename(`${file}.other`, file);
    const { message } = await failureOf(startPrimary());
    expect(message).to.match(
      /repl-primary: disk disk0: \S+ is another file: put the disk back; if it is meant: the QEMU secondary holds other data, .* remove its object \S+ \(/,
    );
    await expectPattern(qemu.uri("view"), [0x11, "0", "8M"]);
    await expectPattern(qemu.uri("disk0"), [0x11, "0", "8M"]);
    const id = /its object (\S+)/.exec(message)?.[1];
    await qemu.execute("object-del", { id });
    await startPrimary();
    await synchronised();
    await expectPattern(qemu.uri("view"), [0x77, "0", "1M"], [0x11, "1M", "7M"]);
  });

  it("a restarted primary copies only what is dirty to the same QEMU, everything to another", async () => {
    await writePattern(guest(), 0x11, "0", "8M");
    await checkpoint();
    await primary.succeed("stop");
    // What nobody should do shows that this part was not copied.
    await writePattern(qemu.uri("disk0"), 0x99, "4M", "64k");
    await startPrimary();
    await synchronised();
    await expectPattern(qemu.uri("view"), [0x11, "0", "4M"], [0x99, "4M", "64k"]);
    await primary.succeed("stop");
    await qemu.qmp.close();
    await qemu.process.kill();
    await writePattern(workspace.path("secondary.img"), 0x77, "0", "1M");
    qemu = await Qemu.secondary(workspace, "secondary", SIZE_BYTES);
    await qemu.serve({ disk0: "disk0", view: "top" });
    await startPrimary();
    await synchronised();
    await expectPattern(qemu.uri("view"), [0x11, "0", "8M"]);
  });

  it("a verify is refused, with the reason, and the replica goes on", async () => {
    const error = await failureOf(primary.withQmp((client) => client.execute("x-repl-verify")));
    expect(error).to.include({ code: "verify-refused", kind: "state" });
    expect(error.message).to.match(/^verify refused: a QEMU can't be asked for digests/);
    await checkpoint();
  });

  it("a QEMU that was promoted is written to no more, although its export would take it", async () => {
    await writePattern(guest(), 0x11, "0", "1M");
    await checkpoint();
    await qemu.execute("xen-set-replication", { enable: false, primary: false, failover: true });
    const { primary: status } = await primary.waitForStatus(
      "refused by its replica",
      ({ primary: side }) => side?.link.state === "refused",
    );
    expect(status?.link.lastError).to.equal(
      "the QEMU secondary was promoted by a failover and must not be written to: start it anew as a secondary, or detach it",
    );
    await writePattern(guest(), 0x22, "0", "1M");
    await expectPattern(qemu.uri("view"), [0x11, "0", "1M"]);
    expect((await tryQemuIo(qemu.uri("disk0"), "write -P 0x33 0 4k")).code, "QEMU doesn't fence").to.equal(0);
  });
});
