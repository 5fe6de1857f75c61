/** What QEMU's own client sees on both sides of a pair, before and after a checkpoint. */
import { expect } from "chai";

import { expectPattern, qemuIo, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

describe("checkpoint of a pair", () => {
  const workspace = useWorkspace();

  it("is what the view shows: the primary's writes show there after it, not before", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "1M");
    await expectPattern(pair.primaryUri(), [0x11, "0", "1M"]);
    await expectPattern(pair.viewUri(), [0, "0", "1M"]);
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x11, "0", "1M"], [0, "1M", "63M"]);

    // Over old content, in parts, zeroes and trims: the view stays as it was.
    await qemuIo(
      pair.primaryUri(),
      "write -P 0x22 256k 512k",
      "write -z 0 64k",
      "write -z -u 64k 64k",
      "discard 960k 64k",
      "write -P 0x33 1535k 3k",
      "write -P 0x44 3073 511",
    );
    await expectPattern(pair.viewUri(), [0x11, "0", "1M"], [0, "1M", "63M"]);
    await pair.checkpoint();
    await expectPattern(
      pair.viewUri(),
      [0, "0", "3073"],
      [0x44, "3073", "511"],
      [0, "3584", "127488"],
      [0x11, "128k", "128k"],
      [0x22, "256k", "512k"],
      [0x11, "768k", "192k"],
      [0, "960k", "575k"],
      [0x33, "1535k", "3k"],
      [0, "1538k", "1M"],
    );
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });

  it("makes the view's own writes vanish, and only those", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "256k");
    await pair.checkpoint();
    await qemuIo(
      pair.viewUri(),
      "write -P 0xaa 64k 64k",
      "write -P 0xbb 1000 24",
      "write -z 128k 64k",
      "flush",
    );
    await writePattern(pair.primaryUri(), 0x22, "96k", "64k");
    await expectPattern(
      pair.viewUri(),
      [0x11, "0", "1000"],
      [0xbb, "1000", "24"],
      [0x11, "1024", "63k"],
      [0xaa, "64k", "64k"],
      [0, "128k", "64k"],
      [0x11, "192k", "64k"],
    );
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x11, "0", "96k"], [0x22, "96k", "64k"], [0x11, "160k", "96k"]);
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });

  it("holds for two disks at one instant", async () => {
    const pair = await startPair(workspace, { disks: ["system", "data"] });
    await writePattern(pair.primaryUri("system"), 0x51, "0", "64k");
    await writePattern(pair.primaryUri("data"), 0xd1, "0", "64k");
    await expectPattern(pair.viewUri("system"), [0, "0", "64k"]);
    await expectPattern(pair.viewUri("data"), [0, "0", "64k"]);
    await pair.checkpoint();
    await writePattern(pair.primaryUri("system"), 0x52, "0", "64k");
    await writePattern(pair.viewUri("data"), 0xdf, "32k", "32k");
    await expectPattern(pair.viewUri("system"), [0x51, "0", "64k"]);
    await expectPattern(pair.viewUri("data"), [0xd1, "0", "32k"], [0xdf, "32k", "32k"]);
    await pair.checkpoint();
    await expectPattern(pair.viewUri("system"), [0x52, "0", "64k"]);
    await expectPattern(pair.viewUri("data"), [0xd1, "0", "64k"]);
  });

  it("counts the pair's epochs on both sides, in the log of neither as an error", async () => {
    const pair = await startPair(workspace);
    const { epoch } = await pair.primary.status();
    expect(await pair.primary.succeed("checkpoint")).to.equal(`checkpoint done, epoch ${epoch + 1} begins\n`);
    expect(await pair.primary.succeed("checkpoint")).to.equal(`checkpoint done, epoch ${epoch + 2} begins\n`);
    const [primary, secondary] = [await pair.primary.status(), await pair.secondary.status()];
    for (const status of [primary, secondary]) {
      expect(status).to.deep.include({ stage: "running", epoch: epoch + 2, error: null });
      expect(status.lastCheckpoint?.epoch).to.equal(epoch + 2);
      expect(status.checkpointRefusal).to.equal(null);
    }
    const warnings = [...pair.primary.log, ...pair.secondary.log].filter(({ level }) => level > 30);
    expect(warnings).to.deep.equal([]);
  });
});
