import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { DIRTY_BLOCK_BYTES as BLOCK } from "../../../src/block/dirty-blocks.js";
import type { DirtyMap } from "../../../src/block/dirty-map.js";
import { systemClock } from "../../../src/clock.js";
import { Deferred } from "../../../src/deferred.js";
import { digestsOf } from "../../../src/replication/digest.js";
import { CopyWindow } from "../../../src/replication/primary/copy-window.js";
import { type AskDigests, KnownContent } from "../../../src/replication/primary/known-content.js";
import { RateLimit } from "../../../src/replication/primary/rate-limit.js";
import { Resync } from "../../../src/replication/primary/resync.js";
import { openDirtyMap } from "../../tools/dirty-map.js";
import type { Request } from "../../tools/failing-device.js";
import { MirroredDisk, type MirroredDiskOptions } from "../../tools/mirrored-disk.js";
import { failureOf, isSettled, outcome, turns } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";

interface SubjectOptions extends MirroredDiskOptions {
  readonly blocks?: number;
  readonly bytesPerSecond?: number;
}

/** A primary's disk with a replica that is known to hold nothing yet. */
class Subject extends MirroredDisk {
  readonly resync: Resync;

  private constructor(options: SubjectOptions, dirty: DirtyMap) {
    super(dirty, options);
    this.resync = this.another(options.bytesPerSecond ?? 0);
  }

  static async open(options: SubjectOptions = {}): Promise<Subject> {
    const dirty = await openDirtyMap((options.blocks ?? 64) * BLOCK - 1000);
    await dirty.describe(null, false);
    return new Subject(options, dirty);
  }

  another(
    bytesPerSecond = 0,
    window = new CopyWindow(systemClock),
    known: KnownContent | null = null,
  ): Resync {
    const rate = new RateLimit(bytesPerSecond);
    return new Resync(this.disk, this.replica, { rate, window, clock: systemClock, known });
  }

  get isSame(): boolean {
    return this.localMemory.contents().equals(this.replicaMemory.contents());
  }

  /** One that asks the replica what it has. @param asked resolves when the replica may answer */
  knowing(asked: () => Promise<void> = () => Promise.resolve(), bytesPerSecond = 0): Resync {
    const ask: AskDigests = async (offset, lengthBytes, blockBytes) => {
      const digests = digestsOf(this.replicaMemory.contents(offset, lengthBytes), blockBytes);
      await asked();
      return digests;
    };
    const known = new KnownContent(ask, () => undefined);
    return this.another(bytesPerSecond, new CopyWindow(systemClock), known);
  }

  /** What reached the replica. */
  sent(operation: Request["operation"]): Request[] {
    return this.replica.log.filter((request) => request.operation === operation);
  }
}

function filled(lengthBytes: number, value: number): Buffer {
  return Buffer.alloc(lengthBytes, value);
}

