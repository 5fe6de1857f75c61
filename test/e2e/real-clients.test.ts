/** libnbd's and QEMU's tools against a guest's disk and against its view. */
import { expect } from "chai";
import { readFile, writeFile } from "node:fs/promises";

import { expectPattern, qemuImgMap, qemuIo, tryQemuIo, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { MEBIBYTE, type Pair, startPair } from "../tools/pair.js";
import { run, succeed } from "../tools/process.js";
import { Random, SEED } from "../tools/seed.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 32 * MEBIBYTE;

describe("tools of others on a pair", () => {
  const workspace = useWorkspace();

  const start = (): Promise<Pair> => startPair(workspace, { sizeBytes: SIZE_BYTES });

  it("nbdinfo describes the guest's disk and the view alike", async () => {
    const pair = await start();
    for (const [uri, description, ...more] of [
      [pair.primaryUri(), "disk disk0", "qemu:dirty-bitmap:replica"],
      [pair.viewUri(), "view of disk disk0"],
    ] as const) {
      const { exports } = JSON.parse(await succeed("nbdinfo", ["--json", uri])) as { exports: object[] };
      expect(exports).to.have.length(1);
      expect(exports[0]).to.deep.include({
        "export-name": "disk0",
        description,
        "export-size": SIZE_BYTES,
        is_read_only: false,
        contexts: ["base:allocation", ...more],
        can_flush: true,
        can_fua: true,
        can_trim: true,
        can_zero: true,
        can_multi_conn: true,
      });
    }
  });

  it("qemu-img map and nbdinfo --map show the same holes on both, after a checkpoint", async () => {
    const pair = await start();
    await qemuIo(pair.primaryUri(), "write -P 1 1M 1M", "write -P 2 8M 2M", "discard 9M 512k");
    await pair.checkpoint();
    const expected = [
      [0, MEBIBYTE, true],
      [MEBIBYTE, MEBIBYTE, false],
      [2 * MEBIBYTE, 6 * MEBIBYTE, true],
      [8 * MEBIBYTE, MEBIBYTE, false],
      [9 * MEBIBYTE, MEBIBYTE / 2, true],
      [9.5 * MEBIBYTE, MEBIBYTE / 2, false],
      [10 * MEBIBYTE, 22 * MEBIBYTE, true],
    ];
    for (const uri of [pair.primaryUri(), pair.viewUri()]) {
      const map = await qemuImgMap(uri);
      expect(map.map(({ start, length, zero }) => [start, length, zero])).to.deep.equal(expected);
      const nbdMap = JSON.parse(await succeed("nbdinfo", ["--map", "--json", uri])) as {
        offset: number;
        length: number;
        type: number;
      }[];
      // Types of base:allocation: 0 is data, 3 a hole that reads as zeroes.
      expect(nbdMap.map(({ offset, length, type }) => [offset, length, type === 3])).to.deep.equal(expected);
    }
  });

  it("nbdcopy writes a disk through the primary, and reads it back from the view", async () => {
    const pair = await start();
    const random = new Random(SEED);
    const source = workspace.path("source.img");
    const content = Buffer.alloc(SIZE_BYTES);
    for (let at = 0; at < SIZE_BYTES; at += 64 * 1024) random.bytes(4096).copy(content, at);
    await writeFile(source, content);
    await succeed("nbdcopy", [source, pair.primaryUri()]);
    await pair.checkpoint();
    await writePattern(pair.primaryUri(), 0xee, "0", "4M");
    const copy = workspace.path("copy.img");
    await succeed("nbdcopy", [pair.viewUri(), copy]);
    await expectSameContent(source, copy);
    expect((await readFile(copy)).equals(content)).to.equal(true);
  });

  it("qemu-img converts to the primary and from the view, and compares them", async () => {
    const pair = await start();
    const source = workspace.path("source.qcow2");
    await succeed("qemu-img", ["create", "-f", "qcow2", source, String(SIZE_BYTES)]);
    await succeed("qemu-io", ["-c", "write -P 0x5a 3M 5M", "-c", "write -z 5M 1M", source]);
    await succeed("qemu-img", ["convert", "-n", "-f", "qcow2", "-O", "raw", source, pair.primaryUri()]);
    const compare = (): ReturnType<typeof run> =>
      run("qemu-img", ["compare", "-f", "raw", "-F", "raw", pair.primaryUri(), pair.viewUri()]);
    const before = await compare();
    expect([before.code, before.stdout]).to.deep.equal([1, "Content mismatch at offset 3145728!\n"]);
    await pair.checkpoint();
    const after = await compare();
    expect([after.code, after.stdout]).to.deep.equal([0, "Images are identical.\n"]);
    const back = workspace.path("back.qcow2");
    await succeed("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", pair.viewUri(), back]);
    expect(await succeed("qemu-img", ["compare", source, back])).to.equal("Images are identical.\n");
  });

  it("are told of an export that isn't there, and nobody else is disturbed", async () => {
    const pair = await start();
    for (const uri of [pair.primaryUri("disk1"), pair.viewUri("disk1")]) {
      const { code, stderr } = await run("nbdinfo", [uri]);
      expect(code).to.equal(1);
      expect(stderr).to.include("disk1");
    }
    const qemu = await tryQemuIo(pair.primaryUri("disk1"), "read 0 4k");
    expect(qemu.code).to.equal(1);
    expect(qemu.stderr).to.include("disk1");
    await writePattern(pair.primaryUri(), 0x11, "0", "64k");
    await pair.checkpoint();
    await expectPattern(pair.viewUri(), [0x11, "0", "64k"]);
  });
});
