/** Online verify of a pair in this process: exactly what was corrupted is found, whatever guests and the link do. */
import { setTimeout as sleep } from "node:timers/promises";

import { expect } from "chai";

import type { BlockDevice } from "../../src/block/device.js";
import { DIRTY_BLOCK_BYTES } from "../../src/block/dirty-blocks.js";
import { LinkError } from "../../src/errors.js";
import { RateLimit } from "../../src/replication/primary/rate-limit.js";
import { Verify } from "../../src/replication/primary/verify.js";
import type { AckMode, VerifyReport } from "../../src/status.js";
import { InProcessPair } from "../tools/in-process-pair.js";
import type { MemoryDevice } from "../tools/memory-device.js";
import { failureOf } from "../tools/outcome.js";
import { Random, SEED } from "../tools/seed.js";

const BLOCK = 4096;
const SIZE_BYTES = 8 * 1024 * 1024 + 5000;
/** Guests write behind it, corruption is before it. */
const LOADED_FROM = 4 * 1024 * 1024;
/** Slow enough for something to happen while it runs. */
const SLOW_BYTES_PER_SECOND = 16 * 1024 * 1024;

describe("verify", () => {
  let pair: InProcessPair;
  const random = new Random(SEED);

  const open = async (ackMode: AckMode): Promise<void> => {
    pair = await InProcessPair.open({ sizes: [SIZE_BYTES], ackMode });
    await pair.attach();
    for (let at = 0; at < SIZE_BYTES; at += 1024 * 1024) {
      const lengthBytes = Math.min(random.below(512 * 1024) + 1, SIZE_BYTES - at);
      await pair.guest().write(at, random.bytes(lengthBytes), 0);
    }
    await pair.synchronised();
  };

  afterEach(() => pair.dispose());

  const replicaMedium = (): MemoryDevice => {
    const [medium] = pair.secondaryMedia;
    if (medium === undefined) throw new Error("no medium");
    return medium;
  };

  /** Flips one byte in some blocks behind the secondary's back; returns the blocks, in order. */
  const corrupt = (blocks: number, from: number, to: number): number[] => {
    const chosen = new Set<number>();
    while (chosen.size < blocks) chosen.add(from / BLOCK + random.below(Math.floor((to - from) / BLOCK)));
    for (const block of chosen) {
      const at = block * BLOCK + random.below(BLOCK);
      replicaMedium().fill(
        at,
        Buffer.from([(replicaMedium().contents(at, 1)[0] ?? 0) ^ (1 + random.below(255))]),
      );
    }
    return [...chosen].sort((a, b) => a - b);
  };

  const start = (repair = false, bytesPerSecond = 0): void => {
    pair.primary.verifier.start({ disk: "disk0", repair, bytesPerSecond });
  };

  const ended = async (): Promise<VerifyReport> => {
    while (pair.primary.verifier.verifies.length > 0) await new Promise((resolve) => setImmediate(resolve));
    const [disk] = pair.primary.disks;
    const report = disk === undefined ? null : pair.primary.verifier.lastReport(disk);
    if (report === null) throw new Error("no report");
    return report;
  };

  const verify = (repair = false): Promise<VerifyReport> => {
    start(repair);
    return ended();
  };

  const blocksOf = ({ differences }: VerifyReport): number[] =>
    differences.flatMap(({ offset, lengthBytes }) =>
      Array.from({ length: Math.ceil(lengthBytes / BLOCK) }, (_, index) => offset / BLOCK + index),
    );

  /** Overlapping writes, several at a time, as long as `work` takes. */
  const underLoad = async <T>(guest: BlockDevice, work: Promise<T>): Promise<T> => {
    const state = { isDone: false };
    const load = async (): Promise<void> => {
      while (!state.isDone) {
        const offset = LOADED_FROM + random.below(SIZE_BYTES - LOADED_FROM - 70_000);
        const lengthBytes = 1 + random.below(70_000);
        if (random.below(5) === 0) await guest.zero(offset, lengthBytes, 0);
        else await guest.write(offset, Buffer.alloc(lengthBytes, random.below(256)), 0);
      }
    };
    const loads = Array.from({ length: 8 }, load);
    try {
      return await work;
    } finally {
      state.isDone = true;
      await Promise.all(loads);
    }
  };

  for (const ackMode of ["async", "memsync", "sync"] as const) {
    it(`finds exactly the blocks that were corrupted, and none that guests write, in ack mode ${ackMode}`, async () => {
      await open(ackMode);
      const corrupted = corrupt(20, 0, LOADED_FROM);
      start(false, SLOW_BYTES_PER_SECOND);
      const report = await underLoad(pair.guest(), ended());
      expect(blocksOf(report)).to.deep.equal(corrupted);
      expect(report).to.deep.include({
        outcome: "completed",
        error: null,
        comparedBytes: SIZE_BYTES,
        skippedBytes: 0,
        differingBytes: 20 * BLOCK,
        repairedBytes: 0,
        differencesAreAll: true,
      });
    });
  }

  it("sends again what differs, on demand, and finds nothing the next time", async () => {
    await open("memsync");
    const corrupted = corrupt(40, 0, SIZE_BYTES - 5000);
    const report = await underLoad(pair.guest(), verify(true));
    expect(report.repairedBytes).to.equal(report.differingBytes);
    expect(corrupted).to.include.members(blocksOf(report));
    expect(await verify()).to.deep.include({ outcome: "completed", differingBytes: 0 });
    expect(pair.primary.checkpointRefusal()).to.equal(null);
    await pair.checkpoint();
    expect(
      replicaMedium()
        .contents()
        .equals(pair.primaryMedia[0]?.contents() ?? Buffer.alloc(0)),
    ).to.equal(true);
  });

  it("names the first of many differences and counts all", async () => {
    await open("memsync");
    for (let block = 0; block < 300; block += 2)
      replicaMedium().fill(block * BLOCK, Buffer.alloc(BLOCK, 0x5a));
    const report = await verify();
    expect(report.differences).to.have.length(100);
    expect(report).to.deep.include({ differingBytes: 150 * BLOCK, differencesAreAll: false });
  });

  it("finds data where the disk has a hole, and the last bytes of a disk of odd size", async () => {
    await open("memsync");
    await pair.guest().zero(0, SIZE_BYTES, 0);
    await pair.synchronised();
    const last = SIZE_BYTES - 1;
    replicaMedium().fill(3 * BLOCK + 1, Buffer.from([1]));
    replicaMedium().fill(last, Buffer.from([1]));
    const { differences } = await verify();
    const tail = last - (last % BLOCK);
    expect(differences).to.deep.equal([
      { offset: 3 * BLOCK, lengthBytes: BLOCK },
      { offset: tail, lengthBytes: SIZE_BYTES - tail },
    ]);
  });

  it("goes on where it was when the link is lost, and compares nothing twice", async () => {
    await open("memsync");
    const corrupted = corrupt(10, 0, SIZE_BYTES - 5000);
    start(false, SLOW_BYTES_PER_SECOND);
    const [running] = pair.primary.verifier.verifies;
    while ((running?.doneBytes ?? 0) < SIZE_BYTES / 4) await new Promise((resolve) => setImmediate(resolve));
    pair.cutLink();
    const report = await ended();
    expect(blocksOf(report)).to.deep.equal(corrupted);
    expect(report).to.deep.include({ outcome: "completed", comparedBytes: SIZE_BYTES, skippedBytes: 0 });
  });

  it("goes on after an outage in which the link tried to connect more than once", async () => {
    await open("memsync");
    const corrupted = corrupt(10, 0, SIZE_BYTES - 5000);
    start(false, SLOW_BYTES_PER_SECOND);
    const { verifier } = pair.primary;
    const [running] = verifier.verifies;
    while ((running?.doneBytes ?? 0) < SIZE_BYTES / 4) await new Promise((resolve) => setImmediate(resolve));
    // "disconnected", "connecting", "disconnected", ... for as long as the verify takes to notice, and to wait for the link.
    for (let attempt = 0; attempt < 10; attempt++) {
      verifier.linkChanged("disconnected");
      await sleep(100);
    }
    verifier.linkChanged("replicating");
    const report = await ended();
    expect(blocksOf(report)).to.deep.equal(corrupted);
    expect(report).to.deep.include({ outcome: "completed", comparedBytes: SIZE_BYTES, skippedBytes: 0 });
  });

  it("counts what it passes over once, also if the piece is compared again", async () => {
    await open("memsync");
    await pair.primary.detach();
    const [disk] = pair.primary.disks;
    if (disk === undefined) throw new Error("no disk");
    disk.dirty.missed(0, 1);
    const verify = new Verify(disk, { rate: new RateLimit(0), repair: false });
    const lost = new LinkError("link-lost", "lost");
    const compare = (answer: () => Promise<readonly string[]>): Promise<void> =>
      verify.run({
        digests: {
          of: (_disk, _offset, lengthBytes, blockBytes) =>
            blockBytes === BLOCK
              ? answer()
              : Promise.resolve(Array(Math.ceil(lengthBytes / blockBytes)).fill("")),
        },
        replica: disk.local,
        isReplicating: () => true,
      });
    expect(await failureOf(compare(() => Promise.reject(lost)))).to.equal(lost);
    await compare(() => Promise.resolve([]));
    expect(verify.report(null)).to.deep.include({
      skippedBytes: DIRTY_BLOCK_BYTES,
      comparedBytes: SIZE_BYTES - DIRTY_BLOCK_BYTES,
    });
  });

  it("goes on with a secondary that was started anew", async () => {
    await open("memsync");
    const corrupted = corrupt(10, LOADED_FROM, SIZE_BYTES - 5000);
    start(false, SLOW_BYTES_PER_SECOND);
    await pair.restartSecondary();
    const report = await ended();
    expect(blocksOf(report)).to.deep.equal(corrupted);
    expect(report).to.deep.include({ outcome: "completed", comparedBytes: SIZE_BYTES, error: null });
  });

  it("is cancelled, by itself or with the link", async () => {
    await open("memsync");
    start(false, 1);
    pair.primary.verifier.verifies[0]?.cancel();
    expect(await ended()).to.deep.include({ outcome: "cancelled", error: null });
    start(false, 1);
    await pair.primary.detach();
    expect(await ended()).to.deep.include({ outcome: "cancelled", error: null });
  });

  it("fails where a side can't be read, and says why", async () => {
    await open("memsync");
    pair.primaryDisks[0]?.fail({ operation: "read" });
    const report = await verify();
    expect(report.outcome).to.equal("failed");
    expect(report.error).to.be.a("string").and.not.equal("");
  });

  it("is refused without a replica, beside another of the same disk, and for a replica that a manager drives", async () => {
    await open("memsync");
    start(false, 1);
    expect(
      (
        await failureOf(
          Promise.resolve().then(() => {
            start();
          }),
        )
      ).message,
    ).to.equal("verify refused: a verify of disk0 runs already");
    await pair.primary.detach();
    await ended();
    expect(
      (
        await failureOf(
          Promise.resolve().then(() => {
            start();
          }),
        )
      ).message,
    ).to.equal("verify refused: no replica is attached");
    await pair.primary.attach({
      address: pair.replicationAddress,
      control: null,
      uri: "driven by a manager",
    });
    expect(
      (
        await failureOf(
          Promise.resolve().then(() => {
            start();
          }),
        )
      ).message,
    ).to.match(/^verify refused: a replica that a manager drives can't be asked for digests/);
  });
});
