/** SIGTERM to a primary whose clients are at work: what each of them sees, and what is left behind. */
import { expect } from "chai";
import { existsSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";

import { Command } from "../../src/nbd/wire/constants.js";
import { errorNumberOf } from "../../src/nbd/wire/error-number.js";
import { expectPattern, tryQemuIo } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { FailingDevice } from "../tools/failing-device.js";
import { Host } from "../tools/host.js";
import { LinkProxy } from "../tools/link-proxy.js";
import { MemoryDevice } from "../tools/memory-device.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { NodeProcess } from "../tools/node-process.js";
import { failureOf } from "../tools/outcome.js";
import { Pair } from "../tools/pair.js";
import { succeed } from "../tools/process.js";
import { RawNbdClient } from "../tools/raw-nbd-client.js";
import { startNbdkit } from "../tools/socket-server.js";
import { useWorkspace } from "../tools/workspace.js";

const MEBIBYTE = 1024 * 1024;
const LONG_READS = 8;

describe("a primary that gets SIGTERM while its clients are at work", () => {
  const workspace = useWorkspace();

  it("answers what is in flight, refuses what is new, cuts who does not leave, and ends with 0", async () => {
    // Its disk is here, so that the test decides when a request is done.
    const harness = await startNbdServer();
    workspace.onEnd(() => harness.close());
    const memory = new MemoryDevice(64 * MEBIBYTE, { extents: "none" });
    const disk = new FailingDevice(memory);
    harness.add("image", disk);
    const path = workspace.path("guest.sock");
    const node = await NodeProcess.start(workspace, "primary", [
      ...["--disk", `disk0=nbd+unix:///image?socket=${harness.path}`],
      ...["--listen", `unix:${path}`],
    ]);
    const connect = async (): Promise<RawNbdClient> => {
      const client = await RawNbdClient.transmitting({ kind: "unix", path }, "disk0");
      workspace.onEnd(() => {
        client.destroy();
        return Promise.resolve();
      });
      return client;
    };
    const [reader, writer, idle, deaf] = [await connect(), await connect(), await connect(), await connect()];

    deaf.socket.pause();
    for (let cookie = 1; cookie <= LONG_READS; cookie++)
      deaf.request(Command.Read, { cookie, offset: 32 * MEBIBYTE, lengthBytes: MEBIBYTE });
    const held = disk.hold({ operation: ["read", "write"], offset: 0, lengthBytes: MEBIBYTE });
    reader.request(Command.Read, { cookie: 1, lengthBytes: 4096 });
    writer.request(Command.Write, { cookie: 1, offset: 8192, lengthBytes: 4096 }, Buffer.alloc(4096, 7));
    await held.arrived(2);

    node.process.signal("SIGTERM");
    await node.logged("stopping", ({ msg }) => msg === "stopping");
    expect(await idle.readToEnd()).to.have.length(0);
    for (const client of [reader, writer]) {
      const read = await client.ask(Command.Read, { cookie: 2, offset: 16 * MEBIBYTE, lengthBytes: 512 });
      expect(read).to.include({ cookie: 2, errorNumber: errorNumberOf("ESHUTDOWN") });
      const write = await client.ask(Command.Write, { cookie: 3 }, Buffer.alloc(512));
      expect(write).to.include({ cookie: 3, errorNumber: errorNumberOf("ESHUTDOWN") });
    }
    expect(await failureOf(connect())).to.have.property("code", "ENOENT");
    expect(node.process.isRunning).to.equal(true);

    held.release();
    expect(await reader.reply(4096)).to.include({ cookie: 1, errorNumber: 0 });
    expect(await writer.reply()).to.include({ cookie: 1, errorNumber: 0 });
    for (const client of [reader, writer]) expect(await client.readToEnd()).to.have.length(0);
    expect(memory.contents(8192, 4096).equals(Buffer.alloc(4096, 7))).to.equal(true);

    expect((await node.process.ended()).code).to.equal(0);
    expect(node.log.at(-1)?.msg).to.equal("stopped");
    expect(existsSync(path)).to.equal(false);
    expect(disk.log.at(-1)?.operation).to.equal("flush");
    deaf.socket.resume();
    expect((await deaf.readToEnd()).length).to.be.below(LONG_READS * MEBIBYTE);
  });
});

describe("a node that gets SIGTERM while a guest waits for a replica that has fallen silent", () => {
  const workspace = useWorkspace();
  /** Longer than anybody waits for a node to stop. */
  const patient = ["--replica-timeout", "10m"];

  const writeWhileStopping = async (node: NodeProcess, uri: string, proxy: LinkProxy): Promise<void> => {
    proxy.stall();
    const written = tryQemuIo(uri, "write -P 0x22 0 64k");
    await node.waitForStatus("a change on its way", ({ disks }) => (disks[0]?.primary?.inFlight ?? 0) > 0);
    node.process.signal("SIGTERM");
    expect((await written).stdout).to.include("wrote 65536/65536");
    expect((await node.process.ended()).code).to.equal(0);
  };

  for (const ackMode of ["memsync", "sync"]) {
    it(`a primary in ack mode ${ackMode}: answers the guest, ends with 0, and sends the replica what it missed later`, async () => {
      let proxy: LinkProxy | null = null;
      const pair = new Pair(workspace, {
        sizeBytes: MEBIBYTE,
        primary: [...patient, "--ack-mode", ackMode],
        route: async ({ replication, qmp }) => {
          proxy = await LinkProxy.start(workspace, replication);
          return { replication: proxy.address, qmp };
        },
      });
      await pair.startSecondary();
      await pair.startPrimary();
      await pair.synchronised();
      const link = proxy as unknown as LinkProxy;
      await writeWhileStopping(pair.primary, pair.primaryUri(), link);
      link.heal();
      await pair.startPrimary();
      await pair.synchronised();
      await pair.primary.succeed("stop");
      await pair.secondary.succeed("stop");
      await expectPattern(pair.primaryFile(), [0x22, "0", "64k"]);
      await expectSameContent(pair.primaryFile(), pair.secondaryFile());
    });
  }

  for (const ackMode of ["memsync", "async"]) {
    it(`a primary in ack mode ${ackMode} that asks what the replica has: answers the guest who writes to that, and ends with 0`, async () => {
      let asked: Promise<unknown> | null = null;
      const pair = new Pair(workspace, {
        sizeBytes: MEBIBYTE,
        primary: [...patient, "--ack-mode", ackMode],
        route: async ({ replication, qmp }) => {
          const proxy = await LinkProxy.start(workspace, qmp);
          asked = proxy.when(() => {
            proxy.stall();
          }, ["far", "x-repl-digest"]);
          return { replication, qmp: proxy.address };
        },
      });
      await writeFile(pair.primaryFile(), Buffer.alloc(MEBIBYTE, 0x11));
      await pair.startSecondary();
      await pair.startPrimary();
      await (asked as unknown as Promise<unknown>);
      const guest = await RawNbdClient.transmitting(
        { kind: "unix", path: workspace.path("guest.sock") },
        "disk0",
      );
      workspace.onEnd(() => {
        guest.destroy();
        return Promise.resolve();
      });
      guest.request(Command.Write, { cookie: 1, offset: 4096, lengthBytes: 4096 }, Buffer.alloc(4096, 0x22));
      // Answered before the write, which has come, and waits.
      guest.request(Command.Read, { cookie: 2, offset: 512 * 1024, lengthBytes: 512 });
      expect(await guest.reply(512)).to.include({ cookie: 2, errorNumber: 0 });
      pair.primary.process.signal("SIGTERM");
      expect(await guest.reply()).to.include({ cookie: 1, errorNumber: 0 });
      expect((await pair.primary.process.ended()).code).to.equal(0);
      await expectPattern(pair.primaryFile(), [0x11, "0", "4k"], [0x22, "4k", "4k"]);
    });
  }

  it("a promoted secondary: answers the guest, and ends with 0", async () => {
    const host = new Host(workspace, "a", MEBIBYTE);
    await host.startSecondary();
    await host.node.withQmp((qmp) => qmp.execute("xen-set-replication", { enable: true, primary: false }));
    await host.failOver("latest");
    const replica = workspace.path("replica.sock");
    await startNbdkit(workspace, replica, "memory", "1M");
    const proxy = await LinkProxy.start(workspace, `unix:${replica}`);
    await host.node.succeed("attach", "--replica", `nbd://${proxy.address}`);
    await host.node.waitForStatus("replicating", ({ primary }) => primary?.link.state === "replicating");
    await writeWhileStopping(host.node, host.uri, proxy);
    await expectPattern(host.file, [0x22, "0", "64k"]);
  });
});

describe("a node that is asked for something while it stops", () => {
  const workspace = useWorkspace();

  const CASES = [
    {
      role: "primary",
      listeners: (path: string) => ["--listen", `unix:${path}`],
      command: "x-repl-attach",
      args: { replica: "nbd://127.0.0.1:1", "replica-qmp": "tcp:127.0.0.1:1" },
    },
    {
      role: "secondary",
      listeners: (path: string) => ["--listen", `unix:${path}`, "--view", `unix:${path}.view`],
      command: "xen-set-replication",
      args: { enable: true, primary: false },
    },
    {
      role: "secondary",
      listeners: (path: string) => ["--listen", `unix:${path}`, "--view", `unix:${path}.view`],
      command: "nbd-server-start",
      args: { addr: { type: "unix", data: { path: "/tmp/none" } } },
    },
  ] as const;

  for (const { role, listeners, command, args } of CASES) {
    it(`${role}, ${command}: begins nothing, goes on telling its status, and ends`, async () => {
      const harness = await startNbdServer();
      workspace.onEnd(() => harness.close());
      const disk = new FailingDevice(new MemoryDevice(MEBIBYTE, { extents: "none" }));
      harness.add("image", disk);
      const path = workspace.path("nbd.sock");
      const node = await NodeProcess.start(workspace, role, [
        ...["--disk", `disk0=nbd+unix:///image?socket=${harness.path}`],
        ...listeners(path),
      ]);
      const client = await RawNbdClient.transmitting({ kind: "unix", path }, "disk0");
      workspace.onEnd(() => {
        client.destroy();
        return Promise.resolve();
      });
      // A request in flight is what it waits for.
      const held = disk.hold({ operation: ["read"], offset: 0, lengthBytes: MEBIBYTE });
      client.request(Command.Read, { cookie: 1, lengthBytes: 4096 });
      await held.arrived(1);
      await node.withQmp(async (qmp) => {
        node.process.signal("SIGTERM");
        await node.logged("stopping", ({ msg }) => msg === "stopping");
        expect(await failureOf(qmp.execute(command, args))).to.include({
          code: "stopping",
          message: "the node is stopping: start it again first",
        });
        expect(await qmp.execute("x-repl-status")).to.include({ role, stage: "none" });
      });
      held.release();
      expect((await node.process.ended()).code).to.equal(0);
      expect(node.log.at(-1)?.msg).to.equal("stopped");
    });
  }
});

describe("a node that is stopped and can't record that", () => {
  const workspace = useWorkspace();

  it("tells who stopped it, whose exit code is 1 as its own is", async () => {
    const directory = workspace.path("primary");
    await mkdir(directory, { mode: 0o700 });
    await succeed("mount", ["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", directory]);
    workspace.onEnd(() => succeed("umount", ["--lazy", directory]));
    const node = await NodeProcess.start(workspace, "primary", [
      ...["--disk", `disk0=${workspace.path("disk")}`, "--size", "1M"],
      ...["--listen", `unix:${workspace.path("guest.sock")}`],
    ]);
    await succeed("sh", ["-c", 'dd if=/dev/zero of="$0" bs=4k 2>/dev/null || true', `${directory}/filler`]);
    const { code, stdout, stderr } = await node.verb("stop");
    expect([code, stdout]).to.deep.equal([1, ""]);
    expect(stderr).to.match(
      /^repl-primary: the node ended with exit code 1: replacement of .*metadata\.json failed: ENOSPC: [^\n]*\n$/,
    );
    expect((await node.process.ended()).code).to.equal(1);
  });
});
