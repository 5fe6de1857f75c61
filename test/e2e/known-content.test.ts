/** What a replica has already is not sent again: it is found by digests. */
import { expect } from "chai";
import { copyFile } from "node:fs/promises";

import { DIRTY_BLOCK_BYTES } from "../../src/block/dirty-blocks.js";
import { expectPattern, runFio, writePattern } from "../tools/clients.js";
import { expectSameContent, flipByte } from "../tools/disk-files.js";
import { Host } from "../tools/host.js";
import { MEBIBYTE } from "../tools/pair.js";
import { succeed } from "../tools/process.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 256 * MEBIBYTE;

describe("what a replica has already", () => {
  const workspace = useWorkspace();
  const a = new Host(workspace, "a", SIZE_BYTES);
  const b = new Host(workspace, "b", SIZE_BYTES);

  async function copied(): Promise<{ readonly bytes: number; readonly sentBytes: number }> {
    const [disk] = (await a.node.status()).disks;
    const { bytesResynced = Number.NaN, bytesFound = Number.NaN } = disk?.primary ?? {};
    return { bytes: bytesResynced, sentBytes: bytesResynced - bytesFound };
  }

  it("is not sent in the first copy: a disk that was carried there costs what differs", async () => {
    await succeed("truncate", ["-s", String(SIZE_BYTES), a.file]);
    await writePattern(a.file, 0x11, "0", "96M");
    await copyFile(a.file, b.file);
    for (const megabyte of [0, 50, 95]) await flipByte(b.file, megabyte * MEBIBYTE + 4711);
    await writePattern(b.file, 0x22, "200M", "1M");

    await b.startSecondary();
    await a.startPrimary(b);
    await a.synchronised();
    expect(await copied()).to.deep.equal({ bytes: 96 * MEBIBYTE, sentBytes: 3 * DIRTY_BLOCK_BYTES });
    await expectPattern(b.uri, [0x11, "0", "96M"], [0, "96M", "160M"]);
    await a.node.succeed("stop");
    await b.node.succeed("stop");
    await expectSameContent(a.file, b.file);
  });

  it("is not sent after a crash of the primary, which makes much be missed that is not", async () => {
    await succeed("truncate", ["-s", String(SIZE_BYTES), a.file]);
    await writePattern(a.file, 0x11, "0", "128M");
    await b.startSecondary();
    await a.startPrimary(b);
    await a.synchronised();
    // A few blocks in each of 32 extents of 4 MiB.
    await runFio(workspace, a.uri, { size: "128m", io_size: "1m", iodepth: 8 });
    await a.kill();

    await a.startPrimary(b);
    await a.synchronised();
    const { bytes, sentBytes } = await copied();
    expect(bytes).to.be.greaterThan(64 * MEBIBYTE);
    expect(sentBytes).to.equal(0);
    await a.node.succeed("stop");
    await b.node.succeed("stop");
    await expectSameContent(a.file, b.file);
  });
});
