import { expect } from "chai";

import { DIRTY_BLOCK_BYTES as BLOCK } from "../../../src/block/dirty-blocks.js";
import type { DirtyMap } from "../../../src/block/dirty-map.js";
import { openDirtyMap } from "../../tools/dirty-map.js";

const SIZE_BYTES = 10 * BLOCK + 100;

/** Blocks that resync would send, by number. */
function missed(map: DirtyMap): number[] {
  const blocks: number[] = [];
  let from = 0;
  for (;;) {
    const run = map.nextMissed(from, BLOCK);
    if (run === null) return blocks;
    blocks.push(run.offset / BLOCK);
    from = run.offset + run.lengthBytes;
    if (from >= map.sizeBytes) return blocks;
  }
}

describe("DirtyMap", () => {
  let map: DirtyMap;

  beforeEach(async () => {
    map = await openDirtyMap(SIZE_BYTES);
  });

  it("rounds what was missed out to blocks, and counts bytes up to the disk's end", async () => {
    map.missed(BLOCK - 1, 2);
    map.missed(5 * BLOCK, BLOCK);
    map.missed(10 * BLOCK + 99, 1);
    expect(missed(map)).to.deep.equal([0, 1, 5, 10]);
    expect(map.missedBytes).to.equal(3 * BLOCK + 100);
    await map.describe(null, false);
    expect(map.missedBytes).to.equal(SIZE_BYTES);
  });

  it("has nothing missed for a failed flush, which names no range", () => {
    map.missed(0, 0);
    expect(missed(map)).to.deep.equal([]);
  });

  it("gives runs of missed blocks, no longer than asked and not past the end", () => {
    map.missed(2 * BLOCK, 3 * BLOCK);
    map.missed(9 * BLOCK, BLOCK + 100);
    expect(map.nextMissed(0, 100 * BLOCK)).to.deep.equal({ offset: 2 * BLOCK, lengthBytes: 3 * BLOCK });
    expect(map.nextMissed(0, 2 * BLOCK + 5)).to.deep.equal({ offset: 2 * BLOCK, lengthBytes: 2 * BLOCK });
    expect(map.nextMissed(4 * BLOCK, 100 * BLOCK)).to.deep.equal({ offset: 4 * BLOCK, lengthBytes: BLOCK });
    expect(map.nextMissed(5 * BLOCK, 100 * BLOCK)).to.deep.equal({
      offset: 9 * BLOCK,
      lengthBytes: BLOCK + 100,
    });
    expect(map.nextMissed(SIZE_BYTES, BLOCK)).to.deep.equal({ offset: 10 * BLOCK, lengthBytes: 100 });
    map.resynced(9 * BLOCK, BLOCK + 100);
    expect(map.nextMissed(5 * BLOCK, BLOCK)).to.equal(null);
  });

  it("gives all of a disk that is smaller than a block as one run, however little is asked for", async () => {
    for (const sizeBytes of [1, 513, BLOCK - 1]) {
      const small = await openDirtyMap(sizeBytes);
      small.missed(0, 1);
      expect(small.missedBytes).to.equal(sizeBytes);
      expect(small.nextMissed(0, sizeBytes)).to.deep.equal({ offset: 0, lengthBytes: sizeBytes });
      expect(small.missedRuns(10)).to.deep.equal([[0, sizeBytes]]);
    }
  });

  it("does not take an acknowledged write for the whole block", () => {
    map.missed(0, 10);
    map.acknowledged(0, BLOCK);
    expect(missed(map)).to.deep.equal([0]);
  });

  it("has as missed, once the link is lost, what the replica had in memory only", async () => {
    map.acknowledged(3 * BLOCK, 1);
    await map.describe(null, false);
    map.resynced(0, SIZE_BYTES);
    expect([map.missedBytes, map.hasVolatile]).to.deep.equal([0, true]);
    map.beginFlush();
    map.endFlush(true);
    expect(map.hasVolatile).to.equal(false);
    map.acknowledged(4 * BLOCK, BLOCK);
    map.resynced(6 * BLOCK, BLOCK);
    map.linkLost();
    expect(missed(map)).to.deep.equal([4, 6]);
    expect(map.hasVolatile).to.equal(false);
  });

  it("takes a flush to cover only what was acknowledged before it began", () => {
    map.acknowledged(0, BLOCK);
    map.beginFlush();
    map.acknowledged(BLOCK, BLOCK);
    map.endFlush(true);
    map.linkLost();
    expect(missed(map)).to.deep.equal([1]);
  });

  it("has as missed what was acknowledged again while a flush ran", () => {
    map.acknowledged(0, BLOCK);
    map.beginFlush();
    map.acknowledged(0, BLOCK);
    map.endFlush(true);
    map.linkLost();
    expect(missed(map)).to.deep.equal([0]);
  });

  it("covers nothing by a flush that failed, or under which the link was lost", () => {
    map.acknowledged(0, BLOCK);
    map.beginFlush();
    map.endFlush(false);
    expect(map.hasVolatile).to.equal(true);
    map.beginFlush();
    map.acknowledged(BLOCK, BLOCK);
    map.linkLost();
    expect(missed(map)).to.deep.equal([0, 1]);
    map.endFlush(false);
    expect(map.isFlushing).to.equal(false);
    expect(missed(map)).to.deep.equal([0, 1]);
  });

  it("has as missed what is acknowledged when the link is lost already, whatever the next one flushes", () => {
    map.missed(0, 1);
    map.linkLost();
    map.resynced(0, BLOCK);
    map.acknowledged(2 * BLOCK, BLOCK);
    map.linkMade(false);
    map.beginFlush();
    map.endFlush(true);
    expect(missed(map)).to.deep.equal([0, 2]);
    map.resynced(0, BLOCK);
    expect(missed(map)).to.deep.equal([2]);
  });

  it("has as missed, once a replica that has lost nothing is linked again, only what it had not acknowledged last", () => {
    map.acknowledged(0, BLOCK);
    map.beginFlush();
    map.acknowledged(2 * BLOCK, BLOCK);
    map.acknowledged(4 * BLOCK, 6 * BLOCK + 100);
    map.missed(4 * BLOCK, 1);
    map.linkLost();
    map.endFlush(false);
    map.missed(5 * BLOCK, 1);
    map.acknowledged(6 * BLOCK, 1);
    expect(missed(map)).to.deep.equal([0, 2, 4, 5, 6, 7, 8, 9, 10]);
    map.linkMade(true);
    expect(missed(map)).to.deep.equal([4, 5, 6]);
    expect(map.hasVolatile).to.equal(true);
    // Not durable there yet: the next loss tells whether it still has it.
    map.linkLost();
    expect(missed(map)).to.deep.equal([0, 2, 4, 5, 6, 7, 8, 9, 10]);
    map.linkMade(false);
    expect(missed(map)).to.deep.equal([0, 2, 4, 5, 6, 7, 8, 9, 10]);
    map.linkLost();
    map.linkMade(true);
    expect(missed(map)).to.deep.equal([0, 2, 4, 5, 6, 7, 8, 9, 10]);
  });

  it("has nothing as missed once a replica that had lost something was sent it again, durably, whatever becomes of the link", () => {
    map.acknowledged(3 * BLOCK, 1);
    map.linkLost();
    map.linkMade(false);
    expect(missed(map)).to.deep.equal([3]);
    map.resynced(3 * BLOCK, BLOCK);
    map.beginFlush();
    map.endFlush(true);
    map.linkLost();
    expect(missed(map)).to.deep.equal([]);
  });

  it("has everything as missed by a replica that does not know it, whatever that has kept", async () => {
    map.acknowledged(0, BLOCK);
    map.linkLost();
    await map.describe(null, false);
    map.linkMade(true);
    expect(map.missedBytes).to.equal(SIZE_BYTES);
  });

  it("runs one flush at a time", () => {
    map.beginFlush();
    expect(map.isFlushing).to.equal(true);
    expect(() => {
      map.beginFlush();
    }).to.throw("one flush at a time");
  });
});
