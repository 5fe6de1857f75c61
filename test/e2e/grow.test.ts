/** Disks that are made larger (--grow), with all that the pair has. */
import { expect } from "chai";
import { truncate } from "node:fs/promises";

import { QmpClient } from "../../src/qmp/client.js";
import { expectPattern, startFio, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { Host } from "../tools/host.js";
import { NodeProcess, runNode } from "../tools/node-process.js";
import { MEBIBYTE } from "../tools/pair.js";
import { Exit, expectRefusal } from "../tools/refusal.js";
import { succeed } from "../tools/process.js";
import { serveOn, startNbdkit } from "../tools/socket-server.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 64 * MEBIBYTE;
const LARGER_BYTES = 128 * MEBIBYTE;
const GROW = ["--grow", "disk0=128M"];

describe("a disk that is made larger", () => {
  const workspace = useWorkspace();
  const a = new Host(workspace, "a", SIZE_BYTES);
  const b = new Host(workspace, "b", SIZE_BYTES);

  /** A is the primary, B its secondary, and 32 MiB of the disk have content at a checkpoint. */
  async function startPair(): Promise<void> {
    await succeed("truncate", ["-s", String(SIZE_BYTES), a.file]);
    await writePattern(a.file, 0x11, "0", "32M");
    await b.startSecondary();
    await a.startPrimary(b);
    await a.synchronised();
  }

  async function stopBoth(): Promise<void> {
    await a.node.succeed("stop");
    await b.node.succeed("stop");
  }

  /** What was there is not copied again; what is new is a hole on both. */
  async function expectNothingCopied(primary: Host): Promise<void> {
    const [disk] = (await primary.node.status()).disks;
    expect([disk?.sizeBytes, disk?.primary?.bytesResynced]).to.deep.equal([LARGER_BYTES, 0]);
  }

  it("on both nodes: the last checkpoint is there until the next, and nothing is copied that both have", async () => {
    await startPair();
    await writePattern(a.uri, 0x22, "1M", "1M");
    await stopBoth();

    await b.startSecondary(...GROW);
    await expectPattern(b.uri, [0x11, "0", "32M"], [0, "32M", "96M"]);
    await a.startPrimary(b, ...GROW);
    await a.synchronised();
    await expectNothingCopied(a);
    await writePattern(a.uri, 0x33, "127M", "1M");
    await expectPattern(b.uri, [0x22, "1M", "1M"], [0, "32M", "96M"]);
    await a.node.succeed("checkpoint");
    await expectPattern(b.uri, [0x22, "1M", "1M"], [0x33, "127M", "1M"]);
    await stopBoth();
    await expectSameContent(a.file, b.file);

    // The options may be left.
    await b.startSecondary(...GROW);
    await a.startPrimary(b, ...GROW);
    await a.synchronised();
    await expectNothingCopied(a);
  });

  it("on one node first: the other serves its guests meanwhile, and says what it lacks", async () => {
    await startPair();
    await b.node.succeed("stop");
    await b.startSecondary(...GROW);
    await a.node.succeed("detach");
    const refused = await a.node.verb("attach", ...(await b.replicaOptions()));
    const remedy = `start the smaller one with --grow disk0=${LARGER_BYTES}`;
    expectRefusal(
      refused,
      Exit.Failed,
      `disk disk0 has ${SIZE_BYTES} bytes on the primary and ${LARGER_BYTES} on the secondary: ${remedy}, or give it another disk`,
    );
    await writePattern(a.uri, 0x44, "2M", "64k");
    await a.node.succeed("stop");
    await a.startPrimary(b, "--grow", `disk0=${LARGER_BYTES}`);
    await a.synchronised();
    await expectPattern(b.uri, [0x11, "0", "2M"], [0x44, "2M", "64k"]);
  });

  it("after a crash of both under load", async () => {
    await startPair();
    const fio = await startFio(workspace, a.uri, { size: "16m", io_size: "4g", iodepth: 16 });
    await b.node.waitForStatus(
      "undo data of the load",
      ({ disks }) => (disks[0]?.secondary?.undoBytes ?? 0) > MEBIBYTE,
    );
    await a.kill();
    await b.kill();
    await fio.ended();

    await b.startSecondary(...GROW);
    await expectPattern(b.uri, [0x11, "0", "32M"], [0, "32M", "96M"]);
    await a.startPrimary(b, ...GROW);
    await a.synchronised();
    await stopBoth();
    await expectSameContent(a.file, b.file);
  });

  it("of a secondary that took over, whose old primary comes back: only what differs is copied", async () => {
    await startPair();
    await a.node.succeed("stop");
    await b.failOver("checkpoint");
    await writePattern(b.uri, 0x55, "10M", "1M");
    await b.node.succeed("stop");
    await b.startSecondary(...GROW);
    await writePattern(b.uri, 0x66, "120M", "1M");
    await a.startSecondary(...GROW);
    await b.attach(a);
    const [disk] = (await b.node.status()).disks;
    expect(disk?.primary?.bytesResynced).to.equal(2 * MEBIBYTE);
    // What is new is nothing that A has changed.
    expect((await a.node.status()).secondary?.salvage).to.equal(null);
    await expectPattern(a.uri, [0x11, "0", "10M"], [0x55, "10M", "1M"], [0x66, "120M", "1M"]);
    await stopBoth();
    await expectSameContent(a.file, b.file);
  });

  it("by somebody else is refused, with the option that takes it", async () => {
    await startPair();
    await stopBoth();
    await truncate(a.file, LARGER_BYTES);
    const options = ["--disk", `disk0=${a.file}`, "--state-dir", workspace.path("a.state")];
    expectRefusal(
      await runNode("primary", options),
      Exit.Failed,
      `knows it with ${SIZE_BYTES}: give --grow disk0=${LARGER_BYTES} if it has been made larger`,
    );
    // What was written to it meanwhile nobody knows: a full copy.
    await b.startSecondary(...GROW);
    await a.startPrimary(b, "--grow", `disk0=${LARGER_BYTES}`);
    await a.synchronised();
    const [disk] = (await a.node.status()).disks;
    expect(disk?.primary?.bytesResynced).to.equal(32 * MEBIBYTE);
  });

  it("and is behind another server has to be that large first", async () => {
    const options = (socket: string): string[] => [
      ...["--disk", `disk0=nbd+unix:///?socket=${socket}`],
      ...["--listen", `unix:${workspace.path("guest.sock")}`],
    ];
    const small = workspace.path("small.sock");
    await startNbdkit(workspace, small, "memory", "64M");
    const node = await NodeProcess.start(workspace, "primary", options(small));
    await node.succeed("stop");
    expectRefusal(
      await runNode("primary", [...options(small), ...GROW, "--state-dir", node.stateDirectory]),
      Exit.Usage,
      `--grow: disk disk0: nbd+unix:///?socket=${small} has ${SIZE_BYTES} bytes, not ${LARGER_BYTES}: make the device, or its server's disk, that large first`,
    );
    const large = workspace.path("large.sock");
    await startNbdkit(workspace, large, "memory", "128M");
    const grown = await NodeProcess.start(workspace, "primary", [...options(large), ...GROW]);
    expect((await grown.status()).disks[0]?.sizeBytes).to.equal(LARGER_BYTES);
  });

  it("while a QEMU has it: its guest's disk grows by block_resize", async () => {
    await a.startPrimary(null);
    const path = workspace.path("qemu.qmp");
    const server = `server.type=unix,server.path=${workspace.path("a.sock")}`;
    await serveOn(workspace, path, "qemu-system-x86_64", [
      ...["-machine", "none", "-nodefaults", "-display", "none", "-S"],
      ...["-blockdev", `driver=nbd,node-name=disk,export=disk0,${server},reconnect-delay=60`],
      ...["-qmp", `unix:${path},server=on,wait=off`],
    ]);
    const qmp = await QmpClient.connect({ kind: "unix", path });
    workspace.onEnd(() => qmp.close());
    const sizeInQemu = async (): Promise<number | undefined> => {
      const nodes = (await qmp.execute("query-named-block-nodes")) as { image: { "virtual-size": number } }[];
      return nodes[0]?.image["virtual-size"];
    };
    expect(await sizeInQemu()).to.equal(SIZE_BYTES);
    await a.node.succeed("stop");
    await a.startPrimary(null, ...GROW);
    // A request makes it connect again.
    await qmp.execute("human-monitor-command", { "command-line": `qemu-io disk "read 0 512"` });
    await qmp.execute("block_resize", { "node-name": "disk", size: LARGER_BYTES });
    expect(await sizeInQemu()).to.equal(LARGER_BYTES);
  });
});
