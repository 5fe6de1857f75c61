/** A client that writes to the replica behind the primary's back. */
import { expect } from "chai";

import { expectPattern, qemuIo, tryQemuIo, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

describe("a second writer beside the primary", () => {
  const workspace = useWorkspace();

  it("may read and is refused each write, which costs the pair nothing: no connection, no checkpoint, no copy", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await pair.checkpoint();
    const before = await pair.primary.status();
    const uri = `nbd://${pair.addresses.replication}/disk0`;
    expect(await qemuIo(uri, "read -P 0x11 0 1M")).to.include("read 1048576/1048576");
    for (const change of ["write -P 0x99 0 64k", "write -z 0 64k", "discard 0 64k"]) {
      const { stdout, stderr } = await tryQemuIo(uri, change);
      expect(`${stdout}${stderr}`, change).to.match(
        /failed: (Operation not permitted|Input\/output error|Permission denied)/,
      );
    }
    await pair.secondary.logged("writer refused", ({ msg }) => msg === "writer refused");
    await expectPattern(pair.viewUri(), [0x11, "0", "1M"]);

    await writePattern(pair.primaryUri(), 0x22, "64k", "64k");
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x11, "0", "64k"], [0x22, "64k", "64k"]);
    const after = await pair.primary.status();
    expect(after.primary?.link).to.deep.equal(before.primary?.link);
    expect(after.disks[0]?.primary?.bytesResynced).to.equal(before.disks[0]?.primary?.bytesResynced);
    await pair.primary.succeed("stop");
    await pair.secondary.succeed("stop");
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });

  it("is refused before the primary has written anything, too", async () => {
    const pair = await startPair(workspace);
    const { stdout, stderr } = await tryQemuIo(
      `nbd://${pair.addresses.replication}/disk0`,
      "write -P 0x99 0 64k",
    );
    expect(`${stdout}${stderr}`).to.match(/write failed/);
    await writePattern(pair.primaryUri(), 0x11, "0", "64k");
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x11, "0", "64k"]);
    expect((await pair.primary.status()).primary?.link.reconnects).to.equal(0);
  });

  it("finds the primary's name for an export in no status and no log", async () => {
    const pair = await startPair(workspace);
    await pair.secondary.withQmp((client) =>
      client.execute("nbd-server-remove", { name: "disk0", mode: "hard" }),
    );
    const { primary } = await pair.primary.waitForStatus("refused", ({ primary: part }) =>
      (part?.link.lastError ?? "").includes("no export"),
    );
    expect(primary?.link.lastError).to.equal(
      `${pair.addresses.replication}: the server refuses the export "disk0": there is no export "disk0"`,
    );
    await pair.secondary.withQmp((client) =>
      client.execute("nbd-server-add", { device: "disk0", writable: true }),
    );
    await pair.synchronised();
    for (const node of [pair.primary, pair.secondary]) {
      expect(JSON.stringify([node.log, await node.status()])).not.to.match(/disk0@/);
    }
  });
});
