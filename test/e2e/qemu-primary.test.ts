/** A QEMU primary with our secondary, driven over QMP as QEMU's docs/COLO-FT.txt drives a pair of its own. */
import { expect } from "chai";

import { expectPattern, tryQemuIo, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { LinkProxy } from "../tools/link-proxy.js";
import { NodeProcess } from "../tools/node-process.js";
import { MEBIBYTE } from "../tools/pair.js";
import { Qemu } from "../tools/qemu.js";
import { freePort } from "../tools/socket-server.js";
import { waitFor } from "../tools/wait-for.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 16 * MEBIBYTE;

describe("QEMU as the primary of our secondary", () => {
  const workspace = useWorkspace();
  let qemu: Qemu;
  let node: NodeProcess;
  let link: LinkProxy;

  const guest = (): string => qemu.uri("guest");
  const view = (): string => `nbd+unix:///disk0?socket=${workspace.path("secondary/view.sock")}`;
  const ours = (command: string, args: object = {}): Promise<unknown> =>
    node.withQmp((client) => client.execute(command, args));
  const checkpoint = (): Promise<unknown> => ours("xen-colo-do-checkpoint");
  const refusal = async (): Promise<string> =>
    checkpoint().then(
      () => "it was taken",
      (error: unknown) => (error as Error).message,
    );

  const startSecondary = (): Promise<NodeProcess> =>
    NodeProcess.start(workspace, "secondary", [
      ...["--disk", `disk0=${workspace.path("secondary.img")}`, "--size", String(SIZE_BYTES)],
      ...["--listen", "none"],
    ]);

  /** First copy, export, replica, start on both sides: the recipe's order. */
  beforeEach(async () => {
    node = await startSecondary();
    qemu = await Qemu.primary(workspace, "primary", SIZE_BYTES);
    await qemu.serve({ guest: "colo0" });
    await writePattern(guest(), 0x11, "0", "1M");

    const port = await freePort();
    await ours("nbd-server-start", {
      addr: { type: "inet", data: { host: "127.0.0.1", port: String(port) } },
    });
    await ours("nbd-server-add", { device: "disk0", writable: true });
    link = await LinkProxy.start(workspace, `127.0.0.1:${port}`);
    await qemu.execute("drive-mirror", {
      ...{ device: "colo0", "job-id": "resync", target: `nbd://${link.address}/disk0` },
      ...{ mode: "existing", format: "raw", sync: "full" },
    });
    await qemu.qmp.waitForEvent("BLOCK_JOB_READY");
    await qemu.execute("block-job-cancel", { device: "resync" });
    await qemu.qmp.waitForEvent("BLOCK_JOB_COMPLETED");
    await ours("xen-set-replication", { enable: true, primary: false });
    await addReplica();
  });

  const addReplica = (): Promise<void> => {
    const [host, port] = link.address.split(":");
    return qemu.replicateTo(
      `file.server.type=inet,file.server.host=${host ?? ""},file.server.port=${port ?? ""}`,
    );
  };

  it("forwarding, checkpoint, lost heartbeat: the view keeps the checkpoint and then is the disk", async () => {
    await expectPattern(view(), [0x11, "0", "1M"]);
    await writePattern(guest(), 0x22, "512k", "1M");
    await expectPattern(view(), [0x11, "0", "1M"], [0, "1M", "1M"]);
    await checkpoint();
    await expectPattern(view(), [0x11, "0", "512k"], [0x22, "512k", "1M"]);
    await expectSameContent(workspace.path("primary.img"), workspace.path("secondary.img"));
    await writePattern(guest(), 0x33, "0", "64k");
    await ours("nbd-server-stop");
    await node.withQmp(async (client) => {
      const exit = client.waitForEvent("COLO_EXIT");
      await client.execute("x-colo-lost-heartbeat");
      expect((await exit).data).to.deep.equal({ mode: "secondary", reason: "request" });
    });
    await node.waitForStatus("done", ({ stage }) => stage === "done");
    await expectPattern(view(), [0x11, "0", "512k"], [0x22, "512k", "1M"]);
  });

  it("a reset link: QEMU reconnects over the hole, and no checkpoint is taken until stop and start", async () => {
    await writePattern(guest(), 0x22, "0", "64k");
    await checkpoint();
    link.cut();
    await writePattern(guest(), 0x33, "64k", "64k");
    link.heal();
    await waitFor(
      "QEMU to connect again",
      async () => {
        await writePattern(guest(), 0x44, "128k", "64k");
        return node.status();
      },
      ({ secondary }) => secondary?.writer !== null,
    );
    await writePattern(guest(), 0x44, "128k", "64k");
    expect(await refusal()).to.match(/^checkpoint refused: writer .* (came back without a resync|went away)/);
    expect((await node.status()).checkpointRefusal).to.be.a("string");
    await expectPattern(view(), [0x22, "0", "64k"], [0x11, "64k", "960k"]);
    await qemu.execute("xen-set-replication", { enable: false, primary: true });
    await qemu.execute("x-blockdev-change", { parent: "colo0", child: "children.1" });
    await qemu.execute("human-monitor-command", { "command-line": "drive_del replica" });
    await ours("xen-set-replication", { enable: false, primary: false });
    // The manager makes the disks the same; here the test does.
    await writePattern(`nbd://${link.address}/disk0`, 0x33, "64k", "64k");
    await ours("xen-set-replication", { enable: true, primary: false });
    await addReplica();
    await writePattern(guest(), 0x55, "192k", "64k");
    await checkpoint();
    await expectPattern(
      view(),
      ...([
        [0x22, "0", "64k"],
        [0x33, "64k", "64k"],
        [0x44, "128k", "64k"],
        [0x55, "192k", "64k"],
      ] as const),
    );
  });

  it("the first writes to a new replica, swallowed by a black hole: no checkpoint is taken without them", async () => {
    link.blackHole();
    const write = writePattern(guest(), 0x22, "0", "64k");
    await qemu.execute("yank", { instances: [{ type: "block-node", "node-name": await nbdNode() }] });
    await write;
    link.heal();
    await node.waitForStatus("without a writer", ({ clients }) => clients.length === 0);
    expect(await refusal()).to.match(cutOff);
    await expectPattern(view(), [0x11, "0", "1M"]);
  });

  it("yank frees a QEMU primary from a black hole; ours has nothing of its own to yank", async () => {
    link.blackHole();
    const write = writePattern(guest(), 0x22, "0", "64k");
    const instances = [{ type: "block-node", "node-name": await nbdNode() }];
    await qemu.execute("yank", { instances });
    await write;
    expect(await ours("query-yank")).to.deep.equal([]);
  });

  /** QEMU's name for its NBD client. */
  const nbdNode = async (): Promise<string> => {
    const yankable = (await qemu.execute("query-yank")) as { type: string; "node-name"?: string }[];
    return yankable.find(({ type }) => type === "block-node")?.["node-name"] ?? "";
  };

  const cutOff = /^checkpoint refused: writer .* went away without NBD_CMD_DISC/;

  it("a yanked link: QEMU's guest goes on alone, and no checkpoint is taken of what had arrived", async () => {
    await writePattern(guest(), 0x22, "0", "64k");
    await checkpoint();
    await writePattern(guest(), 0x33, "0", "64k");
    await qemu.execute("yank", { instances: [{ type: "block-node", "node-name": await nbdNode() }] });
    await node.waitForStatus("without a writer", ({ secondary }) => secondary?.writer === null);
    await writePattern(guest(), 0x44, "64k", "64k");
    expect(await refusal()).to.match(cutOff);
    await expectPattern(view(), [0x22, "0", "64k"], [0x11, "64k", "960k"]);
    // Who wants to go on from there says so.
    await ours("xen-set-replication", { enable: false, primary: false });
    await ours("xen-set-replication", { enable: true, primary: false });
    await checkpoint();
    await expectPattern(view(), [0x33, "0", "64k"], [0x11, "64k", "960k"]);
  });

  it("a killed QEMU: no checkpoint is taken of what had arrived, a restart changes nothing, and the failover goes to the last one", async () => {
    await writePattern(guest(), 0x22, "0", "64k");
    await checkpoint();
    await writePattern(guest(), 0x33, "0", "64k");
    qemu.process.signal("SIGKILL");
    await node.waitForStatus("without a writer", ({ secondary }) => secondary?.writer === null);
    expect(await refusal()).to.match(cutOff);
    await node.succeed("stop");
    await node.process.ended();
    node = await startSecondary();
    expect(await refusal()).to.match(cutOff);
    await ours("x-colo-lost-heartbeat");
    await node.waitForStatus("done", ({ stage }) => stage === "done");
    await expectPattern(view(), [0x22, "0", "64k"], [0x11, "64k", "960k"]);
  });

  it("a QEMU that quits takes leave: what it left is a checkpoint", async () => {
    await writePattern(guest(), 0x22, "0", "64k");
    await qemu.execute("quit");
    await qemu.process.ended();
    await node.waitForStatus("without a writer", ({ secondary }) => secondary?.writer === null);
    await checkpoint();
    await expectPattern(view(), [0x22, "0", "64k"], [0x11, "64k", "960k"]);
  });

  it("a write after the failover does not reach the promoted disk", async () => {
    await writePattern(guest(), 0x22, "0", "64k");
    await checkpoint();
    await ours("xen-set-replication", { enable: false, primary: false, failover: true });
    await node.waitForStatus("done", ({ stage }) => stage === "done");
    await writePattern(guest(), 0x33, "0", "64k");
    expect((await tryQemuIo(`nbd://${link.address}/disk0`, "write -P 0x44 0 4k")).code).to.equal(1);
    await expectPattern(view(), [0x22, "0", "64k"], [0x11, "64k", "960k"]);
  });
});
