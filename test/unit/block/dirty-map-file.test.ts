/** What a dirty map knows after a restart, a crash and a power loss. */
import { expect } from "chai";

import { DIRTY_BLOCK_BYTES as BLOCK } from "../../../src/block/dirty-blocks.js";
import { type DirtyMap, dirtyMapName } from "../../../src/block/dirty-map.js";
import { EXTENT_BYTES as EXTENT, MAX_HOT_EXTENTS } from "../../../src/block/hot-extents.js";
import { MetadataError } from "../../../src/errors.js";
import { DirtyMapFile } from "../../../src/meta/dirty-map-file.js";
import { HEADER_POSITIONS, SECTOR_BYTES } from "../../../src/meta/dirty-map-format.js";
import { openDirtyMap } from "../../tools/dirty-map.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";
import { failureOf, isSettled, turns } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";

const SIZE_BYTES = 16 * EXTENT - 1234;
const GEOMETRY = { sizeBytes: SIZE_BYTES, blockBytes: BLOCK, extentBytes: EXTENT };
const FILE = dirtyMapName(0);
const TENURE = "6f9d2b43-60c2-4f2e-9a53-0f8f6b1f0c11";

describe("a dirty map's file", () => {
  let directory: MemoryStateDirectory;
  let map: DirtyMap;

  beforeEach(async () => {
    directory = new MemoryStateDirectory();
    map = await openDirtyMap(SIZE_BYTES, directory);
  });

  async function reopen(): Promise<DirtyMap> {
    map = await openDirtyMap(SIZE_BYTES, directory);
    return map;
  }

  /** A change that the replica acknowledged and still has in memory only. */
  async function change(offset: number, lengthBytes: number): Promise<void> {
    await map.prepare(offset, lengthBytes);
    map.acknowledged(offset, lengthBytes);
    map.done(offset, lengthBytes);
  }

  it("tells of no replica at first", () => {
    expect([map.tenure, map.missedBytes]).to.deep.equal([null, 0]);
  });

  it("has after a clean stop exactly what was missed or volatile", async () => {
    await map.describe(TENURE, true);
    map.missed(3 * BLOCK, 1);
    await change(EXTENT, BLOCK + 1);
    await map.close();
    await reopen();
    expect(map.tenure).to.equal(TENURE);
    expect(map.missedRuns(10)).to.deep.equal([
      [3 * BLOCK, BLOCK],
      [EXTENT, 2 * BLOCK],
    ]);
  });

  it("has after a crash whole extents that were written to, and nothing else", async () => {
    await change(2 * EXTENT + 5, 1);
    await change(SIZE_BYTES - 1, 1);
    directory.crash();
    await reopen();
    expect(map.missedRuns(10)).to.deep.equal([
      [2 * EXTENT, EXTENT],
      [15 * EXTENT, EXTENT - 1234],
    ]);
  });

  it("lets a change begin only when its extent is hot on stable storage, and the next one to it at once", async () => {
    let release: () => void = () => undefined;
    directory.intercept = ({ kind }) =>
      kind === "sync" ? new Promise((resolve) => (release = resolve)) : undefined;
    const ready = map.prepare(0, 1);
    if (ready === null) throw new Error("the first change of an extent begins at once");
    await turns();
    expect(await isSettled(ready)).to.equal(false);
    release();
    await ready;
    expect(map.prepare(EXTENT - 1, 1)).to.equal(null);
    expect(directory.count("sync", FILE) > 0).to.equal(true);
  });

  it("makes many extents hot with few syncs when many changes come at once", async () => {
    const before = directory.count("sync", FILE);
    await Promise.all(Array.from({ length: 16 }, async (_, extent) => map.prepare(extent * EXTENT, 1)));
    expect(directory.count("sync", FILE) - before).to.be.at.most(2);
  });

  it("everything is missed before another replica's tenure is in the file, whenever the power fails", async () => {
    const other = "0a6a4f0e-4b8c-4d63-9d38-0d5d7b4d6c11";
    const seen = new Set<string>();
    for (let calls = 0; calls < 8; calls++) {
      directory = new MemoryStateDirectory();
      await reopen();
      await map.describe(TENURE, true);
      let left = calls;
      directory.intercept = () => (left-- > 0 ? undefined : new Promise(() => undefined));
      void map.describe(other, false);
      await turns();
      directory.intercept = () => undefined;
      directory.crash(() => calls % 2 === 0);
      await reopen();
      const { tenure, missedBytes } = map;
      if (tenure === other) expect(missedBytes).to.equal(SIZE_BYTES);
      seen.add(`${String(tenure)} ${missedBytes}`);
    }
    expect([...seen]).to.include.members([
      `${TENURE} 0`,
      `${TENURE} ${SIZE_BYTES}`,
      `${other} ${SIZE_BYTES}`,
    ]);
  });

  it("goes on where an interrupted copy was", async () => {
    await map.describe(TENURE, false);
    map.resynced(0, 8 * EXTENT);
    // Nothing of it counts before the replica has it durably.
    for (let flushes = 0; flushes < 4; flushes++) {
      map.beginFlush();
      map.endFlush(true);
    }
    await turns();
    directory.crash();
    await reopen();
    expect(map.missedRuns(10)).to.deep.equal([[8 * EXTENT, SIZE_BYTES - 8 * EXTENT]]);
  });

  it("forgets the end of a copy, too, that came while the replica was flushed: the next flush covers it", async () => {
    await map.describe(TENURE, false);
    map.resynced(0, 8 * EXTENT);
    await change(0, BLOCK);
    map.beginFlush();
    map.resynced(8 * EXTENT, SIZE_BYTES - 8 * EXTENT);
    map.endFlush(true);
    await turns();
    map.beginFlush();
    map.endFlush(true);
    await turns();
    directory.crash();
    await reopen();
    expect(map.missedRuns(10), "the extent that a guest writes to").to.deep.equal([[0, EXTENT]]);
  });

  it("forgets nothing of a copy that a flush of the replica is about to make durable, whatever it is written for", async () => {
    await map.describe(TENURE, false);
    map.resynced(0, SIZE_BYTES);
    map.beginFlush();
    await map.markMissed(0, 1);
    directory.crash();
    await reopen();
    expect(map.missedBytes).to.equal(SIZE_BYTES);
  });

  it("is soon done with the copy of a disk of 1 TiB, of which the end is volatile", async () => {
    const terabyte = 1024 ** 4;
    directory = new MemoryStateDirectory();
    map = await openDirtyMap(terabyte, directory);
    await map.describe(TENURE, false);
    for (let flushes = 0; flushes < 8; flushes++) {
      map.resynced(0, terabyte);
      map.beginFlush();
      map.resynced(terabyte - EXTENT, EXTENT);
      map.endFlush(true);
      await turns();
    }
    directory.crash();
    map = await openDirtyMap(terabyte, directory);
    expect(map.missedRuns(10)).to.deep.equal([[terabyte - EXTENT, EXTENT]]);
  });

  it("writes no progress with each flush when a copy is over, whatever guests change meanwhile", async () => {
    await map.describe(TENURE, false);
    map.resynced(0, SIZE_BYTES);
    const writes: number[] = [];
    for (let flushes = 0; flushes < 3; flushes++) {
      map.beginFlush();
      await change(0, BLOCK);
      map.endFlush(true);
      await turns();
      writes.push(directory.count("write", FILE));
    }
    expect(new Set(writes).size, "once").to.equal(1);
  });

  it("forgets nothing before the primary disk is durable too: a power loss might take back what the replica has", async () => {
    directory = new MemoryStateDirectory();
    map = await openDirtyMap(SIZE_BYTES, directory, undefined, () => new Promise(() => undefined));
    await map.describe(TENURE, false);
    map.resynced(0, SIZE_BYTES);
    map.beginFlush();
    map.endFlush(true);
    await turns();
    directory.crash(() => true);
    await reopen();
    expect(map.missedBytes).to.equal(SIZE_BYTES);
  });

  it("has in the file what a peer told, when that is said", async () => {
    await map.markMissed(5 * BLOCK, 2 * BLOCK);
    directory.crash();
    await reopen();
    expect(map.missedRuns(10)).to.deep.equal([[5 * BLOCK, 2 * BLOCK]]);
  });

  it("tells runs as coarsely as asked, and never less than is missed", () => {
    for (let block = 0; block < 64; block += 2) map.missed(block * BLOCK, 1);
    expect(map.missedRuns(32).length).to.equal(32);
    expect(map.missedRuns(31)).to.deep.equal([[0, 63 * BLOCK]]);
  });

  it("keeps the number of hot extents bounded, and what was missed in those that cooled down", async () => {
    const sizeBytes = 4 * MAX_HOT_EXTENTS * EXTENT;
    directory = new MemoryStateDirectory();
    map = await openDirtyMap(sizeBytes, directory);
    for (let extent = 0; extent < 4 * MAX_HOT_EXTENTS; extent++) {
      await map.prepare(extent * EXTENT, 1);
      if (extent < 3) map.missed(extent * EXTENT, 1);
      map.done(extent * EXTENT, 1);
    }
    directory.crash();
    map = await openDirtyMap(sizeBytes, directory);
    const extents = map.missedBytes / EXTENT;
    expect(extents)
      .to.be.at.least(MAX_HOT_EXTENTS / 2)
      .and.at.most(MAX_HOT_EXTENTS + 70);
    expect(map.missedRuns(10).slice(0, 3)).to.deep.equal([
      [0, BLOCK],
      [EXTENT, BLOCK],
      [2 * EXTENT, BLOCK],
    ]);
  });

  it("never cools an extent that is being written to, or that the replica has in memory only", async () => {
    const sizeBytes = 3 * MAX_HOT_EXTENTS * EXTENT;
    directory = new MemoryStateDirectory();
    map = await openDirtyMap(sizeBytes, directory);
    await map.prepare(0, 1);
    await change(EXTENT, 1);
    for (let extent = 2; extent < 3 * MAX_HOT_EXTENTS; extent++) {
      await map.prepare(extent * EXTENT, 1);
      map.done(extent * EXTENT, 1);
    }
    directory.crash();
    map = await openDirtyMap(sizeBytes, directory);
    expect(map.missedRuns(1e6)[0]?.[1]).to.be.at.least(2 * EXTENT);
  });

  describe("while the disk is flushed so that extents can cool down", () => {
    const flushes: (() => void)[] = [];

    beforeEach(async () => {
      directory = new MemoryStateDirectory();
      flushes.length = 0;
      const flushDisk = (): Promise<void> => new Promise((resolve) => flushes.push(resolve));
      map = await openDirtyMap(4 * MAX_HOT_EXTENTS * EXTENT, directory, undefined, flushDisk);
    });

    /** Changes to the first byte of each, over before the next begins, and durable on the replica. */
    const touch = async (first: number, end: number): Promise<void> => {
      for (let extent = first; extent < end; extent++) {
        await map.prepare(extent * EXTENT, 1);
        map.done(extent * EXTENT, 1);
      }
    };

    const hotAfterCrash = async (): Promise<Set<number>> => {
      directory.crash();
      map = await openDirtyMap(4 * MAX_HOT_EXTENTS * EXTENT, directory);
      return new Set(
        map
          .missedRuns(4 * MAX_HOT_EXTENTS)
          .flatMap(([offset, lengthBytes]) =>
            Array.from({ length: lengthBytes / EXTENT }, (_, index) => offset / EXTENT + index),
          ),
      );
    };

    it("changes to others do not wait for it, and none is forgotten before it is over", async () => {
      await touch(0, MAX_HOT_EXTENTS + 500);
      expect(flushes.length).to.equal(1);
      const hot = await hotAfterCrash();
      for (let extent = 0; extent < MAX_HOT_EXTENTS + 500; extent++) expect(hot.has(extent)).to.equal(true);
    });

    it("changes to others wait when far too many are hot", async () => {
      await touch(0, 2 * MAX_HOT_EXTENTS);
      const late = touch(2 * MAX_HOT_EXTENTS, 2 * MAX_HOT_EXTENTS + 1);
      await turns();
      expect(await isSettled(late)).to.equal(false);
      flushes[0]?.();
      await late;
    });

    it("one that is written to meanwhile stays hot", async () => {
      await touch(0, MAX_HOT_EXTENTS + 1);
      await touch(0, 1);
      flushes[0]?.();
      await turns();
      // That the others are cold is written with the next change.
      await touch(MAX_HOT_EXTENTS + 1, MAX_HOT_EXTENTS + 2);
      const hot = await hotAfterCrash();
      expect([hot.has(0), hot.has(MAX_HOT_EXTENTS + 1)]).to.deep.equal([true, true]);
      expect(hot.size).to.be.lessThan(MAX_HOT_EXTENTS);
    });
  });

  it("lets extents cool down without a replica, too, also after a change to more of them at once than should be hot", async () => {
    const sizeBytes = 4 * MAX_HOT_EXTENTS * EXTENT;
    directory = new MemoryStateDirectory();
    map = await openDirtyMap(sizeBytes, directory);
    map.linkLost();
    await map.prepare(0, 2 * MAX_HOT_EXTENTS * EXTENT);
    map.done(0, 2 * MAX_HOT_EXTENTS * EXTENT);
    for (let extent = 2 * MAX_HOT_EXTENTS; extent < 2 * MAX_HOT_EXTENTS + 3; extent++) {
      await map.prepare(extent * EXTENT, 1);
      map.done(extent * EXTENT, 1);
      await turns();
    }
    directory.crash();
    map = await openDirtyMap(sizeBytes, directory);
    expect(map.missedBytes / EXTENT).to.be.at.most(MAX_HOT_EXTENTS);
  });

  it("is crowded while far more extents are hot than should be, until a flush of the replica lets them cool", async () => {
    directory = new MemoryStateDirectory();
    map = await openDirtyMap(3 * MAX_HOT_EXTENTS * EXTENT, directory);
    const crowded: number[] = [];
    for (let extent = 0; extent < 3 * MAX_HOT_EXTENTS - 1; extent++) {
      await change(extent * EXTENT, 1);
      if (map.isCrowded) crowded.push(extent + 1);
    }
    expect(crowded[0]).to.equal(2 * MAX_HOT_EXTENTS + 1);
    map.beginFlush();
    map.endFlush(true);
    await change((3 * MAX_HOT_EXTENTS - 1) * EXTENT, 1);
    expect(map.isCrowded).to.equal(false);
  });

  it("a file that can't be written is removed, and the guest goes on", async () => {
    const broken: boolean[] = [];
    directory = new MemoryStateDirectory();
    map = await openDirtyMap(SIZE_BYTES, directory, (_error, isRemoved) => broken.push(isRemoved));
    await map.describe(TENURE, true);
    directory.intercept = ({ kind }) => (kind === "sync" ? Promise.reject(new Error("EIO")) : undefined);
    await map.prepare(0, 1);
    await map.prepare(EXTENT, 1);
    expect(broken).to.deep.equal([true]);
    expect(map.tenure, "in this life it still knows").to.equal(TENURE);
    directory.intercept = () => undefined;
    await reopen();
    expect(map.tenure).to.equal(null);
  });

  it("a file that can neither be written nor removed shows no tenure any more", async () => {
    const broken: boolean[] = [];
    directory = new MemoryStateDirectory();
    map = await openDirtyMap(SIZE_BYTES, directory, (_error, isRemoved) => broken.push(isRemoved));
    await map.describe(TENURE, true);
    directory.intercept = ({ kind }) => (kind === "sync" ? Promise.reject(new Error("EIO")) : undefined);
    directory.remove = () => Promise.reject(new Error("EROFS"));
    await map.prepare(0, 1);
    expect([broken, map.tenure]).to.deep.equal([[false], null]);
  });

  it("a file that can't be written is removed later where it could not be at once, with the next flush or at the end", async () => {
    for (const ending of ["flush", "end"] as const) {
      directory = new MemoryStateDirectory();
      map = await openDirtyMap(SIZE_BYTES, directory, () => undefined);
      await map.describe(TENURE, true);
      directory.intercept = ({ kind }) =>
        kind === "sync" || kind === "remove" ? Promise.reject(new Error("EIO")) : undefined;
      await map.prepare(0, 1);
      directory.intercept = () => undefined;
      expect(await directory.list()).to.deep.equal([FILE]);
      if (ending === "end") await map.close();
      else {
        map.beginFlush();
        map.endFlush(true);
        await turns();
        expect(map.tenure, "trusted in this life").to.equal(TENURE);
      }
      expect(await directory.list(), ending).to.deep.equal([]);
    }
  });

  it("takes a file whose making was cut off for none, wherever that was", async () => {
    const whole = directory.contents(FILE);
    whole.fill(0, 0, 4096);
    for (const lengthBytes of [0, 1, 511, 4096, 5000, whole.length]) {
      directory.put(FILE, whole.subarray(0, lengthBytes));
      expect((await reopen()).tenure).to.equal(null);
    }
  });

  it("refuses a file that was cut off later, flipped anywhere, foreign or newer, and says what to do", async () => {
    await map.describe(TENURE, true);
    await map.close();
    const whole = directory.contents(FILE);
    const refuses = async (bytes: Buffer, message: RegExp): Promise<void> => {
      directory.put(FILE, bytes);
      const error = await failureOf(openDirtyMap(SIZE_BYTES, directory));
      expect(error).to.be.instanceOf(MetadataError);
      expect(error.message).to.match(message);
      expect(directory.contents(FILE).equals(bytes), "it is left as it was").to.equal(true);
    };
    const damaged =
      /^\/state\/dirty-0\.map is damaged: .*: restore it, or remove it, which costs a full copy$/;
    for (const lengthBytes of [1000, 4096, 4500, whole.length - 1]) {
      await refuses(whole.subarray(0, lengthBytes), damaged);
    }
    for (let at = 4096; at < whole.length; at += 509) {
      const flipped = Buffer.from(whole);
      flipped.writeUInt8(flipped.readUInt8(at) ^ 0x10, at);
      await refuses(flipped, /the sector at \d+ fails its checksum/);
    }
    const headless = Buffer.from(whole);
    headless.fill(0x41, 0, 4096);
    await refuses(headless, /neither of its headers is whole/);
  });

  it("has the tenure before, if the header of the last one is torn", async () => {
    const later = "0b1f5a7e-3c52-4c0f-8d0a-5f6f1f1f7a02";
    for (const tenure of [TENURE, later]) await map.describe(tenure, true);
    await map.close();
    const whole = directory.contents(FILE);
    const found: (string | null)[] = [];
    for (const position of HEADER_POSITIONS) {
      const torn = Buffer.from(whole);
      torn.fill(0x41, position + 40, position + SECTOR_BYTES);
      directory.put(FILE, torn);
      found.push((await reopen()).tenure);
      await map.close();
    }
    expect(found).to.have.members([TENURE, later]);
  });

  it("is whole and durable before its first header is written", async () => {
    const made = new MemoryStateDirectory();
    await openDirtyMap(SIZE_BYTES, made);
    const changes = made.log.filter(({ name }) => name === FILE).map(({ kind }) => kind);
    expect(changes).to.deep.equal(["create", "write", "write", "sync", "write", "sync"]);
  });

  it("is not left open when it can't be used", async () => {
    await map.describe(TENURE, true);
    await map.close();
    const whole = directory.contents(FILE);
    for (const bytes of [
      Buffer.alloc(0),
      Buffer.alloc(whole.length),
      whole.subarray(0, -1),
      Buffer.alloc(9000, 1),
    ]) {
      directory.put(FILE, bytes);
      const counts = (): number => directory.count("open", FILE) - directory.count("close", FILE);
      const before = counts();
      await DirtyMapFile.open(directory, FILE, GEOMETRY, () => undefined).catch(() => undefined);
      await DirtyMapFile.diskSizeBytes(directory, FILE).catch(() => undefined);
      expect(counts()).to.equal(before);
    }
  });

  it("refuses the map of a larger disk", async () => {
    const error = await failureOf(openDirtyMap(SIZE_BYTES - EXTENT, directory));
    expect(error.message).to.match(/of a disk of \d+ bytes, not \d+/);
  });

  it("after any power loss every block is missed that the replica may lack", async () => {
    for (let round = 0; round < 60; round++) await losePower(new Random(SEED + round), SEED + round);
  });
});

