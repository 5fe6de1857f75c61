import { expect } from "chai";
import { closeSync, openSync, readFileSync } from "node:fs";
import { truncate, writeFile } from "node:fs/promises";
import { constants } from "node:os";

import { WriteLane } from "../../../src/block/file/write-lane.js";
import { LANE_MAXIMUM_BYTES } from "../../../src/block/file/write-lane-ring.js";
import { Random, SEED } from "../../tools/seed.js";
import { useWorkspace } from "../../tools/workspace.js";

const SIZE_BYTES = 8 * 1024 * 1024;

describe(`WriteLane (SEED=${SEED})`, () => {
  const workspace = useWorkspace();
  let path: string;
  let fd: number;
  let lane: WriteLane;

  const open = async (flags: "r" | "r+"): Promise<void> => {
    path = workspace.path("disk.img");
    await writeFile(path, "");
    await truncate(path, SIZE_BYTES);
    fd = openSync(path, flags);
    lane = new WriteLane(fd);
    await lane.online();
  };
  const write = (from: Buffer, offset: number): Promise<number> =>
    new Promise((resolve) => {
      lane.write(from, offset, resolve);
    });

  afterEach(async () => {
    await lane.close();
    closeSync(fd);
  });

  it("writes everything, however many requests there are at a time and however they lie", async () => {
    await open("r+");
    const random = new Random(SEED);
    const expected = Buffer.alloc(SIZE_BYTES);
    for (let round = 0; round < 4; round++) {
      const writes: Promise<number>[] = [];
      // Neighbours, which the thread merges, and gaps; more than the ring has room for.
      for (let at = 0; at < SIZE_BYTES - LANE_MAXIMUM_BYTES;) {
        const from = random.bytes(1 + random.below(round === 0 ? LANE_MAXIMUM_BYTES : 9000));
        from.copy(expected, at);
        writes.push(write(from, at));
        at += from.length + (random.below(3) === 0 ? random.below(5000) : 0);
      }
      expect(new Set(await Promise.all(writes))).to.deep.equal(new Set([0]));
      expect(readFileSync(path).equals(expected)).to.equal(true);
    }
  });

  it("has copied what it was given when write() returns, unless it waits for room", async () => {
    await open("r+");
    const from = Buffer.alloc(4096, 1);
    const written = write(from, 0);
    from.fill(2);
    await written;
    expect(readFileSync(path).subarray(0, 4096).equals(Buffer.alloc(4096, 1))).to.equal(true);
  });

  it("calls requests back in the order of their arrival", async () => {
    await open("r+");
    const order: number[] = [];
    const writes = Array.from({ length: 600 }, (_, index) =>
      write(Buffer.alloc(LANE_MAXIMUM_BYTES, index), (index % 64) * LANE_MAXIMUM_BYTES).then(() =>
        order.push(index),
      ),
    );
    await Promise.all(writes);
    expect(order).to.deep.equal(writes.map((_, index) => index));
  });

  it("tells the errno of each write that fails", async () => {
    await open("r");
    const errnos = await Promise.all([0, 4096, 100_000].map((offset) => write(Buffer.alloc(4096), offset)));
    expect(errnos).to.deep.equal(errnos.map(() => constants.errno.EBADF));
  });
});
