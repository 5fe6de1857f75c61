/** Roles that change: an old primary comes back, histories that parted, an orderly switch-over. */
import { expect } from "chai";
import { existsSync } from "node:fs";
import { readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { basename } from "node:path";

import type { QmpError } from "../../src/qmp/errors.js";
import { expectPattern, runFio, startFio, writePattern } from "../tools/clients.js";
import { expectSameContent, flipByte } from "../tools/disk-files.js";
import { Host } from "../tools/host.js";
import { MEBIBYTE } from "../tools/pair.js";
import { runNode } from "../tools/node-process.js";
import { succeed } from "../tools/process.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 256 * MEBIBYTE;
/** Each starts and kills four processes; a minute in all on a busy machine. */
const TEN_TURNS_LIMIT_MS = 240_000;

describe("roles that change", () => {
  const workspace = useWorkspace();
  const a = new Host(workspace, "a", SIZE_BYTES);
  const b = new Host(workspace, "b", SIZE_BYTES);

  /** A is the primary, B its secondary, and 128 MiB of the disk have content. */
  async function startPair(): Promise<void> {
    await succeed("truncate", ["-s", String(SIZE_BYTES), a.file]);
    await writePattern(a.file, 0x11, "0", "128M");
    await b.startSecondary();
    await a.startPrimary(b);
    await a.synchronised();
  }

  /** Content that a node's resyncs have sent. */
  async function sentBytes(host: Host): Promise<number> {
    const { disks } = await host.node.status();
    return disks[0]?.primary?.bytesResynced ?? Number.NaN;
  }

  async function expectSameDisks(): Promise<void> {
    await a.node.succeed("stop");
    await b.node.succeed("stop");
    await expectSameContent(a.file, b.file);
  }

  for (const to of ["checkpoint", "latest"] as const) {
    it(`a primary that was killed under load comes back as the secondary of the node that failed over to ${to}: only what differs is copied`, async () => {
      await startPair();
      const fio = await startFio(workspace, a.uri, { size: "16m", io_size: "4g", iodepth: 16 });
      await b.node.waitForStatus(
        "undo data of the load",
        ({ disks }) => (disks[0]?.secondary?.undoBytes ?? 0) > MEBIBYTE,
      );
      await a.kill();
      await fio.ended();
      await b.failOver(to);
      await writePattern(b.uri, 0x22, "100M", "1M");

      await a.startSecondary();
      await b.attach(a);
      expect(await sentBytes(b)).to.be.lessThan(32 * MEBIBYTE);
      await writePattern(b.uri, 0x33, "110M", "1M");
      await b.node.succeed("checkpoint");
      await expectPattern(a.uri, [0x22, "100M", "1M"], [0x33, "110M", "1M"], [0x11, "64M", "8M"]);
      await expectSameDisks();
    });
  }

  it("a way back on which nothing is given up leaves what was saved on an earlier one the last", async () => {
    await startPair();
    await writePattern(a.uri, 0x44, "10M", "3M");
    await a.kill();
    await b.failOver("checkpoint");
    await a.startSecondary();
    await b.attach(a);
    const saved = (await a.node.status()).secondary?.salvage;
    expect(saved).to.match(/salvage-\d+\.log$/);
    await b.switchOver();
    await b.startSecondary();
    await a.attach(b);

    // A's dirty map tells of whole extents, none of which B lacks.
    await writePattern(a.uri, 0x55, "20M", "1M");
    await a.kill();
    await b.failOver("latest");
    await a.startSecondary("--demote");
    await b.attach(a);
    await a.node.waitForStatus(
      "the earlier one, still the last",
      ({ secondary }) => secondary?.salvage === saved,
    );
    const output = workspace.path("salvaged");
    const said = await runNode("secondary", ["salvage", "--output", output, "--state-dir", a.path("")]);
    expect([said.code, said.stderr]).to.deep.equal([0, ""]);
    await expectPattern(`${output}/disk0.img`, [0x44, "10M", "3M"]);
    const files = (await readdir(a.path(""))).filter((file) => file.startsWith("salvage-"));
    expect(files).to.deep.equal([basename(saved ?? "")]);
  });

  it("a promoted secondary's link to its replica can be yanked, and is built anew", async () => {
    await startPair();
    await a.kill();
    await b.failOver("latest");
    await a.startSecondary();
    await b.attach(a);
    const disk = { type: "block-node", "node-name": "disk0" };
    expect(await b.node.withQmp((client) => client.execute("query-yank"))).to.deep.equal([disk]);
    await b.node.withQmp((client) => client.execute("yank", { instances: [disk] }));
    await b.node.waitForStatus(
      "the link built anew",
      ({ primary }) => primary?.link.state === "replicating" && primary.link.reconnects === 1,
    );
  });

  it("a promoted secondary is a primary to the manager that drives its replica: it tells of a loss, and stops and starts", async () => {
    await startPair();
    await a.kill();
    await b.failOver("latest");
    await a.startSecondary();
    const ask = (command: string, args: object = {}): Promise<unknown> =>
      b.node.withQmp((client) =>
        client.execute(command, args).catch((error: unknown) => (error as QmpError).code),
      );
    const replication = (enable: boolean): Promise<unknown> =>
      ask("xen-set-replication", { enable, primary: true });
    const told = async (): Promise<unknown[]> => [
      await ask("query-xen-replication-status"),
      await ask("xen-colo-do-checkpoint"),
      await ask("query-colo-status"),
    ];
    const idle = { mode: "none", "last-mode": "none", reason: "none" };
    const busy = { mode: "primary", "last-mode": "none", reason: "none" };
    expect(await told()).to.deep.equal([{ error: false }, {}, idle]);

    await b.node.succeed("attach", "--replica", `nbd://${await a.node.tcpAddress("replication")}`);
    await b.node.waitForStatus("replicating", ({ primary }) => primary?.link.state === "replicating");
    expect(await told()).to.deep.equal([{ error: false }, {}, busy]);

    await a.kill();
    await writePattern(b.uri, 0x44, "10M", "64k");
    expect(await told()).to.deep.equal([
      { error: true, desc: "I/O error occurred" },
      "checkpoint-refused",
      busy,
    ]);

    const stopped = { error: true, desc: "Block replication is not running" };
    expect(await replication(false)).to.deep.equal({});
    expect(await ask("query-xen-replication-status")).to.deep.equal(stopped);
    expect(await replication(true)).to.deep.equal({});
    const exit = await b.node.withQmp(async (client) => {
      const event = client.waitForEvent("COLO_EXIT");
      await client.execute("x-colo-lost-heartbeat");
      return (await event).data;
    });
    expect(exit).to.deep.equal({ mode: "primary", reason: "request" });
    const { primary } = await b.node.status();
    expect(primary?.link.state).to.equal("detached");
  });

  it("what an old primary wrote alone makes a split brain: refused on both sides, settled by command, and saved", async () => {
    await startPair();
    await a.node.succeed("detach");
    await writePattern(a.uri, 0x44, "10M", "3M");
    for (const offset of ["20M", "22M", "24M"]) await writePattern(a.uri, 0x44, offset, "64k");
    await b.failOver("latest");
    await writePattern(b.uri, 0x55, "12M", "3M");
    await a.node.succeed("stop");

    await a.startSecondary();
    const refused = await b.node.verb("attach", ...(await a.replicaOptions()));
    expect(refused.code).to.equal(3);
    expect(refused.stderr).to.match(
      /^repl-secondary: split brain: both nodes changed since they were the same, the primary 3 MiB, first on disk0 at 12582912\+3145728; the secondary 3.19 MiB, first on disk0 at 10485760\+3145728, 20971520\+65536, 23068672\+65536 \([^\n]*--discard-local-changes[^\n]*\n$/,
    );
    await expectPattern(b.uri, [0x55, "12M", "3M"]);
    expect((await a.node.status()).secondary?.conflict).to.match(/^split brain: /);
    await a.node.succeed("stop");

    await a.startSecondary("--discard-local-changes", "--yes");
    await b.attach(a);
    await expectPattern(a.uri, [0x55, "12M", "3M"], [0x11, "10M", "2M"], [0x11, "64M", "8M"]);
    expect(await sentBytes(b)).to.be.lessThan(32 * MEBIBYTE);
    expect((await a.node.status()).secondary?.conflict).to.equal(null);
    const saved = (await a.node.status()).secondary?.salvage;
    expect(saved).to.match(/salvage-\d+\.log$/);

    // The option that was left on the command line gives up nothing more, and saves nothing in place of what was.
    await b.node.succeed("detach");
    await a.node.succeed("stop");
    await a.startSecondary("--discard-local-changes", "--yes");
    await b.attach(a);
    expect((await a.node.status()).secondary?.salvage).to.equal(saved);
    await expectSameDisks();

    const output = workspace.path("salvaged");
    const said = await runNode("secondary", ["salvage", "--output", output, "--state-dir", a.path("")]);
    expect([said.code, said.stderr]).to.deep.equal([0, ""]);
    await expectPattern(`${output}/disk0.img`, [0x44, "10M", "3M"], [0x11, "13M", "2M"]);

    const [name] = (await readdir(a.path(""))).filter((file) => file.startsWith("salvage-"));
    const log = a.path(name ?? "");
    const good = await readFile(log);
    const damages: readonly (readonly [message: RegExp, damage: () => Promise<void>])[] = [
      [/salvage-\d+\.log is damaged: its header fails its checksum/, () => flipByte(log, 20)],
      [
        /salvage-\d+\.log is damaged: bytes from 4096 on are bad although later/,
        () => flipByte(log, 4096 + 30),
      ],
      [/salvage-\d+\.log .*shorter than its header/, () => truncate(log, 100)],
      [/has no salvage-\*\.log: this node gave up nothing/, () => rm(log)],
    ];
    const again = workspace.path("salvaged-again");
    for (const [message, damage] of damages) {
      await damage();
      const { code, stderr } = await runNode("secondary", [
        ...["salvage", "--output", again, "--state-dir", a.path("")],
      ]);
      expect(stderr).to.match(message);
      // Without a log it gave up nothing, which is a state and no failure.
      expect(code).to.equal(message.source.startsWith("has no") ? 3 : 1);
      expect(existsSync(again), "nothing is written of what can't be trusted").to.equal(false);
      await writeFile(log, good);
    }
  });

  it("an old primary that is started as if nothing had happened serves nobody", async () => {
    await startPair();
    await a.kill();
    await b.failOver("latest");
    const { code, stderr } = await runNode("primary", [
      ...["--disk", `disk0=${a.file}`, "--listen", "127.0.0.1:0", "--state-dir", a.path("")],
      ...(await b.replicaOptions()),
    ]);
    expect(code).to.equal(3);
    expect(stderr).to.match(/promoted by a failover.*repl-secondary/);
  });

  it("a secondary that was not promoted can't be started as a primary", async () => {
    await startPair();
    await b.node.succeed("stop");
    const args = ["--disk", `disk0=${b.file}`, "--listen", "127.0.0.1:0", "--state-dir", b.path("")];
    const { code, stderr } = await runNode("primary", args);
    expect(code).to.equal(3);
    expect(stderr).to.match(/belongs to a secondary that was not promoted: fail over first/);
  });

  it("a primary that was started as a secondary once, or with --demote, goes on as a primary: what its replica lacks is known", async () => {
    await startPair();
    await a.node.succeed("detach");
    await writePattern(a.uri, 0x44, "10M", "3M");
    await a.kill();
    await a.startSecondary("--demote");
    for (const to of ["checkpoint", "latest"]) {
      const { code, stderr } = await a.node.verb("failover", "--yes", "--to", to);
      expect(`${code},${stderr}`).to.match(
        /^3,.*nothing to fail over to: this node came back and has its own data still; .*\(repl-primary on its state directory\)\n$/,
      );
    }
    await a.kill();
    await a.startPrimary(b);
    await a.synchronised();
    expect(await sentBytes(a)).to.be.within(3 * MEBIBYTE, 32 * MEBIBYTE);
    await expectPattern(b.uri, [0x44, "10M", "3M"], [0x11, "13M", "8M"]);
    await a.kill();
    await b.failOver("latest");
    await writePattern(b.uri, 0x55, "20M", "1M");
    await b.node.succeed("stop");
    await b.startSecondary("--demote");
    await b.node.succeed("stop");
    await b.startPrimary(null);
    await a.startSecondary();
    await b.attach(a);
    await expectPattern(a.uri, [0x44, "10M", "3M"], [0x55, "20M", "1M"], [0x11, "21M", "8M"]);
    await expectSameDisks();
  });

  it("a node that handed over is no primary again, unless the other one is lost and it fails over", async () => {
    await startPair();
    await writePattern(a.uri, 0x44, "10M", "3M");
    await a.switchOver();
    const args = ["--disk", `disk0=${a.file}`, "--listen", "127.0.0.1:0", "--state-dir", a.path("")];
    const { code, stderr } = await runNode("primary", args);
    expect(`${code},${stderr}`).to.match(/^3,.*belongs to a node that handed its disks over to another one/);
    await b.kill();
    await a.startSecondary();
    const nothing = await a.node.verb("failover", "--yes", "--to", "latest");
    expect(`${nothing.code},${nothing.stderr}`).to.match(
      /^3,.*handed its disks over to another one: if that is lost, to take the disks as they are, start replication/,
    );
    await a.node.withQmp((client) => client.execute("xen-set-replication", { enable: true, primary: false }));
    await a.failOver("latest");
    await a.node.succeed("stop");
    await a.startPrimary(null);
    await expectPattern(a.uri, [0x44, "10M", "3M"], [0x11, "13M", "8M"]);
  });

  it("a promoted secondary goes on as a primary after a restart, as either program", async () => {
    await startPair();
    // Killed, it might not know yet that the first copy is durable.
    await a.node.succeed("stop");
    await b.failOver("checkpoint");
    await b.node.succeed("stop");
    await b.startPrimary(null);
    await writePattern(b.uri, 0x66, "1M", "1M");
    await b.node.succeed("stop");
    await a.startSecondary();
    await b.startPrimary(a);
    await b.synchronised();
    expect(await sentBytes(b)).to.be.lessThan(64 * MEBIBYTE);
    await expectSameDisks();
  });

  it("switch-over under load: what was acknowledged is on both nodes, and the old primary serves no more", async () => {
    await startPair();
    const fio = await startFio(workspace, a.uri, {
      size: "64m",
      iodepth: 16,
      verify: "crc32c",
      do_verify: 0,
    });
    await b.node.waitForStatus("the load", ({ disks }) => (disks[0]?.secondary?.undoBytes ?? 0) > MEBIBYTE);
    expect(await a.switchOver()).to.match(/^switched over: .*guests waited \d+ ms/);
    expect(await a.ended()).to.equal(0);
    expect((await fio.ended()).code, "its guest has to come over").to.not.equal(0);
    expect((await b.node.status()).stage).to.equal("done");
    await a.startSecondary();
    await b.attach(a);
    expect(await sentBytes(b), "nothing differed").to.equal(0);
    await expectSameDisks();
  });

  it("switch-over there and back, ten times, with a write on each side: nothing is lost, nothing is copied twice", async () => {
    await startPair();
    let [active, other] = [a, b];
    for (let turn = 1; turn <= 10; turn++) {
      await writePattern(active.uri, turn, `${turn}M`, "1M");
      await active.switchOver();
      await active.startSecondary();
      [active, other] = [other, active];
      await active.attach(other);
      expect(await sentBytes(active)).to.equal(0);
      await expectPattern(
        active.uri,
        ...Array.from({ length: turn }, (_, index) => [index + 1, `${index + 1}M`, "1M"] as const),
      );
    }
    const load = await runFio(workspace, active.uri, { size: "16m", iodepth: 8 });
    expect(load.error).to.equal(0);
    await expectSameDisks();
  });

  it("failover there and back, ten times, the active node killed under load: what is left is on both disks, to the last byte", async () => {
    await startPair();
    let [active, other] = [a, b];
    for (let turn = 1; turn <= 10; turn++) {
      await writePattern(active.uri, turn, `${turn}M`, "1M");
      await active.node.succeed("checkpoint");
      const options = { offset: "128m", size: "16m", io_size: "4g", iodepth: 16, randseed: turn };
      const fio = await startFio(workspace, active.uri, options);
      await other.node.waitForStatus(
        "undo data of the load",
        ({ disks }) => (disks[0]?.secondary?.undoBytes ?? 0) > MEBIBYTE,
      );
      await active.kill();
      await fio.ended();
      await other.failOver(turn % 2 === 0 ? "checkpoint" : "latest");
      await writePattern(other.uri, 0x80 + turn, `${64 + turn}M`, "1M");

      await active.startSecondary("--demote");
      [active, other] = [other, active];
      await active.attach(other);
      expect(await sentBytes(active), "only what differed").to.be.lessThan(64 * MEBIBYTE);
      await expectPattern(
        active.uri,
        ...Array.from({ length: turn }, (_, index) => [index + 1, `${index + 1}M`, "1M"] as const),
        ...Array.from({ length: turn }, (_, index) => [0x81 + index, `${65 + index}M`, "1M"] as const),
      );
      // The replica's file is the active disk, byte for byte, once it has been drained by a checkpoint.
      await active.node.succeed("checkpoint");
      await expectSameContent(a.file, b.file);
    }
    await expectSameDisks();
  }).timeout(TEN_TURNS_LIMIT_MS);

  it("a promoted node that went on alone is refused as a secondary, demoted or not", async () => {
    await startPair();
    await a.kill();
    await b.failOver("latest");
    await a.startSecondary();
    await b.attach(a);
    await b.node.succeed("detach");
    await writePattern(b.uri, 0x44, "10M", "1M");
    await b.kill();
    await a.failOver("latest");
    await writePattern(a.uri, 0x55, "20M", "1M");

    await b.startSecondary();
    const promoted = await a.node.verb("attach", ...(await b.replicaOptions()));
    expect(`${promoted.code},${promoted.stderr}`).to.match(
      /^3,.*or, if the primary was promoted later, the secondary with --demote/,
    );
    await b.node.succeed("stop");
    await b.startSecondary("--demote");
    const demoted = await a.node.verb("attach", ...(await b.replicaOptions()));
    expect(`${demoted.code},${demoted.stderr}`).to.match(/^3,repl-secondary: split brain/);
    const { primary } = await a.node.status();
    expect(primary?.link.state).to.equal("detached");
    expect(primary?.link.lastError).to.match(/^split brain: .* --discard-local-changes/);
    await a.logged("why it was not attached", /split brain.*"replica not attached"/);
    expect(await a.node.succeed("status")).to.match(/^! a replica was not attached: split brain: /m);
    await b.node.succeed("stop");
    await expectPattern(b.file, [0x44, "10M", "1M"]);
  });

  it("a switch-over that the secondary refuses changes nothing for the guest", async () => {
    await startPair();
    await b.kill();
    await a.node.waitForStatus("away", ({ checkpointRefusal }) => checkpointRefusal !== null);
    const { code, stderr } = await a.node.verb("switch-over");
    expect(code).to.equal(3);
    expect(stderr).to.match(/^repl-primary: .*the replica is/);
    await writePattern(a.uri, 0x77, "0", "1M");
    await expectPattern(a.uri, [0x77, "0", "1M"]);
    await b.startSecondary();
  });
});
