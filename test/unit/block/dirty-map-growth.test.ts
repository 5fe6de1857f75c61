/** What a dirty map knows when its disk is larger than it was (meta/dirty-map-growth.ts). */
import { expect } from "chai";

import { DIRTY_BLOCK_BYTES as BLOCK } from "../../../src/block/dirty-blocks.js";
import { type DirtyMap, dirtyMapName } from "../../../src/block/dirty-map.js";
import { EXTENT_BYTES as EXTENT } from "../../../src/block/hot-extents.js";
import { MetadataError } from "../../../src/errors.js";
import { openDirtyMap } from "../../tools/dirty-map.js";
import { MemoryStateDirectory, StorageFault } from "../../tools/memory-state-directory.js";
import { failureOf } from "../../tools/outcome.js";

const SIZE_BYTES = 16 * EXTENT - 1234;
/** Its blocks need another sector. */
const LARGER_BYTES = 5000 * BLOCK + 99;
const FILE = dirtyMapName(0);
const TENURE = "6f9d2b43-60c2-4f2e-9a53-0f8f6b1f0c11";

const OLD_BLOCKS = Math.floor(SIZE_BYTES / BLOCK);
const NEW: [number, number] = [OLD_BLOCKS * BLOCK, LARGER_BYTES - OLD_BLOCKS * BLOCK];

describe("the dirty map of a disk that has been made larger", () => {
  let directory: MemoryStateDirectory;
  let map: DirtyMap;

  beforeEach(async () => {
    directory = new MemoryStateDirectory();
    map = await openDirtyMap(SIZE_BYTES, directory);
  });

  /** A change that the replica acknowledged and still has in memory only. */
  async function change(offset: number, lengthBytes: number): Promise<void> {
    await map.prepare(offset, lengthBytes);
    map.acknowledged(offset, lengthBytes);
    map.done(offset, lengthBytes);
  }

  const grow = async (): Promise<DirtyMap> => (map = await openDirtyMap(LARGER_BYTES, directory));

  it("tells what it told, and that all that is new is missed, with the block that the disk ended in", async () => {
    await map.describe(TENURE, true);
    map.missed(3 * BLOCK, 1);
    map.missed(7 * EXTENT, EXTENT);
    await map.close();
    for (const opened of [await grow(), await reopened()]) {
      expect(opened.tenure).to.equal(TENURE);
      expect(opened.missedRuns(10)).to.deep.equal([[3 * BLOCK, BLOCK], [7 * EXTENT, EXTENT], NEW]);
      expect(opened.missedBytes).to.equal(BLOCK + EXTENT + NEW[1]);
    }

    async function reopened(): Promise<DirtyMap> {
      await map.close();
      return grow();
    }
  });

  it("has after a crash whole extents that were written to, the last one with what is new of it", async () => {
    await change(2 * EXTENT + 5, 1);
    await change(15 * EXTENT, 1);
    directory.crash();
    await grow();
    expect(map.missedRuns(10)).to.deep.equal([
      [2 * EXTENT, EXTENT],
      [15 * EXTENT, LARGER_BYTES - 15 * EXTENT],
    ]);
  });

  it("works as any other: a block that the replica has durably is missed no more", async () => {
    await map.describe(TENURE, true);
    await map.close();
    await grow();
    map.resynced(...NEW);
    map.beginFlush();
    map.endFlush(true);
    await change(4500 * BLOCK, 1);
    await map.close();
    await grow();
    expect(map.missedRuns(10)).to.deep.equal([[4500 * BLOCK, BLOCK]]);
  });

  it("is as it was, or as it is to be, wherever its making is cut off", async () => {
    await map.describe(TENURE, true);
    map.missed(3 * BLOCK, 1);
    await map.close();
    const before = directory.contents(FILE);
    const changing = (): number => directory.log.filter(({ kind }) => kind !== "read").length;
    const first = changing();
    await grow();
    const calls = changing() - first;
    await map.close();
    for (let failing = 0; failing < calls; failing++) {
      for (const isDone of [false, true]) {
        directory = new MemoryStateDirectory();
        directory.put(FILE, before);
        let call = 0;
        directory.intercept = ({ kind }) =>
          kind !== "read" && call++ === failing
            ? Promise.reject(new StorageFault("EIO", "power failed"))
            : undefined;
        directory.isDone = () => isDone;
        await grow().catch(() => null);
        directory.intercept = () => undefined;
        directory.crash();
        await grow();
        expect([map.tenure, map.missedRuns(10)], `call ${failing}`).to.deep.equal([
          TENURE,
          [[3 * BLOCK, BLOCK], NEW],
        ]);
        await map.close();
      }
    }
    expect(calls).to.be.greaterThan(10);
  });

  it("is refused if it is damaged, and left as it is", async () => {
    await map.close();
    const damaged = directory.contents(FILE);
    damaged[4096 + 3] = 1;
    directory.put(FILE, damaged);
    expect(await failureOf(grow()))
      .to.be.instanceOf(MetadataError)
      .with.property("code", "damaged");
    expect(directory.contents(FILE).equals(damaged)).to.equal(true);
    expect(await directory.list()).to.deep.equal([FILE]);
  });
});
