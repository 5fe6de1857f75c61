/** Clients of the view stay connected through checkpoints and a failover, and lose nothing. */
import { expect } from "chai";

import { fioResult, startFio, writePattern } from "../tools/clients.js";
import { startPair } from "../tools/pair.js";
import { waitFor } from "../tools/wait-for.js";
import { useWorkspace } from "../tools/workspace.js";

describe("client of the view", () => {
  const workspace = useWorkspace();

  it("writes through a failover on one connection, and reads back every byte", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "16M");
    await pair.checkpoint();
    await writePattern(pair.primaryUri(), 0x22, "0", "16M");
    const fio = await startFio(workspace, pair.viewUri(), {
      size: "16m",
      iodepth: 8,
      bs: "16k",
      rate: "16m",
    });
    const activeBytes = async (): Promise<number> =>
      (await pair.secondary.status()).disks[0]?.secondary?.activeBytes ?? 0;
    await waitFor("fio to write to the view", activeBytes, (bytes) => bytes > 0);
    await pair.failOver();
    expect(fio.isRunning, "fio outlives the failover").to.equal(true);
    const result = await fioResult(fio);
    expect(result).to.deep.include({ error: 0, bytesWritten: 16 * 1024 * 1024 });
  });
});
