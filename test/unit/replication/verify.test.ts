/** What of a disk a verify compares, over links that are lost and sides that fail. */
import { expect } from "chai";

import { DIRTY_BLOCK_BYTES as BLOCK } from "../../../src/block/dirty-blocks.js";
import type { DirtyMap } from "../../../src/block/dirty-map.js";
import { digestsOf } from "../../../src/replication/digest.js";
import { RateLimit } from "../../../src/replication/primary/rate-limit.js";
import { type ReplicaAccess, Verify } from "../../../src/replication/primary/verify.js";
import { Deferred } from "../../../src/deferred.js";
import { LinkError } from "../../../src/errors.js";
import type { DifferingExtent } from "../../../src/status.js";
import { openDirtyMap } from "../../tools/dirty-map.js";
import type { MemoryDeviceOptions } from "../../tools/memory-device.js";
import { MirroredDisk } from "../../tools/mirrored-disk.js";
import { failureOf, turns } from "../../tools/outcome.js";

const PIECE = 4 * BLOCK;
const PIECES_IN_FLIGHT = 8;
/** What differences are told in. */
const SECTOR = 4096;
const SIZE_BYTES = 32 * PIECE - 1000;

/** A disk and its replica, which hold the same. */
class Subject extends MirroredDisk {
  readonly verify: Verify;
  isReplicating = true;
  /** Where the replica was asked. */
  readonly asked: number[] = [];
  /** How often each block was compared. */
  readonly comparisons: number[] = Array<number>(Math.ceil(SIZE_BYTES / BLOCK)).fill(0);
  /** Resolves when the replica may answer about a piece. */
  answer: (offset: number) => Promise<void> = () => Promise.resolve();

  private constructor(dirty: DirtyMap, repair: boolean, options: MemoryDeviceOptions) {
    super(dirty, options);
    this.verify = new Verify(this.disk, { rate: new RateLimit(0), repair });
  }

  /** @param content of every byte; 0: both are holes */
  static async open(content = 0x11, repair = false, options: MemoryDeviceOptions = {}): Promise<Subject> {
    const dirty = await openDirtyMap(SIZE_BYTES);
    const subject = new Subject(dirty, repair, options);
    if (content === 0) return subject;
    for (const memory of [subject.localMemory, subject.replicaMemory])
      memory.fill(0, Buffer.alloc(SIZE_BYTES, content));
    return subject;
  }

  /** Replica's content that is not the disk's. */
  corrupt(offset: number, lengthBytes: number): void {
    this.replicaMemory.fill(offset, Buffer.alloc(lengthBytes, 0x5a));
  }

  run(): Promise<void> {
    return this.verify.run(this.#access);
  }

  /** The link is lost while the verify waits for its turn at the disk. @returns what becomes of it; the link is there again then */
  async runOverLostLink(): Promise<Error> {
    const lock = new Deferred<undefined>();
    const locked = this.disk.mirror.exclusively(0, SIZE_BYTES, () => lock.promise);
    const failed = failureOf(this.run());
    await turns();
    this.isReplicating = false;
    lock.resolve(undefined);
    await locked;
    const failure = await failed;
    this.isReplicating = true;
    return failure;
  }

  get #access(): ReplicaAccess {
    return {
      digests: {
        of: async (_disk, offset, lengthBytes, blockBytes) => {
          this.asked.push(offset);
          await this.answer(offset);
          if (blockBytes === BLOCK) {
            for (let at = offset; at < offset + lengthBytes; at += BLOCK) {
              this.comparisons[at / BLOCK] = (this.comparisons[at / BLOCK] ?? 0) + 1;
            }
          }
          return digestsOf(this.replicaMemory.contents(offset, lengthBytes), blockBytes);
        },
      },
      replica: this.replica,
      isReplicating: () => this.isReplicating,
    };
  }

  expectAll(facts: { skippedBytes?: number; differences?: readonly DifferingExtent[] } = {}): void {
    const { skippedBytes = 0, differences = [] } = facts;
    expect(this.verify.report(null)).to.deep.include({
      outcome: "completed",
      comparedBytes: SIZE_BYTES - skippedBytes,
      skippedBytes,
      differingBytes: differences.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0),
      differences,
      differencesAreAll: true,
    });
  }
}

