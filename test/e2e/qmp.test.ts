/** A manager written for QEMU's COLO drives a secondary over QMP; and one that talks nonsense. */
import { expect } from "chai";

import { expectPattern, tryQemuIo, writePattern } from "../tools/clients.js";
import { FailingDevice } from "../tools/failing-device.js";
import { MemoryDevice } from "../tools/memory-device.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { NodeProcess } from "../tools/node-process.js";
import { startPair } from "../tools/pair.js";
import { succeed } from "../tools/process.js";
import { type QmpMessage, QmpSession } from "../tools/qmp-session.js";
import { useWorkspace } from "../tools/workspace.js";

const DONE = { return: {} };

const refusal = (desc: string, qmpClass = "GenericError"): object => ({ class: qmpClass, desc });

describe("QMP session", () => {
  const workspace = useWorkspace();

  const startSecondary = (...options: string[]): Promise<NodeProcess> =>
    NodeProcess.start(workspace, "secondary", [
      ...["--disk", `disk0=${workspace.path("disk0.img")}`, "--size", "16M"],
      ...options,
    ]);

  const negotiate = async (node: NodeProcess): Promise<QmpSession> => {
    const session = await QmpSession.connect(workspace, node.qmpPath);
    expect(await session.answer()).to.have.property("QMP");
    expect(await session.command("qmp_capabilities")).to.deep.equal(DONE);
    return session;
  };

  it("begins as QEMU's does: greeting, negotiation, version, commands", async () => {
    const node = await startSecondary("--listen", "none");
    const session = await QmpSession.connect(workspace, node.qmpPath);
    const { QMP } = (await session.answer()) as { QMP: { version: unknown; capabilities: unknown } };
    expect(QMP.capabilities).to.deep.equal([]);
    expect(QMP.version).to.deep.include({ qemu: { major: 7, minor: 2, micro: 0 } });
    const early = await session.command("query-status");
    expect(early["error"]).to.deep.include(
      refusal("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound"),
    );
    expect(await session.command("qmp_capabilities")).to.deep.equal(DONE);
    expect(await session.command("query-version")).to.deep.equal({ return: QMP.version });
    const { return: commands } = (await session.command("query-commands")) as { return: { name: string }[] };
    expect(commands.map(({ name }) => name)).to.include.members([
      ...["qmp_capabilities", "query-version", "query-commands", "query-status", "quit"],
      ...["xen-set-replication", "query-xen-replication-status", "xen-colo-do-checkpoint"],
      ...["x-colo-lost-heartbeat", "query-colo-status"],
      ...["nbd-server-start", "nbd-server-add", "nbd-server-remove", "nbd-server-stop"],
      ...["query-block-jobs", "block-job-set-speed", "block-job-cancel", "query-yank", "yank"],
      ...["x-repl-status", "x-repl-handshake", "x-repl-checkpoint", "x-repl-failover"],
    ]);
    session.send('{"execute": "query-status", "id": {"of": ["any", 1]}}\n');
    expect(await session.answer()).to.deep.equal({
      return: { status: "running", singlestep: false, running: true },
      id: { of: ["any", 1] },
    });
    session.send("{'execute': 'quit'}");
    expect(await session.answer()).to.deep.equal(DONE);
    expect((await node.process.ended()).code).to.equal(0);
  });

  it("runs the recipe of docs/COLO-FT.txt: export, start, checkpoint, failover", async () => {
    const node = await startSecondary("--listen", "none");
    const session = await negotiate(node);
    const socket = workspace.path("replication.sock");
    const replica = `nbd+unix:///disk0?socket=${socket}`;
    const view = `nbd+unix:///disk0?socket=${workspace.path("secondary/view.sock")}`;

    const status = async (): Promise<unknown> =>
      (await session.command("query-xen-replication-status"))["return"];
    const refused = async (execute: string, args?: object): Promise<unknown> =>
      (await session.command(execute, args))["error"];

    expect(await refused("nbd-server-add", { device: "disk0" })).to.deep.include(
      refusal("NBD server not running"),
    );
    expect(
      await session.command("nbd-server-start", { addr: { type: "unix", data: { path: socket } } }),
    ).to.deep.equal(DONE);
    expect(
      await refused("nbd-server-start", { addr: { type: "unix", data: { path: socket } } }),
    ).to.deep.include(refusal("NBD server already running"));
    expect(await refused("nbd-server-add", { device: "nonesuch" })).to.deep.include(
      refusal("Cannot find device='nonesuch' nor node-name='nonesuch'"),
    );
    expect(await session.command("nbd-server-add", { device: "disk0", writable: true })).to.deep.equal(DONE);

    // Not started: the first copy goes straight to the disk, and the view answers EIO.
    expect(await status()).to.deep.equal({ error: true, desc: "Block replication is not running" });
    expect(await refused("xen-colo-do-checkpoint")).to.deep.include(
      refusal("Block replication is not running"),
    );
    await writePattern(replica, 0x11, "0", "1M");
    expect((await tryQemuIo(view, "read 0 4k")).stdout).to.include("read failed: Input/output error");

    expect(await session.command("xen-set-replication", { enable: true, primary: false })).to.deep.equal(
      DONE,
    );
    expect(await status()).to.deep.equal({ error: false });
    expect(await refused("xen-set-replication", { enable: true, primary: false })).to.deep.include(
      refusal("Block replication is running or done"),
    );
    await writePattern(replica, 0x22, "512k", "1M");
    await expectPattern(view, [0x11, "0", "1M"], [0, "1M", "1M"]);
    expect(await session.command("xen-colo-do-checkpoint")).to.deep.equal(DONE);
    await expectPattern(view, [0x11, "0", "512k"], [0x22, "512k", "1M"]);
    expect(await session.command("query-colo-status")).to.deep.equal({
      return: { mode: "secondary", "last-mode": "none", reason: "none" },
    });

    await writePattern(view, 0xaa, "0", "64k");
    expect(await session.command("x-colo-lost-heartbeat")).to.deep.equal(DONE);
    expect((await session.event("COLO_EXIT"))["data"]).to.deep.equal({
      mode: "secondary",
      reason: "request",
    });
    const merged = { type: "commit", len: 65536, offset: 65536, speed: 0 };
    expect((await session.event("BLOCK_JOB_COMPLETED"))["data"]).to.deep.equal({
      device: "commit",
      ...merged,
    });
    expect((await node.status()).stage).to.equal("done");
    await expectPattern(view, [0xaa, "0", "64k"], [0x11, "64k", "448k"], [0x22, "512k", "1M"]);
  });

  it("tells of the end of a failover to the latest content by its stage alone: it has no job", async () => {
    const node = await startSecondary("--listen", "none");
    const session = await negotiate(node);
    await session.command("xen-set-replication", { enable: true, primary: false });
    await session.event("X_REPL_STAGE");
    expect(await session.command("x-repl-failover", { to: "latest" })).to.have.property("return");
    for (const stage of ["failover", "done"]) {
      expect((await session.event("X_REPL_STAGE"))["data"]).to.deep.equal({ stage });
    }
    expect(await session.command("query-block-jobs")).to.deep.equal({ return: [] });
    expect(session.has("BLOCK_JOB_COMPLETED")).to.equal(false);
  });

  for (const execute of ["xen-colo-do-checkpoint", "x-repl-checkpoint"]) {
    it(`answers ${execute} when the checkpoint is durable, and with an error if it can't become so`, async () => {
      const harness = await startNbdServer();
      workspace.onEnd(() => harness.close());
      const disk = new FailingDevice(new MemoryDevice(1024 * 1024, { extents: "none" }));
      harness.add("image", disk);
      const node = await NodeProcess.start(workspace, "secondary", [
        ...["--disk", `disk0=nbd+unix:///image?socket=${harness.path}`, "--listen", "none"],
      ]);
      const session = await negotiate(node);
      await session.command("xen-set-replication", { enable: true, primary: false });
      disk.fail({ operation: "flush" });
      expect((await session.command(execute))["error"]).to.have.property("class", "GenericError");
      expect((await node.status()).stage).to.equal("running");
    });
  }

  it("shows an export's description to clients that list and to clients that ask", async () => {
    const node = await startSecondary("--listen", "none");
    const session = await negotiate(node);
    const socket = workspace.path("replication.sock");
    await session.command("nbd-server-start", { addr: { type: "unix", data: { path: socket } } });
    const add = (name: string, description?: string): Promise<QmpMessage> =>
      session.command("nbd-server-add", { device: "disk0", name, description });
    const longest = "\u00e9".repeat(2048);
    expect(await add("named", "the disk of host a")).to.deep.equal(DONE);
    expect(await add("longest", longest)).to.deep.equal(DONE);
    expect(await add("own")).to.deep.equal(DONE);
    for (const [description, desc] of [
      [`${longest}.`, "Parameter 'description': has 4097 bytes, at most 4096 are allowed"],
      ["cut\0off", "Parameter 'description': must not contain a NUL"],
    ] as const) {
      expect((await add("bad", description))["error"]).to.deep.include(refusal(desc));
    }
    const describe = async (...args: string[]): Promise<unknown> => {
      const shown = JSON.parse(await succeed("nbdinfo", ["--json", ...args])) as {
        exports: Record<string, unknown>[];
      };
      return shown.exports.map((entry) => [entry["export-name"], entry["description"]]);
    };
    expect(await describe("--list", `nbd+unix://?socket=${socket}`)).to.deep.equal([
      ["named", "the disk of host a"],
      ["longest", longest],
      ["own", "replica of disk disk0"],
    ]);
    expect(await describe(`nbd+unix:///named?socket=${socket}`)).to.deep.equal([
      ["named", "the disk of host a"],
    ]);
  });

  it("removes exports and stops the NBD server when told, whoever is connected", async () => {
    const node = await startSecondary("--listen", "none");
    const session = await negotiate(node);
    const socket = workspace.path("replication.sock");
    const addr = { type: "unix", data: { path: socket } };
    await session.command("nbd-server-start", { addr });
    await session.command("nbd-server-add", { device: "disk0", name: "parent0", writable: true });
    await session.command("nbd-server-add", { device: "disk0", name: "look" });
    await writePattern(`nbd+unix:///parent0?socket=${socket}`, 0x11, "0", "4k");
    const readOnly = await tryQemuIo(`nbd+unix:///look?socket=${socket}`, "write 0 4k");
    expect(readOnly.code).to.equal(1);
    expect(await session.command("nbd-server-remove", { name: "parent0" })).to.deep.equal(DONE);
    const gone = await session.command("nbd-server-remove", { name: "parent0" });
    expect(gone["error"]).to.deep.include(refusal("Export 'parent0' is not found"));
    expect((await tryQemuIo(`nbd+unix:///parent0?socket=${socket}`, "read 0 4k")).code).to.equal(1);
    const look = ["-r", "-f", "raw", "-c", "read -P 0x11 0 4k", `nbd+unix:///look?socket=${socket}`];
    expect(await succeed("qemu-io", look)).to.not.include("failed");
    expect(await session.command("nbd-server-stop")).to.deep.equal(DONE);
    expect((await session.command("nbd-server-stop"))["error"]).to.deep.include(
      refusal("NBD server not running"),
    );
    expect((await tryQemuIo(`nbd+unix:///look?socket=${socket}`, "read 0 4k")).code).to.equal(1);
    expect(await session.command("nbd-server-start", { addr })).to.deep.equal(DONE);
  });

  it("drives a primary: start, status, the checkpoint that only the secondary makes, stop", async () => {
    const pair = await startPair(workspace);
    const session = await negotiate(pair.primary);
    expect((await session.command("query-xen-replication-status"))["return"]).to.deep.equal({ error: false });
    expect(
      (await session.command("xen-set-replication", { enable: true, primary: true }))["error"],
    ).to.deep.include(refusal("Block replication is running or done"));
    const { epoch } = await pair.primary.status();
    expect(await session.command("xen-colo-do-checkpoint")).to.deep.equal(DONE);
    expect((await pair.primary.status()).epoch).to.equal(epoch);
    expect(await session.command("xen-set-replication", { enable: false, primary: true })).to.deep.equal(
      DONE,
    );
    expect((await pair.primary.status()).stage).to.equal("none");
    await writePattern(pair.primaryUri(), 0x33, "0", "64k");
    await expectPattern(pair.primaryUri(), [0x33, "0", "64k"]);
  });

  it("yanks a primary's connections to its replica, which is resynced then", async () => {
    const pair = await startPair(workspace);
    const session = await negotiate(pair.primary);
    const replica = { type: "block-node", "node-name": "disk0" };
    expect(await session.command("query-yank")).to.deep.equal({ return: [replica] });
    const unknown = { type: "block-node", "node-name": "disk1" };
    expect((await session.command("yank", { instances: [replica, unknown] }))["error"]).to.deep.include(
      refusal("Instance not found", "DeviceNotFound"),
    );
    expect((await pair.primary.status()).primary?.link.reconnects).to.equal(0);
    expect(await session.command("yank", { instances: [replica] })).to.deep.equal(DONE);
    const { primary } = await pair.primary.waitForStatus(
      "replicating again",
      (status) => status.primary?.link.state === "replicating" && status.primary.link.reconnects === 1,
    );
    expect(primary?.link.reconnects).to.equal(1);
    await pair.checkpoint();
  });

  it("answers nonsense with an error, on the same connection, and goes on", async () => {
    const node = await startSecondary("--listen", "none");
    const session = await negotiate(node);
    const nonsense = [
      "GET / HTTP/1.1\n",
      "}\n",
      '{"execute": }\n',
      '{"execute": 5}\n',
      '{"run": "quit"}\n',
      '{"execute": "quit", "arguments": []}\n',
      '{"execute": "no-such-command"}\n',
      '{"execute": "query-status", "arguments": {"surplus": 1}}\n',
      '{"execute": "xen-set-replication", "arguments": {"enable": "yes", "primary": false}}\n',
      '{"execute": "x-repl-handshake", "arguments": {"version": 1e99}}\n',
      '{"execute": "nbd-server-start", "arguments": {"addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": "99999"}}}}\n',
      `${"[".repeat(1000)}\n`,
      `{"execute": "${"x".repeat(100_000)}"}\n`,
      Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d, 0x0a]),
      Buffer.from([0, 1, 2, 3, 0x0a]),
    ];
    for (const text of nonsense) {
      session.send(text);
      const answer = await session.answer();
      expect(answer, text.toString().slice(0, 80)).to.have.property("error");
      expect((answer["error"] as { desc: string }).desc)
        .to.be.a("string")
        .and.not.include("\n");
      expect(await session.command("query-status")).to.have.property("return");
    }
    expect((await node.status()).stage).to.equal("none");
    expect(node.log.filter(({ level }) => level > 40)).to.deep.equal([]);
  });
});
