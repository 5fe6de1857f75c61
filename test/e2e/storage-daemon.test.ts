/** Disks in another format: qemu-storage-daemon under each node exports a qcow2 image. */
import { expect } from "chai";

import { expectPattern, writePattern } from "../tools/clients.js";
import { type Pair, startPair } from "../tools/pair.js";
import { run, succeed, type TestProcess } from "../tools/process.js";
import { serveOn } from "../tools/socket-server.js";
import { useWorkspace } from "../tools/workspace.js";

describe("disks under qemu-storage-daemon", () => {
  const workspace = useWorkspace();

  const daemons = new Map<string, TestProcess>();
  const image = (role: string): string => workspace.path(`${role}.qcow2`);
  const uri = (role: string): string => `nbd+unix:///image?socket=${workspace.path(`${role}-qsd.sock`)}`;

  const startDaemon = async (role: string): Promise<void> => {
    await succeed("qemu-img", ["create", "-q", "-f", "qcow2", image(role), "32M"]);
    const socket = workspace.path(`${role}-qsd.sock`);
    const daemon = await serveOn(workspace, socket, "qemu-storage-daemon", [
      ...["--blockdev", `driver=file,node-name=file,filename=${image(role)},discard=unmap`],
      ...["--blockdev", "driver=qcow2,node-name=disk,file=file,discard=unmap"],
      ...["--nbd-server", `addr.type=unix,addr.path=${socket}`],
      ...["--export", "type=nbd,id=export,node-name=disk,name=image,writable=on"],
    ]);
    daemons.set(role, daemon);
  };

  const startOnImages = async (): Promise<Pair> => {
    await startDaemon("primary");
    await startDaemon("secondary");
    return startPair(workspace, { diskPath: uri });
  };

  it("are replicated, checkpointed and failed over as raw files are", async () => {
    const pair = await startOnImages();
    await writePattern(pair.primaryUri(), 0x11, "0", "4M");
    await pair.checkpoint();
    await writePattern(pair.primaryUri(), 0x22, "1M", "4M");
    await writePattern(pair.viewUri(), 0xaa, "2M", "1M");
    await expectPattern(pair.viewUri(), [0x11, "0", "2M"], [0xaa, "2M", "1M"], [0x11, "3M", "1M"]);
    await pair.failOver();
    const expected = [
      [0x11, "0", "2M"],
      [0xaa, "2M", "1M"],
      [0x11, "3M", "1M"],
      [0, "4M", "28M"],
    ] as const;
    await expectPattern(pair.viewUri(), ...expected);
    await pair.secondary.succeed("stop");
    await expectPattern(uri("secondary"), ...expected);
  });

  it("end their node with exit code 1 when they are gone, as its verb stop says", async () => {
    const pair = await startOnImages();
    await writePattern(pair.primaryUri(), 0x33, "5M", "3M");
    for (const node of [pair.secondary, pair.primary]) {
      await daemons.get(node.role)?.kill();
      const { code, stderr } = await node.verb("stop");
      expect(code).to.equal(1);
      expect(stderr).to.match(/the node ended with exit code 1: .*qsd\.sock/);
      expect((await node.process.ended()).code, node.role).to.equal(1);
    }
  });

  it("hold the same content after a checkpoint", async () => {
    const pair = await startOnImages();
    await writePattern(pair.primaryUri(), 0x33, "5M", "3M");
    await pair.checkpoint();
    for (const node of [pair.primary, pair.secondary]) {
      await node.succeed("stop");
      expect((await node.process.ended()).code).to.equal(0);
    }
    const compared = await run("qemu-img", [
      ...["compare", "-f", "raw", "-F", "raw"],
      ...[uri("primary"), uri("secondary")],
    ]);
    expect(compared.stdout).to.equal("Images are identical.\n");
    expect(compared.code).to.equal(0);
  });
});
