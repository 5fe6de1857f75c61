/** A client that writes to the replica behind the primary's back. */
import { expect } from "chai";

import { expectPattern, qemuIo, tryQemuIo, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

describe("a second writer beside the primary", () => {
  const workspace = useWorkspace();

  it("may read, is refused each write, and the primary makes sure that the disks are the same", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    const uri = `nbd://${pair.addresses.replication}/disk0`;
    expect(await qemuIo(uri, "read -P 0x11 0 1M")).to.include("read 1048576/1048576");
    for (let turn = 0; turn < 2; turn++) {
      const { stdout, stderr } = await tryQemuIo(uri, "write -P 0x99 0 64k");
      expect(`${stdout}${stderr}`).to.match(/write failed: (Operation not permitted|Input\/output error)/);
    }
    await pair.secondary.logged("writer refused", ({ msg }) => msg === "writer refused");
    await expectPattern(pair.viewUri(), [0x11, "0", "1M"]);

    const refused = await pair.primary.verb("checkpoint");
    expect(refused.code).to.equal(3);
    await pair.synchronised();
    await writePattern(pair.primaryUri(), 0x22, "64k", "64k");
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x11, "0", "64k"], [0x22, "64k", "64k"]);
    await pair.primary.succeed("stop");
    await pair.secondary.succeed("stop");
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });
});
