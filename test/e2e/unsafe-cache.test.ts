import { expect } from "chai";

import { expectPattern, runFio, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

describe("--cache unsafe", () => {
  const workspace = useWorkspace();

  it("is said by both nodes, and survives what is no power loss", async () => {
    const unsafe = ["--cache", "unsafe"];
    const pair = await startPair(workspace, { primary: unsafe, secondary: unsafe });
    for (const node of [pair.primary, pair.secondary]) {
      expect((await node.status()).cache).to.equal("unsafe");
      expect(await node.succeed("status")).to.match(/cache unsafe: a power loss/);
      await node.logged("cache unsafe", ({ level, msg }) => level === 40 && msg.startsWith("cache unsafe"));
    }
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    await runFio(workspace, pair.primaryUri(), { offset: "32m", size: "16m", iodepth: 16, fsync: 16 });
    await pair.secondary.process.kill();
    await pair.startSecondary();
    await expectPattern(pair.viewUri(), [0x11, "0", "1M"], [0, "32M", "16M"]);
    await pair.synchronised();
    await pair.primary.succeed("stop");
    await pair.secondary.succeed("stop");
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });
});
