import { expect } from "chai";

import { checked } from "../../../src/block/checked.js";
import { Flag } from "../../../src/block/device.js";
import { DIRTY_BLOCK_BYTES } from "../../../src/block/dirty-blocks.js";
import type { DirtyMap } from "../../../src/block/dirty-map.js";
import { PrimaryFilter } from "../../../src/block/filters/replication.js";
import { MemoryBudget } from "../../../src/block/memory-budget.js";
import { Mirror } from "../../../src/block/mirror.js";
import type { AckMode } from "../../../src/status.js";
import { Deferred } from "../../../src/deferred.js";
import { openDirtyMap } from "../../tools/dirty-map.js";
import { FailingDevice } from "../../tools/failing-device.js";
import { MemoryDevice, type MemoryDeviceOptions } from "../../tools/memory-device.js";
import { isSettled, outcome, turns } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";

const SIZE_BYTES = 16 * DIRTY_BLOCK_BYTES;
const MODES = ["async", "memsync", "sync"] as const;

function filled(lengthBytes: number, value: number): Buffer {
  return Buffer.alloc(lengthBytes, value);
}

/** A mirror with everything under it open to holds, failures and looks inside. */
type PairOptions = MemoryDeviceOptions & { memoryBytes?: number };

class Pair {
  readonly localMemory: MemoryDevice;
  readonly replicaMemory = new MemoryDevice(SIZE_BYTES);
  readonly local: FailingDevice;
  readonly replica = new FailingDevice(this.replicaMemory);
  readonly dirty: DirtyMap;
  readonly memory: MemoryBudget;
  readonly filter: PrimaryFilter;
  readonly mirror: Mirror;
  readonly failures: string[] = [];

  private constructor(ackMode: AckMode, options: PairOptions, dirty: DirtyMap) {
    this.dirty = dirty;
    this.localMemory = new MemoryDevice(SIZE_BYTES, options);
    this.local = new FailingDevice(checked(this.localMemory));
    this.memory = new MemoryBudget(options.memoryBytes ?? SIZE_BYTES);
    this.mirror = new Mirror(this.local, {
      ackMode,
      dirty: this.dirty,
      memory: this.memory,
      isReachable: () => this.filter.isReachable,
      onAlone: () => Promise.resolve(),
      onCongested: () => undefined,
    });
    this.filter = new PrimaryFilter(this.mirror.info, (failure) => {
      this.dirty.missed(failure.offset, failure.lengthBytes);
      this.failures.push(
        `${failure.operation} ${failure.offset}+${failure.lengthBytes}: ${failure.error.message}`,
      );
      return Promise.resolve();
    });
    this.filter.setReplica(this.replica);
    this.filter.setStarted(true);
    this.mirror.setReplica(this.filter);
  }

  static async open(ackMode: AckMode, options: PairOptions = {}): Promise<Pair> {
    return new Pair(ackMode, options, await openDirtyMap(SIZE_BYTES));
  }

  get isSame(): boolean {
    return this.localMemory.contents().equals(this.replicaMemory.contents());
  }
}

