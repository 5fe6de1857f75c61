/** One node is killed under load: what the guest notices, and what is left. */
import { expect } from "chai";
import { copyFile } from "node:fs/promises";

import { expectPattern, fioResult, runFio, startFio, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { type Pair, startPair } from "../tools/pair.js";
import { succeed } from "../tools/process.js";
import { useWorkspace } from "../tools/workspace.js";

describe("crash of a node", () => {
  const workspace = useWorkspace();

  /** Enough that the epoch's undo log has something, whatever the machine's speed. */
  const underWay = (pair: Pair, bytes: number): Promise<unknown> =>
    pair.secondary.waitForStatus(
      "undo data of the load",
      ({ disks }) => (disks[0]?.secondary?.undoBytes ?? 0) >= bytes,
    );

  it("the primary, killed while its guest writes: the failover gives the last checkpoint exactly", async () => {
    const pair = await startPair(workspace);
    await runFio(workspace, pair.primaryUri(), { size: "32m", iodepth: 16, randseed: 1 });
    await pair.checkpoint();
    const atCheckpoint = workspace.path("at-checkpoint.img");
    await copyFile(pair.primaryFile(), atCheckpoint);

    const load = { size: "64m", iodepth: 16, bsrange: "512-64k", randseed: 2, randrepeat: 0 };
    const fio = await startFio(workspace, pair.primaryUri(), load);
    await underWay(pair, 8 * 1024 * 1024);
    await pair.primary.process.kill();
    expect((await fio.ended()).code, "the guest of a dead primary fails").to.not.equal(0);

    const viewed = workspace.path("viewed.img");
    await succeed("nbdcopy", [pair.viewUri(), viewed]);
    await expectSameContent(viewed, atCheckpoint);
    await pair.failOver();
    await succeed("nbdcopy", [pair.viewUri(), viewed]);
    await expectSameContent(viewed, atCheckpoint);
    await pair.secondary.succeed("stop");
    await expectSameContent(pair.secondaryFile(), atCheckpoint);
  });

  it("the secondary, killed under load: the guest sees no error; restarted, it is resynced by itself", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "32M");
    const epoch = await pair.checkpoint();
    const fio = await startFio(workspace, pair.primaryUri(), { size: "32m", iodepth: 16, rate: "16m" });
    await underWay(pair, 1024 * 1024);
    await pair.secondary.process.kill();
    const down = await pair.primary.waitForStatus(
      "disconnected",
      ({ primary }) => primary?.link.state !== "replicating",
    );
    expect(down.checkpointRefusal).to.match(/^the replica is \w+: .* not replicated$/);
    const refused = await pair.primary.verb("checkpoint");
    expect(refused.code).to.equal(3);
    expect(refused.stderr).to.match(/^repl-primary: checkpoint refused: the replica is .*\n$/);

    await pair.startSecondary();
    const back = await pair.secondary.status();
    expect(back).to.deep.include({ stage: "running", epoch });
    expect((await fioResult(fio)).error).to.equal(0);
    const { primary } = await pair.synchronised();
    expect(primary?.link.reconnects).to.be.at.least(1);
    expect(await pair.checkpoint()).to.be.greaterThan(epoch);
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
    for (const node of [pair.primary, pair.secondary]) {
      expect(await node.status()).to.deep.include({ stage: "running", error: null, checkpointRefusal: null });
    }
  });

  it("the secondary, killed in an epoch: it comes back with its last checkpoint, and can fail over to it", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "8M");
    await pair.checkpoint();
    await writePattern(pair.primaryUri(), 0x22, "4M", "8M");
    await writePattern(pair.viewUri(), 0xaa, "1M", "1M");
    await pair.primary.process.kill();
    await pair.secondary.process.kill();
    await pair.startSecondary();
    const expected = [
      [0x11, "0", "1M"],
      [0xaa, "1M", "1M"],
      [0x11, "2M", "6M"],
      [0, "8M", "8M"],
    ] as const;
    await expectPattern(pair.viewUri(), ...expected);
    await pair.failOver();
    await expectPattern(pair.viewUri(), ...expected);
  });

  it("both nodes, killed under load and restarted: they replicate again, identical", async () => {
    const pair = await startPair(workspace);
    const fio = await startFio(workspace, pair.primaryUri(), { size: "32m", iodepth: 16 });
    await underWay(pair, 1024 * 1024);
    await Promise.all([pair.primary.process.kill(), pair.secondary.process.kill()]);
    expect((await fio.ended()).code).to.not.equal(0);
    const { epoch } = await (await pair.startSecondary()).status();
    await pair.startPrimary();
    await pair.synchronised();
    expect(await pair.checkpoint()).to.be.greaterThan(epoch);
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });
});
