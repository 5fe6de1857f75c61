/** Checkpoints under load, without stopping the guest: whole files are compared in the end. */
import { expect } from "chai";

import { type FioOptions, runFio } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { type Pair, startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

const CHECKPOINTS = 100;
const CHECKPOINTS_BY_COMMAND = 5;

describe("pair under load", () => {
  const workspace = useWorkspace();

  /** fio again and again until `work` is done; each run writes all over the disk, then checks all it wrote. */
  const underLoad = async (pair: Pair, options: FioOptions, work: () => Promise<unknown>): Promise<void> => {
    const state = { isDone: false };
    const working = work().finally(() => {
      state.isDone = true;
    });
    const loading = (async (): Promise<void> => {
      do expect((await runFio(workspace, pair.primaryUri(), options)).error).to.equal(0);
      while (!state.isDone);
    })();
    await Promise.all([working, loading]);
  };

  const expectIdentical = async (pair: Pair): Promise<void> => {
    await pair.checkpoint();
    for (const node of [pair.primary, pair.secondary]) {
      expect(await node.status()).to.deep.include({ stage: "running", error: null, checkpointRefusal: null });
    }
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  };

  for (const depth of [1, 16]) {
    it(`takes ${CHECKPOINTS} checkpoints over one QMP connection while fio writes at depth ${depth}`, async () => {
      const pair = await startPair(workspace);
      const { epoch } = await pair.primary.status();
      await underLoad(pair, { size: "32m", iodepth: depth, randseed: depth }, () =>
        pair.primary.withQmp(async (client) => {
          for (let count = 1; count <= CHECKPOINTS; count++) {
            expect(await client.execute("x-repl-checkpoint")).to.deep.equal({ epoch: epoch + count });
          }
        }),
      );
      await expectIdentical(pair);
      expect((await pair.secondary.status()).epoch).to.equal(epoch + CHECKPOINTS + 1);
    });
  }

  it("takes checkpoints by the command line while fio writes", async () => {
    const pair = await startPair(workspace);
    const { epoch } = await pair.primary.status();
    await underLoad(pair, { size: "32m", iodepth: 16, bsrange: "512-64k" }, async () => {
      for (let count = 0; count < CHECKPOINTS_BY_COMMAND; count++) await pair.primary.succeed("checkpoint");
    });
    expect((await pair.secondary.status()).epoch).to.equal(epoch + CHECKPOINTS_BY_COMMAND);
    await expectIdentical(pair);
  });

  for (const ackMode of ["async", "memsync", "sync"]) {
    it(`--checkpoint-interval 50ms in ack mode ${ackMode} while fio writes`, async () => {
      const pair = await startPair(workspace, {
        primary: ["--checkpoint-interval", "50ms", "--ack-mode", ackMode],
      });
      const { epoch } = await pair.primary.status();
      const load = { size: "16m", iodepth: 16, fsync: 256 };
      await underLoad(pair, load, () =>
        pair.secondary.waitForStatus("ten epochs later", (status) => status.epoch >= epoch + 10),
      );
      await expectIdentical(pair);
    });
  }
});