describe("mirror", () => {
  for (const mode of MODES) {
    describe(`in ack mode ${mode}`, () => {
      it("swallows an error of the replica, reports it once, and has the blocks as missed", async () => {
        const pair = await Pair.open(mode);
        pair.replica.fail({ operation: ["write", "zero"], count: 2 }, "ENOSPC");
        await pair.mirror.write(DIRTY_BLOCK_BYTES - 1, filled(2, 1), Flag.None);
        await pair.mirror.drain();
        expect(pair.failures).to.deep.equal([
          `write ${DIRTY_BLOCK_BYTES - 1}+2: injected ENOSPC: write at ${DIRTY_BLOCK_BYTES - 1}, 2 bytes`,
        ]);
        expect(pair.dirty.nextMissed(0, SIZE_BYTES)).to.deep.equal({
          offset: 0,
          lengthBytes: 2 * DIRTY_BLOCK_BYTES,
        });
        await pair.mirror.trim(5 * DIRTY_BLOCK_BYTES, 1, Flag.None);
        await pair.mirror.drain();
        expect(pair.dirty.missedBytes).to.equal(3 * DIRTY_BLOCK_BYTES);
        await pair.mirror.write(0, filled(2, 1), Flag.None);
        await pair.mirror.drain();
        expect(pair.failures).to.have.length(2);
      });

      it("passes an error of the disk to the guest, and has the blocks as missed", async () => {
        const pair = await Pair.open(mode);
        pair.local.fail({ operation: ["write", "zero"], count: 2 }, "ENOSPC");
        expect(await outcome(pair.mirror.write(0, filled(10, 1), Flag.None))).to.equal("ENOSPC");
        expect(await outcome(pair.mirror.zero(DIRTY_BLOCK_BYTES, 10, Flag.None))).to.equal("ENOSPC");
        await pair.mirror.drain();
        expect(pair.dirty.missedBytes).to.equal(2 * DIRTY_BLOCK_BYTES);
        expect(pair.failures).to.deep.equal([]);
        expect(
          await outcome(pair.mirror.write(0, filled(10, 2), Flag.None)),
          "no lock stays behind",
        ).to.equal("done");
      });

      it("has as missed what a fast zero may have changed before it failed, and not what was refused", async () => {
        const pair = await Pair.open(mode);
        pair.local.fail({ operation: "zero", count: 1 }, "ENOTSUP");
        expect(await outcome(pair.mirror.zero(0, 10, Flag.FastZero))).to.equal("ENOTSUP");
        expect(pair.dirty.missedBytes).to.equal(0);
        pair.local.fail({ operation: "zero", count: 1 }, "EIO");
        expect(await outcome(pair.mirror.zero(0, 10, Flag.FastZero))).to.equal("EIO");
        expect(pair.dirty.missedBytes).to.equal(DIRTY_BLOCK_BYTES);
      });

      it("passes a failed flush of the disk on to the guest", async () => {
        const pair = await Pair.open(mode);
        pair.local.fail({ operation: "flush" });
        expect(await outcome(pair.mirror.flush())).to.equal("EIO");
      });

      it("leaves both sides the same after overlapping changes that overtake each other below", async () => {
        const pair = await Pair.open(mode);
        const random = new Random(SEED);
        pair.local.reorder({}, random, 5);
        pair.replica.reorder({}, random, 5);
        // Behind all that the others may make zeroes of.
        const changes = [pair.mirror.write(3 * 4096, filled(1, 9), Flag.None)];
        for (let count = 0; count < 400; count++) {
          const offset = random.below(8192);
          const lengthBytes = 1 + random.below(4096);
          const kind = random.below(5);
          if (kind <= 2) {
            const data = random.bytes(lengthBytes);
            changes.push(pair.mirror.write(offset, data, random.below(5) === 0 ? Flag.Fua : Flag.None));
          } else if (kind === 3)
            changes.push(pair.mirror.zero(offset, lengthBytes, random.oneOf([0, Flag.FastZero])));
          else changes.push(pair.mirror.trim(offset, lengthBytes, Flag.None));
          if (random.below(8) === 0) await Promise.all(changes);
        }
        await Promise.all(changes);
        await pair.mirror.drain();
        expect(pair.isSame).to.equal(true);
        expect(pair.localMemory.contents(3 * 4096, 1)).to.deep.equal(filled(1, 9));
        expect([pair.dirty.missedBytes, pair.mirror.inFlight, pair.memory.takenBytes]).to.deep.equal([
          0, 0, 0,
        ]);
      });

      it("makes both sides equal where it is trimmed", async () => {
        const pair = await Pair.open(mode);
        for (const memory of [pair.localMemory, pair.replicaMemory]) memory.fill(0, filled(20000, 3));
        await pair.mirror.trim(100, 15000, Flag.None);
        await pair.mirror.drain();
        expect(pair.isSame).to.equal(true);
        expect(pair.localMemory.contents(0, 20000)).to.deep.equal(
          Buffer.concat([filled(100, 3), filled(15000, 0), filled(4900, 3)]),
        );
      });

      it("does not trim a disk whose zeroes would have to be written", async () => {
        const pair = await Pair.open(mode, { zero: "none" });
        for (const memory of [pair.localMemory, pair.replicaMemory]) memory.fill(0, filled(8192, 3));
        await pair.mirror.trim(0, 8192, Flag.None);
        await pair.mirror.drain();
        expect(pair.isSame).to.equal(true);
        expect([...pair.local.log, ...pair.replica.log]).to.deep.equal([]);
      });

      it("forwards a fast zero as a plain one, and not at all when the disk refuses it", async () => {
        const refusing = await Pair.open(mode, { zero: "none" });
        for (const memory of [refusing.localMemory, refusing.replicaMemory]) memory.fill(0, filled(8192, 3));
        expect(await outcome(refusing.mirror.zero(0, 4096, Flag.FastZero))).to.equal("ENOTSUP");
        await refusing.mirror.drain();
        expect(refusing.replica.log).to.deep.equal([]);
        expect([refusing.isSame, refusing.dirty.missedBytes]).to.deep.equal([true, 0]);
        const pair = await Pair.open(mode);
        await pair.mirror.zero(0, 4096, Flag.FastZero | Flag.NoHole);
        await pair.mirror.drain();
        expect(pair.replica.log.map(({ flags }) => flags & ~Flag.Fua)).to.deep.equal([Flag.NoHole]);
      });

      it("marks as missed what is changed while there is no replica, and never waits for it", async () => {
        const pair = await Pair.open(mode);
        pair.mirror.setReplica(null);
        await pair.mirror.write(0, filled(10, 1), Flag.Fua);
        await pair.mirror.zero(DIRTY_BLOCK_BYTES, 10, Flag.None);
        await pair.mirror.zero(2 * DIRTY_BLOCK_BYTES, 10, Flag.FastZero);
        await pair.mirror.flush();
        expect(pair.dirty.missedBytes).to.equal(3 * DIRTY_BLOCK_BYTES);
        pair.mirror.setReplica(pair.filter);
        pair.filter.setReplica(null);
        await pair.mirror.write(5 * DIRTY_BLOCK_BYTES, filled(10, 1), Flag.None);
        await pair.mirror.drain();
        expect(pair.dirty.missedBytes).to.equal(4 * DIRTY_BLOCK_BYTES);
        expect(pair.memory.takenBytes).to.equal(0);
      });

      it("marks as missed what waited for its turn when the replica was taken away", async () => {
        const pair = await Pair.open(mode);
        const held = pair.replica.hold({ operation: "write" });
        const writes = [1, 2].map((value) => pair.mirror.write(0, filled(10, value), Flag.None));
        await held.arrived(1);
        pair.mirror.setReplica(null);
        held.release();
        await Promise.all(writes);
        await pair.mirror.drain();
        expect(pair.dirty.missedBytes).to.equal(DIRTY_BLOCK_BYTES);
        expect(pair.memory.takenBytes).to.equal(0);
      });

      it("changes neither side before the dirty map knows of the change", async () => {
        const pair = await Pair.open(mode);
        const { dirty } = pair;
        const known = new Deferred<void>();
        dirty.prepare = (): Promise<void> => known.promise;
        const changes = [
          pair.mirror.write(0, filled(512, 1), Flag.None),
          pair.mirror.zero(DIRTY_BLOCK_BYTES, 512, Flag.None),
          pair.mirror.zero(2 * DIRTY_BLOCK_BYTES, 512, Flag.FastZero),
        ];
        await turns();
        expect([pair.local.log, pair.replica.log]).to.deep.equal([[], []]);
        known.resolve();
        await Promise.all(changes);
        expect([pair.local.log.length, pair.replica.log.length]).to.deep.equal([3, 3]);
      });

      it("reads and describes the disk alone", async () => {
        const pair = await Pair.open(mode);
        pair.localMemory.fill(0, filled(10, 1));
        const into = Buffer.alloc(10);
        await pair.mirror.read(0, into);
        expect(into).to.deep.equal(filled(10, 1));
        expect(await pair.mirror.extents(0, 4096, 1)).to.deep.equal([
          { lengthBytes: 4096, hole: false, zero: false },
        ]);
        expect(pair.replica.log).to.deep.equal([]);
      });

      it("lets nobody change a range on either side while it is held exclusively", async () => {
        const pair = await Pair.open(mode);
        let finish: () => void = () => undefined;
        const action = pair.mirror.exclusively(
          0,
          4096,
          () => new Promise<void>((resolve) => (finish = resolve)),
        );
        const inside = pair.mirror.write(4095, filled(2, 1), Flag.None);
        await pair.mirror.write(4097, filled(1, 1), Flag.None);
        expect(await isSettled(inside)).to.equal(false);
        expect(pair.localMemory.contents(4095, 1)).to.deep.equal(filled(1, 0));
        expect(pair.replicaMemory.contents(4095, 1)).to.deep.equal(filled(1, 0));
        finish();
        await action;
        await inside;
      });
    });
  }

  it("acknowledges in mode async when the disk has it, in memsync and sync when the replica has it, too", async () => {
    for (const mode of MODES) {
      const pair = await Pair.open(mode);
      const held = pair.replica.hold({ operation: ["write", "zero"] });
      const changes = [
        pair.mirror.write(0, filled(10, 1), Flag.None),
        pair.mirror.zero(DIRTY_BLOCK_BYTES, 10, Flag.None),
      ];
      await held.arrived(2);
      const isEarly = mode === "async";
      expect(await Promise.all(changes.map(isSettled)), mode).to.deep.equal([isEarly, isEarly]);
      const drained = pair.mirror.drain();
      expect(await isSettled(drained)).to.equal(false);
      expect(pair.mirror.inFlight).to.equal(2);
      held.release();
      await Promise.all([...changes, drained]);
    }
  });

  it("never acknowledges before the disk has it, in any mode", async () => {
    for (const mode of MODES) {
      const pair = await Pair.open(mode);
      const held = pair.local.hold({ operation: "write" });
      const write = pair.mirror.write(0, filled(10, 1), Flag.None);
      await held.arrived(1);
      expect(await isSettled(write), mode).to.equal(false);
      held.release();
      await write;
    }
  });

  it("asks the replica for durability in mode sync alone: each write, and each flush", async () => {
    for (const mode of MODES) {
      const pair = await Pair.open(mode);
      await pair.mirror.write(0, filled(10, 1), Flag.None);
      await pair.mirror.write(0, filled(10, 1), Flag.Fua);
      await pair.mirror.flush();
      await pair.mirror.drain();
      expect(pair.local.log.map(({ operation, flags }) => `${operation} ${flags}`)).to.deep.equal([
        "write 0",
        "write 1",
        "flush 0",
      ]);
      expect(
        pair.replica.log.map(({ operation, flags }) => `${operation} ${flags}`),
        mode,
      ).to.deep.equal(mode === "sync" ? ["write 1", "write 1", "flush 0"] : ["write 0", "write 0"]);
    }
  });

  it("gives the guest its buffer back in mode async: the replica gets what it held at the call", async () => {
    const pair = await Pair.open("async");
    const held = pair.replica.hold({ operation: "write" });
    const buffer = filled(5000, 1);
    await pair.mirror.write(0, buffer, Flag.None);
    buffer.fill(0xee);
    held.release();
    await pair.mirror.drain();
    expect(pair.replicaMemory.contents(0, 5000)).to.deep.equal(filled(5000, 1));
    expect(pair.isSame).to.equal(true);
  });

  it("lets guests wait in mode async beyond the memory for what the replica lacks", async () => {
    const pair = await Pair.open("async", { memoryBytes: 2000 });
    const held = pair.replica.hold({ operation: "write" });
    const writes = [0, 1, 2].map((index) => pair.mirror.write(index * 5000, filled(1000, 1), Flag.None));
    await held.arrived(2);
    expect(await Promise.all(writes.map(isSettled))).to.deep.equal([true, true, false]);
    expect(pair.memory.takenBytes).to.equal(2000);
    held.failOne("EIO");
    await writes[2];
    held.release();
    await pair.mirror.drain();
    expect(pair.memory.takenBytes).to.equal(0);
  });
});

