/** State directories that are in use, of another node, or damaged: refused, and kept as they are for repair. */
import { expect } from "chai";
import {
  appendFile,
  copyFile,
  cp,
  mkdir,
  readFile,
  rename,
  rm,
  stat,
  truncate,
  utimes,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";

import { expectPattern, qemuIo, writePattern } from "../tools/clients.js";
import { flipByte } from "../tools/disk-files.js";
import { NodeProcess, runNode } from "../tools/node-process.js";
import { Pair, startPair } from "../tools/pair.js";
import type { Outcome } from "../tools/process.js";
import { failureOf } from "../tools/outcome.js";
import { Exit, expectRefusal } from "../tools/refusal.js";
import { expectUnharmed, settledSnapshot, snapshot } from "../tools/snapshot.js";
import { useWorkspace } from "../tools/workspace.js";

describe("state directory that can't be used", () => {
  const workspace = useWorkspace();

  const start = (
    role: "primary" | "secondary",
    stateDirectory: string,
    disks: readonly string[] = [`disk0=${workspace.path(`${role}-disk0.img`)}`],
  ): Promise<Outcome> =>
    runNode(role, [
      ...disks.flatMap((disk) => ["--disk", disk]),
      ...["--listen", `unix:${workspace.path("listen.sock")}`, "--state-dir", stateDirectory],
    ]);

  /** A stopped pair, its secondary in an epoch with something to undo and something of its own. */
  const stopPair = async (): Promise<Pair> => {
    const pair = await startPair(workspace, { sizeBytes: 4 * 1024 * 1024 });
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    await writePattern(pair.primaryUri(), 0x22, "512k", "1M");
    await writePattern(pair.viewUri(), 0xaa, "0", "64k");
    await pair.primary.succeed("stop");
    await pair.secondary.succeed("stop");
    await Promise.all([pair.primary.process.ended(), pair.secondary.process.ended()]);
    return pair;
  };

  const expectRefused = async (
    role: "primary" | "secondary",
    message: string | RegExp,
    ...rest: [stateDirectory?: string, disks?: readonly string[]]
  ): Promise<void> => {
    const [stateDirectory = workspace.path(role), disks] = rest;
    const before = await snapshot(workspace.directory);
    expectRefusal(await start(role, stateDirectory, disks), Exit.Failed, message);
    expectUnharmed(before, await snapshot(workspace.directory));
  };

  /** With the state as it was, the secondary is as it was. */
  const expectIntact = async (pair: Pair): Promise<void> => {
    await pair.startSecondary();
    await expectPattern(pair.viewUri(), [0xaa, "0", "64k"], [0x11, "64k", "960k"], [0, "1M", "3M"]);
  };

  it("in use: the second node is refused, the first goes on", async () => {
    const pair = await startPair(workspace);
    for (const node of [pair.primary, pair.secondary]) {
      const { pid } = node.process;
      const before = await settledSnapshot(node.stateDirectory);
      const other = `other=${workspace.path("other.img")}`;
      await writeFile(workspace.path("other.img"), Buffer.alloc(4096));
      const second = await start(node.role, node.stateDirectory, [other]);
      const message = `state directory ${node.stateDirectory} is in use by process ${pid}: stop that first`;
      expectRefusal(second, Exit.WrongState, message);
      expect(await snapshot(node.stateDirectory)).to.deep.equal(before);
    }
    await writePattern(pair.primaryUri(), 0x11, "0", "64k");
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x11, "0", "64k"]);
  });

  it("of a secondary that was not promoted, given to a primary", async () => {
    const pair = await stopPair();
    const before = await snapshot(workspace.directory);
    expectRefusal(
      await start("primary", workspace.path("secondary")),
      Exit.WrongState,
      "metadata.json belongs to a secondary that was not promoted: fail over first (repl-secondary failover), or give another --state-dir",
    );
    expectUnharmed(before, await snapshot(workspace.directory));
    await expectIntact(pair);
  });

  it("of other disks: other names, another number, another size", async () => {
    const pair = await stopPair();
    const [mine, other] = [pair.secondaryFile(), workspace.path("other.img")];
    await copyFile(mine, other);
    const state = workspace.path("secondary");
    await expectRefused("secondary", "belongs to the disks disk0, in this order, not to data", state, [
      `data=${mine}`,
    ]);
    await expectRefused("secondary", "not to disk0, disk1", state, [`disk0=${mine}`, `disk1=${other}`]);
    await truncate(other, 8 * 1024 * 1024);
    await expectRefused("secondary", /disk disk0 has 8388608 bytes, but .* knows it with 4194304/, state, [
      `disk0=${other}`,
    ]);
    await expectIntact(pair);
  });

  it("no directory, or one that can't be made", async () => {
    await writeFile(workspace.path("primary-disk0.img"), Buffer.alloc(4096, 0x11));
    await writeFile(workspace.path("file"), "of value");
    await expectRefused(
      "primary",
      `state directory ${workspace.path("file")} can't be used`,
      workspace.path("file"),
    );
    await expectRefused("primary", "can't be used", workspace.path("file/below"));
    await expectRefused("primary", "can't be used", "/dev/null/below");
    for (const path of ["/proc/x", "/proc/x/below"]) {
      const reason = "ENOENT: no such file or directory, mkdir '/proc/x'";
      await expectRefused(
        "primary",
        `state directory ${path} can't be used: ${reason}: mend that, or give another with --state-dir`,
        path,
      );
    }
  });

  const damages: readonly (readonly [
    what: string,
    damage: (text: string) => string,
    message: string | RegExp,
  ])[] = [
    [
      "empty",
      () => "",
      "metadata.json is not JSON: restore it, or remove the directory, which costs a full copy",
    ],
    ["cut off", (text) => text.slice(0, text.length / 2), "metadata.json is not JSON"],
    ["binary", () => "\0\xff\xfe".repeat(99), "metadata.json is not JSON"],
    [
      "of another program",
      () => '{"name": "package", "version": 1}',
      "is not a metadata file of nbd-replication",
    ],
    [
      "of a newer version",
      (text) => text.replace('"version": 6', '"version": 7'),
      "metadata.json has format version 7; this program reads 6: start the one that wrote it, or remove the directory, which costs a full copy",
    ],
    ["lacking a member", (text) => text.replace(/"epoch": \d+,/, ""), /metadata.json is damaged: epoch: /],
    [
      "wrong in a member",
      (text) => text.replace(/"stage": "\w+"/, '"stage": "paused"'),
      /metadata.json is damaged: stage: /,
    ],
    [
      "of an epoch without a log",
      (text) => text.replace(/"epoch": \d+/, '"epoch": 77'),
      /hidden-77\.log is missing/,
    ],
  ];
  it(`metadata.json that is ${damages.map(([what]) => what).join(", ")}`, async () => {
    const pair = await stopPair();
    for (const role of ["primary", "secondary"] as const) {
      const path = join(workspace.path(role), "metadata.json");
      const good = await readFile(path, "utf8");
      for (const [what, damage, message] of damages) {
        const bad = damage(good);
        // A primary's has neither stage nor log.
        if (role === "primary" && (bad === good || what.includes("without a log"))) continue;
        expect(bad, `${what}: it is damaged`).not.to.equal(good);
        await writeFile(path, bad, "latin1");
        await expectRefused(role, message);
      }
      await writeFile(path, good);
    }
    await expectIntact(pair);
  });

  it("metadata.json that is gone, beside a log", async () => {
    const pair = await stopPair();
    const path = workspace.path("secondary/metadata.json");
    const good = await readFile(path);
    await rm(path);
    await expectRefused("secondary", /metadata\.json is missing although (hidden|active)-\d+/);
    await writeFile(path, good);
    await expectIntact(pair);
  });

  /** The log of before-images of a stopped secondary. */
  const hiddenLog = async (): Promise<string> => {
    const { epoch } = JSON.parse(await readFile(workspace.path("secondary/metadata.json"), "utf8")) as {
      epoch: number;
    };
    return workspace.path(`secondary/hidden-${epoch}.log`);
  };

  it("a log of before-images with damage in the middle, a bad header, or no header", async () => {
    const pair = await stopPair();
    const path = await hiddenLog();
    const good = await readFile(path);
    const damages: readonly (readonly [message: string, damage: () => Promise<void>])[] = [
      ["its header fails its checksum", () => flipByte(path, 20)],
      ["is not an overlay log of nbd-replication", () => flipByte(path, 0)],
      ["shorter than its header", () => truncate(path, 100)],
      ["is missing", () => rm(path)],
    ];
    for (const [message, damage] of damages) {
      await damage();
      await expectRefused("secondary", message);
      await writeFile(path, good);
    }
    await expectIntact(pair);
  });

  it("a damaged log of before-images: with the primary lost its disk is one; with it alive all is copied anew", async () => {
    const pair = await stopPair();
    await flipByte(await hiddenLog(), 20);
    await expectRefused(
      "secondary",
      /hidden-\d+\.log is damaged: its header fails its checksum: the disks hold all that was received: if the primary is alive, remove the state directory: it copies everything; if it is lost, start repl-primary on them with a new --state-dir\n$/,
    );
    const received = [
      [0x11, "0", "512k"],
      [0x22, "512k", "1M"],
      [0, "1536k", "2560k"],
    ] as const;
    const socket = workspace.path("rescued.sock");
    const rescued = await NodeProcess.start(
      workspace,
      "primary",
      [...["--disk", `disk0=${pair.secondaryFile()}`], ...["--listen", `unix:${socket}`]],
      workspace.path("rescued"),
    );
    await expectPattern(`nbd+unix:///disk0?socket=${socket}`, ...received);
    await rescued.succeed("stop");
    await rm(workspace.path("secondary"), { recursive: true });
    await pair.startSecondary();
    await pair.startPrimary();
    await pair.synchronised();
    await expectPattern(pair.viewUri(), ...received);
  });

  it("a log of before-images whose first record is bad, while later ones are whole", async () => {
    const pair = await startPair(workspace, { sizeBytes: 4 * 1024 * 1024 });
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    // One after the other: each batch of the log is durable before the next.
    for (const offset of ["0", "64k", "128k"]) await writePattern(pair.primaryUri(), 0x22, offset, "64k");
    await pair.primary.succeed("stop");
    await pair.secondary.succeed("stop");
    const path = await hiddenLog();
    const headerBytes = 4096;
    for (const position of [headerBytes + 30, headerBytes + 64 + 1000]) {
      await flipByte(path, position);
      await expectRefused(
        "secondary",
        /hidden-\d+\.log is damaged: bytes from 4096 on are bad although later/,
      );
      await flipByte(path, position);
    }
    await pair.startSecondary();
    await expectPattern(pair.viewUri(), [0x11, "0", "1M"], [0, "1M", "3M"]);
  });

  it("a log or a data file of the view's writes that is damaged, cut off or missing", async () => {
    const pair = await stopPair();
    const log = (await hiddenLog()).replace("hidden-", "active-");
    const data = log.replace(".log", "-0.data");
    const [goodLog, goodData] = [await readFile(log), await readFile(data)];
    const damages: readonly (readonly [message: string | RegExp, damage: () => Promise<void>])[] = [
      ["its header fails its checksum", () => flipByte(log, 20)],
      ["is not an overlay log of nbd-replication", () => flipByte(log, 0)],
      ["shorter than its header", () => truncate(log, 100)],
      [/active-\d+\.log is damaged: it ends at 4096 and ended at \d+/, () => flipByte(log, 4096 + 30)],
      [/active-\d+\.log is damaged: it ends at 4096 and ended at \d+/, () => truncate(log, 4096)],
      [/active-\d+\.log is missing/, () => rm(log)],
      [
        /active-\d+-0\.data is damaged: it has 4096 bytes and active-\d+\.log names its content up to 65536: the disks hold all that was received/,
        () => truncate(data, 4096),
      ],
      [/active-\d+-0\.data is missing although active-\d+\.log names its content/, () => rm(data)],
    ];
    for (const [message, damage] of damages) {
      await damage();
      await expectRefused("secondary", message);
      await writeFile(log, goodLog);
      await writeFile(data, goodData);
    }
    await expectIntact(pair);
  });

  it("a data file of the view's writes that was cut off while the node was dead", async () => {
    const pair = await startPair(workspace, { sizeBytes: 4 * 1024 * 1024 });
    await qemuIo(pair.viewUri(), "write -P 0xaa 0 64k", "flush");
    await pair.primary.process.kill();
    await pair.secondary.process.kill();
    const data = (await hiddenLog()).replace("hidden-", "active-").replace(".log", "-0.data");
    const good = await readFile(data);
    await truncate(data, 0);
    // The pid in the lock is of no use any more, and goes.
    const refused = await start("secondary", workspace.path("secondary"));
    expectRefusal(refused, Exit.Failed, /active-\d+-0\.data is damaged: it has 0 bytes/);
    await writeFile(data, good);
    await pair.startSecondary();
    await expectPattern(pair.viewUri(), [0xaa, "0", "64k"]);
  });

  it("a dirty map that is cut off, flipped in a header or a sector, or of another disk", async () => {
    const pair = await stopPair();
    const path = workspace.path("primary/dirty-0.map");
    const good = await readFile(path);
    const remedy = "restore it, or remove it, which costs a full copy";
    const damages: readonly (readonly [message: string | RegExp, damage: () => Promise<void>])[] = [
      [/dirty-0\.map is damaged: it has 4100 bytes and should have more/, () => truncate(path, 4100)],
      [/dirty-0\.map is damaged: the sector at 4096 fails its checksum/, () => flipByte(path, 4096 + 77)],
      [/neither of its headers is whole/, () => writeFile(path, Buffer.alloc(good.length, 0x41))],
      [remedy, () => flipByte(path, 5000)],
    ];
    for (const [message, damage] of damages) {
      await damage();
      await expectRefused("primary", message);
      await writeFile(path, good);
    }
    await rm(path);
    await pair.startSecondary();
    await pair.startPrimary();
    await pair.synchronised();
    await expectPattern(pair.viewUri(), [0x11, "0", "512k"], [0x22, "512k", "1M"], [0, "1536k", "1M"]);
  });

  it("of a disk whose file is not there: refused with --size too, and none is made", async () => {
    const pair = await stopPair();
    for (const role of ["primary", "secondary"] as const) {
      const file = role === "primary" ? pair.primaryFile() : pair.secondaryFile();
      await rename(file, `${file}.away`);
      const before = await snapshot(workspace.directory);
      for (const size of [[], ["--size", "4M"]]) {
        const refused = await runNode(role, [
          ...["--disk", `disk0=${file}`, "--listen", `unix:${workspace.path("listen.sock")}`, ...size],
          ...["--state-dir", workspace.path(role)],
        ]);
        expectRefusal(
          refused,
          Exit.Failed,
          `disk disk0: ${file} does not exist, but ${workspace.path(role)}/metadata.json is of a node that has its disks: put it back; to begin with a new disk, use another --state-dir`,
        );
        expectUnharmed(before, await snapshot(workspace.directory));
      }
      await rename(`${file}.away`, file);
    }
    await expectIntact(pair);
  });

  it("none yet, and a start that is refused: the disk that was made for it is gone again, one that was there is not", async () => {
    await writeFile(workspace.path("there.img"), Buffer.alloc(4096));
    await mkdir(workspace.path("none.img"));
    for (const role of ["primary", "secondary"] as const) {
      const disks = ["there", "new", "none"].flatMap((name) => [
        "--disk",
        `${name}=${workspace.path(`${name}.img`)}`,
      ]);
      const options = ["--size", "4096", "--listen", `unix:${workspace.path("listen.sock")}`];
      const refused = await runNode(role, [...disks, ...options, "--state-dir", workspace.path(role)]);
      expectRefusal(refused, Exit.Usage, "none.img is a directory");
      expect(Object.keys(await snapshot(workspace.directory))).to.include.members(["there.img"]);
      expect(Object.keys(await snapshot(workspace.directory))).to.not.include("new.img");
    }
  });

  it("of a primary whose disk is another file: its replica refuses that, until an operator gives up what it has; put back, it is as before", async () => {
    const pair = await stopPair();
    const file = pair.primaryFile();
    await copyFile(file, `${file}.other`);
    await writePattern(`${file}.other`, 0x77, "0", "4M");
    await rename(file, `${file}.away`);
    await rename(`${file}.other`, file);
    await pair.startSecondary();
    for (let start = 1; start <= 2; start++) {
      const { message } = await failureOf(pair.startPrimary());
      expect(message).to.match(/is another file.*new data/);
      expect(message).to.match(
        /repl-primary: disk disk0: \S+ is another file: put the disk back; if it is meant: the secondary holds other data: .*--discard-local-changes/,
      );
      await expectPattern(pair.viewUri(), [0xaa, "0", "64k"], [0x11, "64k", "960k"], [0, "1M", "3M"]);
    }
    const alone = await NodeProcess.start(workspace, "primary", [
      ...["--disk", `disk0=${file}`, "--listen", `unix:${workspace.path("alone.sock")}`],
    ]);
    const { replication, qmp } = pair.addresses;
    const attach = ["attach", "--replica", `nbd://${replication}`, "--replica-qmp", `tcp:${qmp}`];
    const { code, stderr } = await alone.verb(...attach);
    expect(stderr).to.match(
      /^repl-primary: disk disk0: \S+ is another file: put the disk back; if it is meant: the secondary holds/,
    );
    expect(code).to.equal(Exit.WrongState);
    await alone.succeed("stop");
    await rename(file, `${file}.other`);
    await rename(`${file}.away`, file);
    await pair.startPrimary();
    await pair.synchronised();
    await expectPattern(pair.viewUri(), [0x11, "0", "512k"], [0x22, "512k", "1M"], [0, "1536k", "1M"]);

    await pair.primary.succeed("stop");
    await pair.secondary.succeed("stop");
    await rename(`${file}.other`, file);
    await pair.startPrimary();
    expect((await pair.primary.status()).primary?.newData).to.equal(`disk disk0: ${file} is another file`);
    expect(await pair.primary.succeed("status")).to.match(
      /^! new data, disk disk0: \S+ is another file: put the disk back; or start the secondary once with --discard-local-changes/m,
    );
    await writePattern(pair.primaryUri(), 0x78, "0", "64k");
    await pair.startSecondary("--discard-local-changes", "--yes");
    await pair.synchronised();
    await expectPattern(pair.viewUri(), [0x78, "0", "64k"], [0x77, "64k", "4032k"]);
    expect((await pair.primary.status()).primary?.newData).to.equal(null);
    await pair.primary.succeed("stop");
    await pair.startPrimary();
    await pair.synchronised();
    expect((await pair.primary.status()).disks[0]?.primary?.bytesResynced, "it is its disk now").to.equal(0);
  });

  it("of a primary whose disk is another file: what is refused while its replica is away leaves no trace, put back it is as before", async () => {
    const pair = await stopPair();
    const file = pair.primaryFile();
    const record = await readFile(join(workspace.path("primary"), "metadata.json"), "utf8");
    await rename(file, `${file}.away`);
    await copyFile(`${file}.away`, file);
    await pair.startPrimary();
    const { stderr } = await pair.primary.verb("checkpoint");
    expect(stderr).to.match(/checkpoint refused: the replica is/);
    await writePattern(pair.primaryUri(), 0x77, "0", "64k");
    await pair.primary.succeed("stop");
    const after = await readFile(join(workspace.path("primary"), "metadata.json"), "utf8");
    expect(JSON.parse(after)).to.deep.equal({ ...JSON.parse(record), cleanShutdown: false });

    await rename(`${file}.away`, file);
    await pair.startSecondary();
    await pair.startPrimary();
    await pair.synchronised();
    await expectPattern(pair.viewUri(), [0x11, "0", "512k"], [0x22, "512k", "1M"], [0, "1536k", "1M"]);
  });

  it("of a primary whose disk is another file: a new secondary takes it, one without a control can't refuse it", async () => {
    const pair = await stopPair();
    const file = pair.primaryFile();
    await copyFile(file, `${file}.other`);
    await rename(`${file}.other`, file);
    const refused = await runNode("primary", [
      ...["--disk", `disk0=${file}`, "--listen", `unix:${workspace.path("listen.sock")}`],
      ...["--replica", "nbd://127.0.0.1:1", "--state-dir", workspace.path("primary")],
    ]);
    const remedy = "put the disk back; to begin with a new disk, use another --state-dir";
    expectRefusal(
      refused,
      Exit.WrongState,
      `disk disk0: ${file} is another file, and a replica without --replica-qmp can't refuse its content: ${remedy}`,
    );
    await rm(workspace.path("secondary"), { recursive: true });
    await rm(pair.secondaryFile());
    await pair.startSecondary();
    await pair.startPrimary();
    await pair.synchronised();
    await expectPattern(pair.viewUri(), [0x11, "0", "512k"], [0x22, "512k", "1M"], [0, "1536k", "1M"]);
  });

  it("of a disk that was replaced, or written to by somebody else: refused by a secondary, copied anew by a primary", async () => {
    const pair = await stopPair();
    const file = pair.secondaryFile();
    const { atime, mtime } = await stat(file);
    await writePattern(file, 0x55, "3M", "64k");
    await expectRefused(
      "secondary",
      /secondary-disk0.img was written to while this node did not run: .* does not belong to it/,
    );
    await writePattern(file, 0, "3M", "64k");
    await copyFile(file, `${file}.copy`);
    await rename(`${file}.copy`, file);
    await utimes(file, atime, mtime);
    await expectRefused("secondary", /secondary-disk0.img is another file: /);
    await rm(workspace.path("secondary"), { recursive: true });
    await writePattern(pair.primaryFile(), 0x66, "2M", "64k");
    await pair.startSecondary();
    await pair.startPrimary();
    await pair.synchronised();
    await expectPattern(pair.viewUri(), [0x66, "2M", "64k"], [0x22, "512k", "1M"], [0, "3M", "1M"]);
  });

  it("of a disk that was written to by somebody else: refused by the replica of a primary that never introduces itself, too", async () => {
    const pair = new Pair(workspace, {});
    await pair.startSecondary();
    await pair.secondary.withQmp((client) =>
      client.execute("xen-set-replication", { enable: true, primary: false }),
    );
    await writePattern(`nbd://${pair.addresses.replication}/disk0`, 0x11, "0", "64k");
    await pair.secondary.succeed("stop");
    await pair.secondary.process.ended();
    await writePattern(pair.secondaryFile(), 0x55, "3M", "64k");
    await expectRefused("secondary", /secondary-disk0.img was written to while this node did not run: /);
  });

  it("a torn tail of the log of before-images is harmless: what it guards was never overwritten", async () => {
    const pair = await stopPair();
    const path = await hiddenLog();
    const { size } = await stat(path);
    await appendFile(path, Buffer.alloc(5000, 0x5a));
    await expectIntact(pair);
    await pair.secondary.succeed("stop");
    expect((await stat(path)).size).to.be.at.least(size);
  });

  it("removed of a stopped secondary: costs a full copy, and nothing else", async () => {
    const pair = await stopPair();
    await cp(workspace.path("secondary"), workspace.path("kept"), { recursive: true });
    await rm(workspace.path("secondary"), { recursive: true });
    await pair.startSecondary();
    expect((await pair.secondary.status()).stage).to.equal("none");
    await pair.startPrimary();
    await pair.synchronised();
    await expectPattern(pair.viewUri(), [0x11, "0", "512k"], [0x22, "512k", "1M"], [0, "1536k", "1M"]);
  });

  it("empty and there already: is taken", async () => {
    await mkdir(workspace.path("state"));
    const node = await NodeProcess.start(
      workspace,
      "secondary",
      ["--disk", `disk0=${workspace.path("new.img")}`, "--size", "1M", "--listen", "none"],
      workspace.path("state"),
    );
    expect((await node.status()).stateDirectory).to.equal(workspace.path("state"));
  });
});