describe("Verify", () => {
  it("compares every byte once, and finds nothing where both sides are the same", async () => {
    const subject = await Subject.open();
    await subject.run();
    subject.expectAll();
    expect(new Set(subject.comparisons)).to.deep.equal(new Set([1]));
  });

  it("compares no content over a link that was lost while it waited for its turn", async () => {
    const subject = await Subject.open();
    expect(await subject.runOverLostLink())
      .to.be.instanceOf(LinkError)
      .with.property("message", "the link to the replica was lost");
    expect(subject.asked).to.deep.equal([]);
    expect(subject.verify.doneBytes).to.equal(0);
    await subject.run();
    subject.expectAll();
  });

  it("compares no hole over a link that was lost while it waited for its turn", async () => {
    const subject = await Subject.open(0);
    expect((await subject.runOverLostLink()).message).to.equal("the link to the replica was lost");
    expect(subject.replica.log).to.deep.equal([]);
    expect(subject.verify.doneBytes).to.equal(0);
    await subject.run();
    subject.expectAll();
    expect(subject.asked, "it is a hole on both sides").to.deep.equal([]);
  });

  it("passes over what is known to differ, also in a hole of both sides, and compares the rest of that", async () => {
    const subject = await Subject.open(0);
    subject.disk.dirty.missed(5 * BLOCK + 1, 1);
    await subject.run();
    subject.expectAll({ skippedBytes: BLOCK });
  });

  it("passes over what is known to differ, to the end of the disk, and finds what differs beside it", async () => {
    const subject = await Subject.open();
    subject.disk.dirty.missed(5 * BLOCK, BLOCK);
    subject.disk.dirty.missed(SIZE_BYTES - 1, 1);
    subject.corrupt(5 * BLOCK - 1, BLOCK + 2);
    subject.corrupt(SIZE_BYTES - 1, 1);
    await subject.run();
    subject.expectAll({
      skippedBytes: BLOCK + (SIZE_BYTES % BLOCK),
      differences: [
        { offset: 5 * BLOCK - SECTOR, lengthBytes: SECTOR },
        { offset: 6 * BLOCK, lengthBytes: SECTOR },
      ],
    });
  });

  it("finds what the replica has where the disk has a hole, of whatever ends, and what it has not behind one", async () => {
    const subject = await Subject.open(0);
    // The hole ends inside a block, and another one begins behind the data.
    subject.localMemory.fill(7 * BLOCK + SECTOR, Buffer.alloc(SECTOR, 0x11));
    subject.corrupt(6 * BLOCK, SECTOR);
    subject.corrupt(20 * BLOCK, SECTOR);
    subject.corrupt(SIZE_BYTES - 1, 1);
    await subject.run();
    subject.expectAll({
      differences: [
        { offset: 6 * BLOCK, lengthBytes: SECTOR },
        { offset: 7 * BLOCK + SECTOR, lengthBytes: SECTOR },
        { offset: 20 * BLOCK, lengthBytes: SECTOR },
        { offset: SIZE_BYTES - (SIZE_BYTES % SECTOR), lengthBytes: SIZE_BYTES % SECTOR },
      ],
    });
    expect(subject.comparisons.every((count) => count <= 1)).to.equal(true);
  });

  it("looks again whether the disk has a hole when nobody writes there any more", async () => {
    const subject = await Subject.open(0);
    const lock = new Deferred<undefined>();
    const locked = subject.disk.mirror.exclusively(0, SIZE_BYTES, () => lock.promise);
    const ran = subject.run();
    await turns();
    subject.localMemory.fill(9 * BLOCK, Buffer.alloc(SECTOR, 0x11));
    lock.resolve(undefined);
    await locked;
    await ran;
    subject.expectAll({ differences: [{ offset: 9 * BLOCK, lengthBytes: SECTOR }] });
  });

  it("compares content of whole disks that can't tell their holes", async () => {
    const subject = await Subject.open(0, false, { extents: "none" });
    await subject.run();
    subject.expectAll();
    expect(new Set(subject.comparisons)).to.deep.equal(new Set([1]));
  });

  it("does not begin another piece once one could not be compared", async () => {
    const subject = await Subject.open();
    const failure = new LinkError("connection-lost", "it is gone");
    const others = new Deferred<undefined>();
    subject.answer = (offset) =>
      offset === 0 ? Promise.reject(failure) : others.promise.then(() => undefined);
    const failed = failureOf(subject.run());
    await turns();
    others.resolve(undefined);
    expect(await failed).to.equal(failure);
    expect(subject.asked.length).to.equal(PIECES_IN_FLIGHT);
    expect(subject.verify.doneBytes).to.equal((PIECES_IN_FLIGHT - 1) * PIECE);
  });

  it("has compared every byte once in the end, whichever pieces could not be compared before", async () => {
    const subject = await Subject.open();
    subject.corrupt(3 * PIECE, SECTOR);
    subject.corrupt(20 * PIECE, SECTOR);
    let questions = 0;
    // Each fifth is not answered: of those in flight at a time it is another one each time.
    subject.answer = () =>
      ++questions % 5 === 0
        ? Promise.reject(new LinkError("connection-lost", "it is gone"))
        : Promise.resolve();
    let losses = 0;
    for (; losses < 100; losses++) {
      const error = await subject.run().then(
        () => null,
        (reason: unknown) => reason,
      );
      if (error === null) break;
      expect(error).to.be.instanceOf(LinkError);
    }
    expect(losses).to.be.greaterThan(0);
    subject.expectAll({
      differences: [
        { offset: 3 * PIECE, lengthBytes: SECTOR },
        { offset: 20 * PIECE, lengthBytes: SECTOR },
      ],
    });
    // What differs is asked about a second time, in smaller blocks: that may be what was not answered.
    const again = subject.comparisons.flatMap((count, block) => (count === 1 ? [] : [Math.floor(block / 4)]));
    expect([3, 20]).to.include.members(again);
  });

  it("goes on where it is not known what is a hole: there the disk has failed to tell", async () => {
    const subject = await Subject.open(0);
    subject.localMemory.fill(PIECE, Buffer.alloc(PIECE, 0x11));
    subject.corrupt(PIECE, PIECE);
    subject.local.fail({ operation: "extents", offset: 2 * PIECE, lengthBytes: 1, count: 1, skip: 1 });
    expect((await failureOf(subject.run())).message).to.match(/injected EIO: extents/);
    await subject.run();
    subject.expectAll({ differences: [{ offset: PIECE, lengthBytes: PIECE }] });
  });

  it("takes neighbouring differences for one, in whatever order they are found, and names them in the order of the disk", async () => {
    const subject = await Subject.open();
    subject.corrupt(PIECE - SECTOR, 2 * PIECE + 2 * SECTOR);
    subject.corrupt(10 * PIECE, SECTOR);
    const first = new Deferred<undefined>();
    subject.answer = (offset) => (offset === PIECE ? first.promise.then(() => undefined) : Promise.resolve());
    const ran = subject.run();
    await turns(200);
    first.resolve(undefined);
    await ran;
    subject.expectAll({
      differences: [
        { offset: PIECE - SECTOR, lengthBytes: 2 * PIECE + 2 * SECTOR },
        { offset: 10 * PIECE, lengthBytes: SECTOR },
      ],
    });
    expect(subject.replica.log, "nothing is sent").to.deep.equal([]);
  });

  const everySecond = (subject: Subject, count: number, from = 0): DifferingExtent[] =>
    Array.from({ length: count }, (_, index) => {
      const extent = { offset: from + 2 * index * SECTOR, lengthBytes: SECTOR };
      subject.corrupt(extent.offset, extent.lengthBytes);
      return extent;
    });

  it("names a hundred differences when there are no more, and says that these are all", async () => {
    const subject = await Subject.open();
    const differences = everySecond(subject, 100);
    await subject.run();
    subject.expectAll({ differences });
  });

  it("names the first hundred of more, and says that there are others", async () => {
    const subject = await Subject.open();
    const differences = everySecond(subject, 101);
    await subject.run();
    expect(subject.verify.report(null)).to.deep.include({
      differences: differences.slice(0, 100),
      differencesAreAll: false,
      differingBytes: 101 * SECTOR,
    });
  });

  it("says that there are others also when those that it names become fewer, as what is between them differs", async () => {
    const subject = await Subject.open();
    // 32 before a piece of which all differs, and far more behind it.
    everySecond(subject, PIECE / SECTOR / 2);
    subject.corrupt(PIECE, PIECE);
    subject.corrupt(PIECE - SECTOR, SECTOR);
    everySecond(subject, 100, 2 * PIECE);
    const between = new Deferred<undefined>();
    subject.answer = (offset) =>
      offset === PIECE ? between.promise.then(() => undefined) : Promise.resolve();
    const ran = subject.run();
    await turns(200);
    between.resolve(undefined);
    await ran;
    const { differences, differencesAreAll, differingBytes } = subject.verify.report(null);
    expect(differingBytes).to.equal((33 + 100) * SECTOR + PIECE);
    expect(differences.length).to.be.lessThan(100);
    expect(differencesAreAll).to.equal(false);
  });

  it("sends again what differs, and no more, on demand", async () => {
    const subject = await Subject.open(0x11, true);
    const differences = everySecond(subject, 3, 7 * PIECE);
    await subject.run();
    subject.expectAll({ differences });
    expect(subject.verify.report(null).repairedBytes).to.equal(3 * SECTOR);
    expect(subject.replica.log).to.deep.equal(
      differences.map((extent) => ({ operation: "write", flags: 0, ...extent })),
    );
    expect(subject.replicaMemory.contents().equals(subject.localMemory.contents())).to.equal(true);
  });

  it("begins no piece once it is cancelled, and tells what it has compared", async () => {
    const subject = await Subject.open();
    const held = new Deferred<undefined>();
    subject.answer = () => held.promise.then(() => undefined);
    const ran = subject.run();
    await turns();
    subject.verify.cancel();
    held.resolve(undefined);
    await ran;
    expect(subject.asked.length).to.equal(PIECES_IN_FLIGHT);
    expect(subject.verify.report(null)).to.deep.include({
      outcome: "cancelled",
      comparedBytes: PIECES_IN_FLIGHT * PIECE,
    });
  });
});