describe("Resync", () => {
  it("makes the replica the same, and sends no holes", async () => {
    const subject = await Subject.open();
    subject.localMemory.fill(3 * BLOCK + 5, filled(2 * BLOCK, 1));
    subject.localMemory.fill(40 * BLOCK, filled(5000, 2));
    subject.localMemory.fill(subject.localMemory.info.sizeBytes - 1, filled(1, 3));
    await subject.resync.run();
    expect(subject.isSame).to.equal(true);
    expect(subject.disk.dirty.missedBytes).to.equal(0);
    expect(subject.disk.resyncedBytes).to.be.lessThan(5 * BLOCK);
    expect(subject.replicaMemory.allocatedBytes).to.equal(subject.localMemory.allocatedBytes);
    expect(subject.sent("zero"), "holes of both").to.deep.equal([]);
  });

  it("makes zeroes of what the replica holds where the disk has holes", async () => {
    const subject = await Subject.open();
    subject.replicaMemory.fill(0, filled(subject.replicaMemory.info.sizeBytes, 9));
    subject.localMemory.fill(10 * BLOCK + 4096, filled(4096, 1));
    await subject.resync.run();
    expect(subject.isSame).to.equal(true);
    expect(subject.replicaMemory.allocatedBytes).to.equal(4096);
  });

  it("has a block as missed until all of it is sent, where a step of a long hole ends inside of it", async () => {
    const subject = await Subject.open();
    for (let at = 4096; at < 32 * BLOCK; at += 8192) subject.replicaMemory.fill(at, filled(4096, 9));
    // A step makes 32 fragments zeroes.
    const stepEnd = 4096 + 32 * 8192;
    subject.replica.fail({ operation: "zero", offset: stepEnd, lengthBytes: BLOCK });
    await failureOf(subject.resync.run());
    expect(subject.replicaMemory.contents(stepEnd, 4096)).to.deep.equal(filled(4096, 9));
    expect(subject.disk.dirty.nextMissed(0, BLOCK)?.offset).to.equal(stepEnd - (stepEnd % BLOCK));
  });

  it("copies between devices that can't tell their allocation", async () => {
    const subject = await Subject.open({ blocks: 10, extents: "none", zero: "none", trim: "none" });
    subject.localMemory.fill(100, filled(BLOCK, 1));
    subject.replicaMemory.fill(0, filled(5 * BLOCK, 9));
    await subject.resync.run();
    expect(subject.isSame).to.equal(true);
  });

  it("sends only what is missed, and says how far it is", async () => {
    const subject = await Subject.open();
    subject.localMemory.fill(0, filled(subject.localMemory.info.sizeBytes, 1));
    await subject.resync.run();
    subject.replica.log.length = 0;
    subject.disk.dirty.missed(7 * BLOCK + 1, 1);
    subject.disk.dirty.missed(20 * BLOCK, 6 * BLOCK);
    const held = subject.replica.hold({ operation: "write", offset: 20 * BLOCK, lengthBytes: 6 * BLOCK });
    const again = subject.another();
    const run = again.run();
    await held.arrived(6);
    await turns();
    expect([again.totalBytes, again.doneBytes]).to.deep.equal([7 * BLOCK, BLOCK]);
    held.release();
    await run;
    expect(again.doneBytes).to.equal(7 * BLOCK);
    expect(
      subject.sent("write").map(({ offset, lengthBytes }) => [offset / BLOCK, lengthBytes / BLOCK]),
    ).to.deep.equal([[7, 1], ...[20, 21, 22, 23, 24, 25].map((block) => [block, 1])]);
  });

  for (const ackMode of ["async", "memsync", "sync"] as const) {
    it(`ends with both sides the same while guests write, zero and trim: ${ackMode}`, async () => {
      const subject = await Subject.open({ ackMode });
      const random = new Random(SEED);
      const { sizeBytes } = subject.localMemory.info;
      for (let at = 0; at + BLOCK < sizeBytes; at += BLOCK) {
        if (random.below(3) > 0) subject.localMemory.fill(at, random.bytes(BLOCK >> random.below(6)));
        if (random.below(3) > 0) subject.replicaMemory.fill(at, random.bytes(4096));
      }
      subject.local.reorder({}, random);
      subject.replica.reorder({}, random);
      const { guestExport } = subject.disk;
      const guest = async (): Promise<void> => {
        for (let count = 0; count < 60; count++) {
          const offset = random.below(sizeBytes - 3 * BLOCK);
          const lengthBytes = 1 + random.below(2 * BLOCK);
          const kind = random.below(4);
          if (kind <= 1) await guestExport.write(offset, Buffer.alloc(lengthBytes, 1 + count), Flag.None);
          else if (kind === 2) await guestExport.zero(offset, lengthBytes, Flag.None);
          else await guestExport.trim(offset, lengthBytes, Flag.None);
        }
      };
      await Promise.all([subject.resync.run(), guest(), guest(), guest()]);
      await subject.disk.mirror.drain();
      expect(subject.disk.dirty.missedBytes).to.equal(0);
      expect(subject.isSame).to.equal(true);
    });
  }

  it("lets no guest's write into the piece that it sends, and hinders no other", async () => {
    const subject = await Subject.open();
    subject.localMemory.fill(0, filled(64 * 1024, 1));
    const held = subject.replica.hold({ operation: "write", count: 1 });
    const run = subject.resync.run();
    await held.arrived(1);
    const inside = subject.disk.guestExport.write(0, filled(10, 2), Flag.None);
    await subject.disk.guestExport.write(40 * BLOCK, filled(10, 3), Flag.None);
    expect(await isSettled(inside)).to.equal(false);
    held.release();
    await Promise.all([run, inside]);
    expect(subject.isSame).to.equal(true);
    expect(subject.localMemory.contents(0, 10)).to.deep.equal(filled(10, 2));
  });

  it("lets guests write between the steps of a hole that is many fragments on the replica", async () => {
    const subject = await Subject.open();
    for (let at = 0; at + 4096 < 63 * BLOCK; at += 8192) subject.replicaMemory.fill(at, filled(4096, 9));
    const held = subject.replica.hold({ operation: "zero", offset: 40 * BLOCK, lengthBytes: BLOCK });
    const run = subject.resync.run();
    await held.arrived(1);
    const behind = subject.disk.guestExport.write(50 * BLOCK, filled(10, 3), Flag.None);
    await subject.disk.guestExport.write(0, filled(10, 2), Flag.None);
    expect(await isSettled(behind)).to.equal(false);
    held.release();
    await Promise.all([run, behind]);
    expect(subject.isSame).to.equal(true);
  });

  it("makes zeroes of a long extent of the replica in steps, between which guests write", async () => {
    const subject = await Subject.open({ blocks: 1024 });
    subject.replicaMemory.fill(0, filled(60 * 1024 * 1024, 9));
    const held = subject.replica.hold({ operation: "zero", offset: 40 * 1024 * 1024, lengthBytes: 1 });
    const run = subject.resync.run();
    await held.arrived(1);
    await subject.disk.guestExport.write(0, filled(10, 2), Flag.None);
    held.release();
    await run;
    expect(subject.isSame).to.equal(true);
    expect(subject.sent("zero").map(({ lengthBytes }) => lengthBytes / 1024 / 1024)).to.deep.equal([32, 28]);
  });

  it("shares the window of the link with the copies of other disks", async () => {
    const subjects = [await Subject.open(), await Subject.open()];
    const window = new CopyWindow(systemClock);
    const held = subjects.map((subject) => {
      subject.localMemory.fill(0, filled(60 * BLOCK, 1));
      return subject.replica.hold({ operation: "write" });
    });
    const runs = subjects.map((subject) => subject.another(0, window).run());
    for (let round = 0; round < 50; round++) await turns();
    const sent = subjects.flatMap((subject) => subject.sent("write"));
    expect(sent.map(({ lengthBytes }) => lengthBytes / BLOCK)).to.deep.equal(Array(8).fill(1));
    for (const each of held) each.release();
    await Promise.all(runs);
    expect(subjects.map(({ isSame }) => isSame)).to.deep.equal([true, true]);
  });

  it("lets guests write where it waits for its rate", async () => {
    const subject = await Subject.open({ bytesPerSecond: 1 });
    subject.localMemory.fill(0, filled(20 * BLOCK, 1));
    const run = failureOf(subject.resync.run());
    await turns();
    expect(subject.sent("write")).to.deep.equal([]);
    await subject.disk.guestExport.write(0, filled(10, 2), Flag.None);
    expect(await isSettled(run)).to.equal(false);
    subject.resync.stop();
    expect(await run).to.have.property("code", "stopped");
  });

  it("picks up what was missed behind it while it went on", async () => {
    const subject = await Subject.open();
    subject.localMemory.fill(0, filled(60 * BLOCK, 1));
    const held = subject.replica.hold({ operation: "write", offset: 50 * BLOCK, lengthBytes: 1 });
    const run = subject.resync.run();
    await held.arrived(1);
    await turns();
    subject.replica.fail({ operation: "write", offset: 0, lengthBytes: 10, count: 1 });
    await subject.disk.guestExport.write(0, filled(10, 7), Flag.None);
    expect(subject.disk.dirty.nextMissed(0, BLOCK)?.offset).to.equal(0);
    held.release();
    await run;
    expect([subject.isSame, subject.disk.dirty.missedBytes]).to.deep.equal([true, 0]);
  });

  for (const [what, side, operation] of [
    ["the disk can't be read", "local", "read"],
    ["the replica refuses it", "replica", "write"],
  ] as const) {
    it(`stops soon when ${what}, keeps what it has done, and can be begun anew`, async () => {
      const subject = await Subject.open({ blocks: 400 });
      subject.localMemory.fill(0, filled(399 * BLOCK, 1));
      const rule = subject[side].fail({ operation, offset: 40 * BLOCK, lengthBytes: 1 }, "EIO");
      expect(await outcome(subject.resync.run())).to.equal("EIO");
      const sent = subject.sent("write").length;
      // Pieces of a block or more, eight of them under way.
      expect(sent).to.be.at.most(40 + 8 + 8);
      const done = subject.resync.doneBytes;
      expect(done).to.be.at.least(8 * 4 * BLOCK);
      expect(subject.disk.dirty.nextMissed(0, BLOCK)?.offset).to.be.at.most(40 * BLOCK);
      rule.remove();
      const again = subject.another();
      expect(again.totalBytes).to.equal(400 * BLOCK - 1000 - done);
      await again.run();
      expect(subject.isSame).to.equal(true);
    });
  }

  describe("of a disk that the replica may have", () => {
    /** All of both is content; what differs is given by blocks. */
    async function carried(...differing: number[]): Promise<Subject> {
      const subject = await Subject.open();
      const { sizeBytes } = subject.localMemory.info;
      const bytes = Buffer.from(
        Array.from({ length: sizeBytes }, (_, at) => 1 + (Math.floor(at / 4096) % 251)),
      );
      subject.localMemory.fill(0, bytes);
      subject.replicaMemory.fill(0, bytes);
      for (const block of differing) subject.replicaMemory.fill(block * BLOCK + 17, filled(1, 0));
      return subject;
    }

    it("sends what differs, and nothing else", async () => {
      const subject = await carried(0, 9, 10, 63);
      const size = subject.localMemory.info.sizeBytes;
      await subject.knowing().run();
      expect(subject.isSame).to.equal(true);
      expect(subject.disk.dirty.missedBytes).to.equal(0);
      const sent = subject.sent("write").map(({ offset, lengthBytes }) => [offset, lengthBytes]);
      expect(sent.sort(([a = 0], [b = 0]) => a - b)).to.deep.equal([
        [0, BLOCK],
        [9 * BLOCK, BLOCK],
        [10 * BLOCK, BLOCK],
        [63 * BLOCK, BLOCK - 1000],
      ]);
      expect(subject.disk.resyncedBytes).to.equal(size);
      expect(subject.disk.foundBytes).to.equal(size - 4 * BLOCK + 1000);
    });

    it("has what was found as not durable before the next flush, as what was sent", async () => {
      const subject = await carried();
      await subject.knowing().run();
      expect([subject.disk.dirty.missedBytes, subject.disk.dirty.hasVolatile]).to.deep.equal([0, true]);
    });

    it("is not slowed down by the rate limit where nothing has to be sent", async () => {
      const subject = await carried();
      await subject.knowing(undefined, 1).run();
      expect(subject.disk.dirty.missedBytes).to.equal(0);
    });

    it("does not lose a guest's write that comes while the replica is asked: it waits for the answer", async () => {
      const subject = await carried();
      const answer = new Deferred<undefined>();
      const asked = new Deferred<undefined>();
      const running = subject
        .knowing(() => {
          asked.resolve(undefined);
          return answer.promise;
        })
        .run();
      await asked.promise;
      const written = subject.disk.guestExport.write(0, filled(BLOCK, 200), Flag.None);
      await turns();
      expect(await isSettled(written)).to.equal(false);
      answer.resolve(undefined);
      await Promise.all([running, written]);
      expect(subject.replicaMemory.contents(0, BLOCK).equals(filled(BLOCK, 200))).to.equal(true);
      expect(subject.isSame).to.equal(true);
    });

    it("sends all of it when the replica does not answer any more", async () => {
      const subject = await carried(5);
      let asked = 0;
      await subject
        .knowing(() => (++asked > 3 ? Promise.reject(new Error("gone")) : Promise.resolve()))
        .run();
      expect(subject.isSame).to.equal(true);
      expect(subject.disk.dirty.missedBytes).to.equal(0);
    });

    it("fails at once with its link while the replica is asked", async () => {
      const subject = await carried();
      const asked = new Deferred<undefined>();
      const answer = new Deferred<undefined>();
      const resync = subject.knowing(() => {
        asked.resolve(undefined);
        return answer.promise;
      });
      const running = resync.run();
      await asked.promise;
      resync.stop();
      answer.reject(new Error("closed"));
      expect((await failureOf(running)).message).to.equal("the resync was stopped");
      expect(subject.sent("write")).to.deep.equal([]);
    });

    it("fails when this side's disk can't be read", async () => {
      const subject = await carried();
      subject.local.fail({ operation: "read", offset: 8 * BLOCK, lengthBytes: BLOCK });
      await failureOf(subject.knowing().run());
      expect(subject.disk.dirty.nextMissed(0, Infinity)?.offset).to.be.at.most(8 * BLOCK);
    });
  });
});