describe("mirror that is handed over", () => {
  for (const mode of MODES) {
    it(`refuses every write and holds no memory for it, those that wait for memory included: ${mode}`, async () => {
      const pair = await Pair.open(mode, { memoryBytes: 1000 });
      const held = pair.replica.hold({ operation: "write" });
      const before = [0, 1].map((index) => pair.mirror.write(index * 5000, filled(1000, 1), Flag.None));
      await held.arrived(mode === "async" ? 1 : 2);
      pair.mirror.handOver();
      held.release();
      expect(await Promise.all(before.map(outcome))).to.deep.equal([
        "done",
        mode === "async" ? "ESHUTDOWN" : "done",
      ]);
      expect(await outcome(pair.mirror.write(0, filled(1000, 2), Flag.None))).to.equal("ESHUTDOWN");
      await pair.mirror.drain();
      expect(pair.memory.takenBytes).to.equal(0);
      expect(pair.localMemory.contents(0, 1)).to.deep.equal(filled(1, 1));
    });
  }
});

describe("primary's filter", () => {
  it("refuses reads and block status, and changes before replication is started", async () => {
    const pair = await Pair.open("memsync");
    expect(await outcome(pair.filter.read())).to.equal("EIO");
    expect(await outcome(pair.filter.extents())).to.equal("EIO");
    pair.filter.setStarted(false);
    expect(await outcome(pair.filter.write(0, filled(1, 1), Flag.None))).to.equal("EIO");
    expect(await outcome(pair.filter.flush())).to.equal("EIO");
    expect(pair.failures).to.deep.equal([]);
  });

  it("counts what the replica has acknowledged", async () => {
    const pair = await Pair.open("memsync");
    pair.replica.fail({ operation: "write", offset: 100, lengthBytes: 1 });
    await pair.filter.write(0, filled(10, 1), Flag.None);
    await pair.filter.zero(10, 90, Flag.None);
    await pair.filter.write(100, filled(10, 1), Flag.None);
    expect(pair.filter.forwarded).to.deep.equal({ writes: 2, bytes: 100 });
  });
});