/** How far a block has come on either side. */
interface Block {
  issued: number;
  acknowledged: number;
  durable: number;
  isMissed: boolean;
}

/** Random changes, acknowledged or not, flushes and resyncs of the replica, then a power loss at any call. */
async function losePower(random: Random, seed: number): Promise<void> {
  // More extents than may be hot, or a handful that are used again and again.
  const extents = random.oneOf([4, 40, 2 * MAX_HOT_EXTENTS]);
  const sizeBytes = extents * EXTENT;
  const directory = new MemoryStateDirectory();
  const power = { callsLeft: random.below(400), isOff: false };
  directory.intercept = ({ kind }) => {
    if ((kind === "write" || kind === "sync") && power.callsLeft-- <= 0) power.isOff = true;
    return power.isOff ? new Promise(() => undefined) : undefined;
  };
  const opening = openDirtyMap(sizeBytes, directory);
  await turns();
  if (!(await isSettled(opening))) return;
  const map = await opening;
  const blocks = new Map<number, Block>();
  const blockAt = (number: number): Block => {
    const block = blocks.get(number) ?? { issued: 0, acknowledged: 0, durable: 0, isMissed: false };
    blocks.set(number, block);
    return block;
  };

  for (let step = 0; step < 300; step++) {
    const number = random.below(extents) * (EXTENT / BLOCK) + random.below(4);
    const kind = random.below(10);
    if (kind < 6) {
      const ready = map.prepare(number * BLOCK, BLOCK);
      if (ready !== null) {
        await turns();
        // The power failed before the change was issued: nobody lacks it.
        if (power.isOff) break;
        await ready;
      }
      const block = blockAt(number);
      block.issued++;
      if (kind < 5) {
        map.acknowledged(number * BLOCK, BLOCK);
        block.acknowledged = block.issued;
      } else {
        map.missed(number * BLOCK, BLOCK);
        block.isMissed = true;
      }
      map.done(number * BLOCK, BLOCK);
    } else if (kind === 6) {
      map.resynced(number * BLOCK, BLOCK);
      const block = blockAt(number);
      block.acknowledged = block.issued;
      block.isMissed = false;
    } else if (kind < 9 && !map.isFlushing) {
      map.beginFlush();
      for (const block of blocks.values()) block.durable = block.acknowledged;
      map.endFlush(true);
      await turns();
    } else {
      map.linkLost();
      for (const block of blocks.values()) if (block.durable < block.acknowledged) block.isMissed = true;
    }
    if (power.isOff) break;
  }

  directory.intercept = () => undefined;
  directory.crash(() => random.below(2) === 0);
  const reopened = await openDirtyMap(sizeBytes, directory);
  for (const [number, { issued, durable, isMissed }] of blocks) {
    if (!isMissed && durable === issued) continue;
    const run = reopened.nextMissed(number * BLOCK, BLOCK);
    if (run?.offset !== number * BLOCK) throw new Error(`seed ${seed}: block ${number} is forgotten`);
  }
}
