/** Nodes killed at the points where a crash is hardest to get right; what is there then is compared to the last byte. */
import { expect } from "chai";
import { copyFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

import { connectNbd } from "../../src/nbd/client/connect.js";
import { parseNbdUri } from "../../src/nbd/uri.js";
import { expectPattern, qemuIo, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { freezeAt, readState } from "../tools/freeze.js";
import { LinkProxy } from "../tools/link-proxy.js";
import { NumberedGuest } from "../tools/numbered-guest.js";
import { MEBIBYTE, type Pair, startPair } from "../tools/pair.js";
import { succeed } from "../tools/process.js";
import { Random, SEED } from "../tools/seed.js";
import { startNbdkit } from "../tools/socket-server.js";
import { useWorkspace } from "../tools/workspace.js";

const LOG_HEADER_BYTES = 4096;
/** More than can be guarded and not yet overwritten. */
const MANY_BYTES = 64 * 1024;
/** The moment is short: it may be over before the process is stopped. */
const ATTEMPTS = 150;

describe("nodes that are killed at a named point", () => {
  const workspace = useWorkspace();

  /** What the primary's disk holds now, while nobody writes. */
  async function keepContent(pair: Pair): Promise<string> {
    const kept = workspace.path("kept.img");
    await copyFile(pair.primaryFile(), kept);
    return kept;
  }

  async function expectView(pair: Pair, content: string): Promise<void> {
    const viewed = workspace.path("viewed.img");
    await succeed("nbdcopy", [pair.viewUri(), viewed]);
    await expectSameContent(viewed, content);
  }

  async function expectInStep(pair: Pair): Promise<void> {
    await pair.synchronised();
    await pair.checkpoint();
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
    await expectView(pair, pair.primaryFile());
  }

  const logSizes = { "without before-images": 1, "with many before-images": LOG_HEADER_BYTES + MANY_BYTES };
  for (const [log, bytes] of Object.entries(logSizes)) {
    it(`the secondary, in a new epoch ${log} that is not on record yet: the last checkpoint is there, exactly (seed ${SEED})`, async () => {
      const pair = await startPair(workspace, {
        sizeBytes: 16 * MEBIBYTE,
        primary: ["--replica-timeout", "500ms"],
      });
      const guest = new NumberedGuest(new Random(SEED), [0, 8 * MEBIBYTE], 4 * MEBIBYTE);
      const device = await connectNbd(parseNbdUri(pair.primaryUri()));
      let kept = "";
      let isCaught = false;
      for (let attempt = 0; attempt < ATTEMPTS && !isCaught; attempt++) {
        const epoch = await pair.checkpoint();
        kept = await keepContent(pair);
        const state = { isOver: false };
        const written = guest.write(device, 8, () => state.isOver);
        const before = guest.acknowledgements;
        while (guest.acknowledgements < before + 500) await sleep(1);
        const next = `hidden-${epoch + 1}.log`;
        const report = { isOver: false };
        const reported = pair.checkpoint().then(
          () => true,
          () => false,
        );
        void reported.then(() => (report.isOver = true));
        isCaught = await freezeAt(
          pair.secondary,
          ({ sizeOf, metadata }) => sizeOf(next) >= bytes && metadata.epoch === epoch,
          () => report.isOver,
        );
        if (isCaught) {
          await pair.secondary.process.kill();
          await pair.primary.process.kill();
          expect(await reported, "a checkpoint that is not on record was reported").to.equal(false);
        }
        state.isOver = true;
        await written;
      }
      expect(isCaught, `caught in ${ATTEMPTS} attempts`).to.equal(true);
      device.destroy(new Error("the primary is dead"));
      await pair.startSecondary();
      await expectView(pair, kept);
      await guest.check(pair.primaryFile());
      await pair.startPrimary();
      await expectInStep(pair);
      await guest.check(pair.secondaryFile());
    });
  }

  it("the secondary, while a failover is merged, three times: finished in the end, with what its clients wrote meanwhile", async () => {
    const sizeBytes = 32 * MEBIBYTE;
    const files = { primary: workspace.path("p.img"), secondary: workspace.path("s.img") };
    for (const file of Object.values(files)) await succeed("truncate", ["--size", String(sizeBytes), file]);
    const socket = workspace.path("nbdkit.sock");
    // The merge writes a mebibyte at a time, one after the other: it takes two seconds.
    await startNbdkit(workspace, socket, "--filter=delay", "file", files.secondary, "wdelay=100ms");
    const pair = await startPair(workspace, {
      sizeBytes,
      diskPath: (role) => (role === "primary" ? files.primary : `nbd+unix:///?socket=${socket}`),
    });
    await writePattern(pair.primaryUri(), 0x11, "0", "24M");
    await pair.checkpoint();
    await writePattern(pair.primaryUri(), 0x22, "4M", "20M");
    await qemuIo(pair.viewUri(), "write -P 0xaa 8M 1M", "flush");
    await pair.primary.process.kill();

    const verb = pair.secondary.verb("failover", "--yes");
    const wasCaught = await freezeAt(
      pair.secondary,
      ({ metadata }) => metadata.stage === "failover",
      () => readState(pair.secondary).metadata.stage === "done",
    );
    expect(wasCaught, "the failover was over before it could be interrupted").to.equal(true);
    await pair.secondary.process.kill();
    await verb;
    for (const write of ["write -P 0xb0 20M 1M", "write -P 0xb1 28M 1M"]) {
      await pair.startSecondary();
      await qemuIo(pair.viewUri(), write, "flush");
      expect(readState(pair.secondary).metadata.stage).to.equal("failover");
      await pair.secondary.process.kill();
    }
    await pair.startSecondary();
    await pair.secondary.waitForStatus("failover done", ({ stage }) => stage === "done");
    const expected = [
      [0x11, "0", "8M"],
      [0xaa, "8M", "1M"],
      [0x11, "9M", "11M"],
      [0xb0, "20M", "1M"],
      [0x11, "21M", "3M"],
      [0, "24M", "4M"],
      [0xb1, "28M", "1M"],
      [0, "29M", "3M"],
    ] as const;
    await expectPattern(pair.viewUri(), ...expected);
    await pair.secondary.succeed("stop");
    await expectPattern(files.secondary, ...expected);
    const { files: left } = readState(pair.secondary);
    expect(left.filter((file) => /^(hidden|active)-/.test(file))).to.deep.equal([]);
  });

  const cases: readonly (readonly ("primary" | "secondary")[])[] = [
    ["primary"],
    ["secondary"],
    ["primary", "secondary"],
  ];
  for (const victims of cases) {
    it(`${victims.join(" and ")}, in the middle of a resync: the last checkpoint is there until the resync is over`, async () => {
      const pair = await startPair(workspace, {
        sizeBytes: 32 * MEBIBYTE,
        primary: ["--resync-rate", "8M"],
      });
      await writePattern(pair.primaryUri(), 0x11, "0", "16M");
      await pair.checkpoint();
      const kept = await keepContent(pair);
      await pair.secondary.process.kill();
      await writePattern(pair.primaryUri(), 0x22, "4M", "12M");
      await pair.startSecondary();
      await pair.primary.waitForStatus("half of a resync", ({ jobs: [job] }) => {
        return job?.type === "mirror" && job.offset > 0 && job.offset < job.len;
      });
      for (const victim of victims) await pair[victim].process.kill();
      expect(readState(pair.secondary).metadata.stage).to.equal("running");
      if (victims.includes("secondary")) await pair.startSecondary();
      if (victims.includes("primary")) {
        await expectView(pair, kept);
        await pair.startPrimary();
      }
      await expectInStep(pair);
      await expectPattern(pair.viewUri(), [0x11, "0", "4M"], [0x22, "4M", "12M"], [0, "16M", "16M"]);
    });
  }

  it("the primary, between a checkpoint's answer and the word that it is durable: the checkpoint is there, and was not reported", async () => {
    let control: LinkProxy | null = null;
    const pair = await startPair(workspace, {
      sizeBytes: 32 * MEBIBYTE,
      route: async ({ replication, qmp }) => {
        control = await LinkProxy.start(workspace, qmp);
        return { replication, qmp: control.address };
      },
    });
    const link = control as LinkProxy | null;
    if (link === null) throw new Error("the pair was not routed");
    await writePattern(pair.primaryUri(), 0x11, "0", "16M");
    const epoch = (await pair.checkpoint()) + 1;
    await writePattern(pair.primaryUri(), 0x22, "4M", "20M");
    const kept = await keepContent(pair);

    const isStalled = link.when(() => {
      link.stall();
    }, ["near", '"X_REPL_CHECKPOINT"']);
    const reported = pair.checkpoint().then(
      () => true,
      () => false,
    );
    await isStalled;
    // It has the answer, and so is in the new epoch.
    await pair.primary.waitForStatus("the new epoch", (status) => status.epoch === epoch);
    await pair.primary.process.kill();
    expect(await reported).to.equal(false);
    expect(readState(pair.secondary).metadata.epoch).to.equal(epoch);
    await expectView(pair, kept);
    await pair.secondary.process.kill();
    await pair.startSecondary();
    await expectView(pair, kept);
    link.heal();
    await pair.startPrimary();
    await pair.synchronised();
    expect(await pair.checkpoint()).to.be.greaterThan(epoch);
    await expectInStep(pair);
  });
});
