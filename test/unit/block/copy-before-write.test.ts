import { expect } from "chai";

import { payloadBuffers } from "../../../src/block/buffer-pool.js";
import { Flag } from "../../../src/block/device.js";
import { isSettled, outcome, turns } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";
import { BLOCK_BYTES, CopyingDisk, filled } from "./copying-disk.js";

const MEBIBYTE = 1024 * 1024;

describe("copy-before-write", () => {
  for (const kind of ["write", "write with FUA", "zero", "trim"] as const) {
    it(`does not overwrite the disk before the image is durable: ${kind}`, async () => {
      const subject = await CopyingDisk.make();
      subject.memory.fill(0, filled(2 * BLOCK_BYTES, 7));
      const held = subject.holdLog();
      const { copying } = subject;
      const request = {
        write: () => copying.write(100, filled(50, 1), Flag.None),
        "write with FUA": () => copying.write(100, filled(50, 1), Flag.Fua),
        zero: () => copying.zero(100, BLOCK_BYTES, Flag.None),
        trim: () => copying.trim(0, BLOCK_BYTES, Flag.None),
      }[kind]();
      const drained = copying.drain();
      await turns(5);
      expect(subject.changes).to.deep.equal([]);
      expect(subject.directory.count("write")).to.equal(1);
      expect(await isSettled(request), "acknowledged").to.equal(kind === "write");
      held.resolve();
      await request;
      await drained;
      expect(subject.changes).to.have.length(1);
      expect((await subject.checkpoint()).subarray(0, 2 * BLOCK_BYTES)).to.deep.equal(
        filled(2 * BLOCK_BYTES, 7),
      );
    });
  }

  it("copies nothing for a second write to the same block", async () => {
    const subject = await CopyingDisk.make();
    subject.memory.fill(0, filled(BLOCK_BYTES, 7));
    for (const value of [1, 2, 3]) await subject.copying.write(value, filled(10, value), Flag.None);
    await subject.copying.zero(0, BLOCK_BYTES, Flag.None);
    await subject.copying.drain();
    expect(await subject.images()).to.deep.equal(["data 0-1"]);
    expect((await subject.checkpoint()).subarray(0, BLOCK_BYTES)).to.deep.equal(filled(BLOCK_BYTES, 7));
  });

  it("copies only the blocks that have no image yet", async () => {
    const subject = await CopyingDisk.make();
    subject.memory.fill(0, filled(8 * BLOCK_BYTES, 7));
    await subject.copying.write(3 * BLOCK_BYTES, filled(BLOCK_BYTES, 1), Flag.Fua);
    await subject.copying.write(BLOCK_BYTES, filled(5 * BLOCK_BYTES, 2), Flag.Fua);
    expect(await subject.images()).to.deep.equal(["data 3-4", "data 1-3", "data 4-6"]);
  });

  it("neither copies nor writes what is there already, but flushes for FUA", async () => {
    const subject = await CopyingDisk.make();
    subject.memory.fill(0, filled(2 * BLOCK_BYTES, 7));
    await subject.copying.write(10, filled(BLOCK_BYTES, 7), Flag.None);
    await subject.copying.drain();
    expect(subject.memory.counts.flush).to.equal(0);
    await subject.copying.write(10, filled(BLOCK_BYTES, 7), Flag.Fua);
    expect([subject.changes, await subject.images()]).to.deep.equal([[], []]);
    expect(subject.memory.counts.flush).to.equal(1);
    expect(subject.hidden.mappedBytes).to.equal(0);
  });

  it("copies writes together, whether their blocks are in memory, have to be read or have their turn later", async () => {
    const subject = await CopyingDisk.make();
    const before = Buffer.from(Array.from({ length: 64 * BLOCK_BYTES }, (_, at) => 1 + (at % 251)));
    subject.memory.fill(0, before);
    // What a rule is about is not in memory.
    const slow = subject.disk.reorder(
      { operation: "read", offset: 8 * BLOCK_BYTES, lengthBytes: 1 },
      new Random(SEED),
      0,
    );
    await subject.copying.write(4 * BLOCK_BYTES, filled(BLOCK_BYTES, 1), Flag.Fua);
    subject.directory.log.length = 0;
    subject.disk.log.length = 0;
    const writes = [
      [0, filled(BLOCK_BYTES, 2)],
      [2 * BLOCK_BYTES + 5, filled(2 * BLOCK_BYTES, 3)],
      [4 * BLOCK_BYTES + 9, filled(10, 4)],
      [8 * BLOCK_BYTES, filled(BLOCK_BYTES, 5)],
      [20 * BLOCK_BYTES, before.subarray(20 * BLOCK_BYTES, 21 * BLOCK_BYTES)],
      [20 * BLOCK_BYTES + 1, filled(1, 6)],
    ] as const;
    const expected = Buffer.from(before);
    expected.fill(1, 4 * BLOCK_BYTES, 5 * BLOCK_BYTES);
    for (const [offset, content] of writes) {
      content.copy(expected, offset);
      await subject.copying.write(offset, content, Flag.None);
    }
    await subject.copying.drain();
    slow.remove();
    expect(subject.memory.contents()).to.deep.equal(expected);
    expect((await subject.checkpoint()).equals(before)).to.equal(true);
    expect(await subject.images()).to.deep.equal([
      "data 4-5",
      "data 0-1",
      "data 2-4",
      "data 8-9",
      "data 20-21",
    ]);
    expect(subject.directory.count("write"), "writes of the log").to.be.at.most(2);
  });

  it("holds no buffer for each block while the log is written", async () => {
    const blocks = 200;
    const subject = await CopyingDisk.make({ sizeBytes: blocks * BLOCK_BYTES });
    subject.memory.fill(0, filled(blocks * BLOCK_BYTES, 7));
    let held = 0;
    const take = payloadBuffers.take.bind(payloadBuffers);
    const give = payloadBuffers.give.bind(payloadBuffers);
    payloadBuffers.take = (lengthBytes) => {
      held++;
      return take(lengthBytes);
    };
    payloadBuffers.give = (buffer) => {
      held--;
      give(buffer);
    };
    try {
      const log = subject.holdLog();
      for (let index = 0; index < blocks; index++)
        await subject.copying.write(index * BLOCK_BYTES, filled(BLOCK_BYTES, 1), Flag.None);
      const drained = subject.copying.drain();
      await turns(10);
      expect(held, "those of the log and of the copies").to.be.within(2, 20);
      log.resolve();
      await drained;
      expect(subject.hidden.mappedBytes).to.equal(blocks * BLOCK_BYTES);
      expect(held, "that of the copies").to.be.at.most(1);
    } finally {
      Reflect.deleteProperty(payloadBuffers, "take");
      Reflect.deleteProperty(payloadBuffers, "give");
    }
  });

  it("keeps markers where the disk read as zeroes, written or not, and content beside them", async () => {
    const subject = await CopyingDisk.make();
    subject.memory.fill(BLOCK_BYTES, filled(BLOCK_BYTES, 0));
    subject.memory.fill(2 * BLOCK_BYTES, filled(BLOCK_BYTES, 5));
    await subject.copying.write(0, filled(4 * BLOCK_BYTES, 1), Flag.Fua);
    expect(await subject.images()).to.deep.equal(["zero 0-2", "data 2-3", "zero 3-4"]);
    expect(subject.log.sizeBytes, "a header, a block of content, and a page of records").to.equal(
      4096 + BLOCK_BYTES + 4096,
    );
  });

  it("keeps one marker for a hole of any length", async () => {
    const subject = await CopyingDisk.make({ sizeBytes: 4096 * MEBIBYTE });
    subject.memory.fill(1024 * MEBIBYTE, filled(BLOCK_BYTES, 5));
    await subject.copying.trim(0, 2048 * MEBIBYTE, Flag.None);
    const images = await subject.images();
    expect(images[0]).to.equal("zero 0-262144");
    expect(images).to.include("data 262144-262145");
    expect(images.length).to.be.at.most(4);
    expect(subject.memory.counts.read, "reads of the disk").to.be.at.most(2);
  });

  it("keeps the content behind a hole that a long write begins in", async () => {
    const subject = await CopyingDisk.make();
    subject.memory.fill(16 * BLOCK_BYTES, filled(16 * BLOCK_BYTES, 5));
    await subject.copying.write(0, filled(32 * BLOCK_BYTES, 1), Flag.Fua);
    expect(await subject.images()).to.deep.equal(["zero 0-16", "data 16-32"]);
    expect((await subject.checkpoint()).subarray(16 * BLOCK_BYTES, 32 * BLOCK_BYTES)).to.deep.equal(
      filled(16 * BLOCK_BYTES, 5),
    );
  });

  it("logs nothing for zeroes written over zeroes", async () => {
    const subject = await CopyingDisk.make({ sizeBytes: 16 * MEBIBYTE });
    subject.memory.fill(5 * BLOCK_BYTES, filled(10, 1));
    await subject.copying.zero(0, 16 * MEBIBYTE, Flag.None);
    expect(await subject.images()).to.deep.equal(["data 5-6"]);
    expect((await subject.checkpoint()).subarray(5 * BLOCK_BYTES, 5 * BLOCK_BYTES + 10)).to.deep.equal(
      filled(10, 1),
    );
  });

  it("rounds unaligned requests out to whole blocks", async () => {
    const subject = await CopyingDisk.make();
    subject.memory.fill(0, filled(8 * BLOCK_BYTES, 7));
    await subject.copying.write(BLOCK_BYTES - 1, filled(2, 1), Flag.Fua);
    expect(await subject.images()).to.deep.equal(["data 0-2"]);
    await subject.copying.write(3 * BLOCK_BYTES, filled(1, 1), Flag.Fua);
    await subject.copying.trim(5 * BLOCK_BYTES - 1, BLOCK_BYTES + 2, Flag.None);
    expect(await subject.images()).to.deep.equal(["data 0-2", "data 3-4", "data 4-7"]);
    expect(await subject.checkpoint()).to.deep.equal(
      Buffer.concat([filled(8 * BLOCK_BYTES, 7), filled(56 * BLOCK_BYTES, 0)]),
    );
  });

  it("copies the last block although it is partial", async () => {
    const sizeBytes = 3 * BLOCK_BYTES + 123;
    const subject = await CopyingDisk.make({ sizeBytes });
    subject.memory.fill(0, filled(sizeBytes, 7));
    await subject.copying.write(sizeBytes - 1, filled(1, 1), Flag.Fua);
    await subject.copying.zero(0, sizeBytes, Flag.None);
    expect(await subject.checkpoint()).to.deep.equal(filled(sizeBytes, 7));
    expect(subject.memory.contents()).to.deep.equal(filled(sizeBytes, 0));
    expect(subject.hidden.mappedBytes).to.equal(sizeBytes);
  });

  for (const kind of ["zero", "trim"] as const) {
    it(`copies a long range in pieces of at most a mebibyte: ${kind}`, async () => {
      const sizeBytes = 5 * MEBIBYTE;
      const subject = await CopyingDisk.make({ sizeBytes });
      const random = new Random(SEED);
      const before = Buffer.alloc(sizeBytes, 3);
      for (let at = 0; at < sizeBytes; at += BLOCK_BYTES) before[at] = random.below(256);
      subject.memory.fill(0, before);
      await subject.copying[kind](0, sizeBytes, Flag.None);
      const lengths = subject.disk.log
        .filter(({ operation }) => operation === "read")
        .map(({ lengthBytes }) => lengthBytes);
      expect(lengths).to.deep.equal([1, 1, 1, 1, 1].map((count) => count * MEBIBYTE));
      expect((await subject.checkpoint()).equals(before)).to.equal(true);
      expect(subject.changes).to.deep.equal([`${kind} 0+${sizeBytes}`]);
    });
  }

  it("copies a write longer than a mebibyte whole", async () => {
    const subject = await CopyingDisk.make({ sizeBytes: 3 * MEBIBYTE, memoryBytes: 8 * MEBIBYTE });
    subject.memory.fill(0, filled(3 * MEBIBYTE, 3));
    await subject.copying.write(0, filled(3 * MEBIBYTE, 4), Flag.None);
    await subject.copying.drain();
    expect((await subject.checkpoint()).equals(filled(3 * MEBIBYTE, 3))).to.equal(true);
  });

  it("applies overlapping requests in their order of arrival", async () => {
    const subject = await CopyingDisk.make();
    const random = new Random(SEED);
    subject.disk.reorder({}, random);
    const before = random.bytes(64 * BLOCK_BYTES);
    subject.memory.fill(0, before);
    const model = Buffer.from(before);
    const requests: Promise<void>[] = [];
    for (let count = 0; count < 300; count++) {
      const offset = random.below(60 * BLOCK_BYTES);
      const lengthBytes = 1 + random.below(2 * BLOCK_BYTES);
      if (random.below(4) === 0) {
        requests.push(subject.copying.zero(offset, lengthBytes, Flag.None));
        model.fill(0, offset, offset + lengthBytes);
      } else {
        const data = random.bytes(lengthBytes);
        requests.push(subject.copying.write(offset, data, random.below(8) === 0 ? Flag.Fua : Flag.None));
        data.copy(model, offset);
      }
    }
    await Promise.all(requests);
    await subject.copying.drain();
    expect(subject.memory.contents().equals(model)).to.equal(true);
    expect((await subject.checkpoint()).equals(before)).to.equal(true);
  });

  it("shows acknowledged writes to reads and extents, though they are not on the disk yet", async () => {
    const subject = await CopyingDisk.make();
    const held = subject.holdLog();
    await subject.copying.write(BLOCK_BYTES, filled(BLOCK_BYTES, 1), Flag.None);
    const into = Buffer.alloc(4 * BLOCK_BYTES);
    const read = subject.copying.read(0, into);
    const extents = subject.copying.extents(0, 4 * BLOCK_BYTES, 8);
    const elsewhere = subject.copying.read(8 * BLOCK_BYTES, Buffer.alloc(BLOCK_BYTES));
    await elsewhere;
    expect(await isSettled(read)).to.equal(false);
    held.resolve();
    await read;
    expect(into.subarray(BLOCK_BYTES, 2 * BLOCK_BYTES)).to.deep.equal(filled(BLOCK_BYTES, 1));
    expect((await extents).map(({ lengthBytes, zero }) => [lengthBytes / BLOCK_BYTES, zero])).to.deep.equal([
      [1, true],
      [1, false],
      [2, true],
    ]);
  });

  it("flushes only after every write that was acknowledged before is on the disk", async () => {
    const subject = await CopyingDisk.make();
    const held = subject.disk.hold({ operation: "write" });
    await subject.copying.write(0, filled(10, 1), Flag.None);
    const flush = subject.copying.flush();
    await held.arrived(1);
    expect(await isSettled(flush)).to.equal(false);
    expect(subject.memory.counts.flush).to.equal(0);
    held.release();
    await flush;
    expect(subject.memory.counts.flush).to.equal(1);
  });

  it("makes a flush wait for the last of the writes before it, whichever is done first", async () => {
    const subject = await CopyingDisk.make();
    const held = subject.disk.hold({ operation: "write" });
    for (const block of [0, 8])
      await subject.copying.write(block * BLOCK_BYTES, filled(BLOCK_BYTES, 1), Flag.None);
    const flush = subject.copying.flush();
    await held.arrived(2);
    held.releaseOne();
    expect(await isSettled(flush)).to.equal(false);
    expect(subject.memory.counts.flush).to.equal(0);
    held.release();
    await flush;
    expect(subject.memory.contents(8 * BLOCK_BYTES, BLOCK_BYTES)).to.deep.equal(filled(BLOCK_BYTES, 1));
  });

  it("does not make a flush wait for writes that came after it", async () => {
    const subject = await CopyingDisk.make();
    const held = subject.disk.hold({ operation: "write", offset: 8 * BLOCK_BYTES, lengthBytes: 1 });
    const early = subject.copying.write(0, filled(10, 1), Flag.None);
    const flush = subject.copying.flush();
    await subject.copying.write(8 * BLOCK_BYTES, filled(10, 1), Flag.None);
    await Promise.all([early, flush]);
    held.release();
    await subject.copying.drain();
  });

  it("acknowledges FUA only when the disk has it, and passes the flag on", async () => {
    const subject = await CopyingDisk.make();
    const held = subject.disk.hold({ operation: "write" });
    const request = subject.copying.write(0, filled(10, 1), Flag.Fua);
    await held.arrived(1);
    expect(held.requests[0]?.flags).to.equal(Flag.Fua);
    expect(await isSettled(request)).to.equal(false);
    held.release();
    await request;
  });

  it("refuses fast zeroes while images are kept", async () => {
    const subject = await CopyingDisk.make();
    expect(await outcome(subject.copying.zero(0, 4096, Flag.FastZero))).to.equal("ENOTSUP");
    subject.copying.setOverlay(null);
    expect(await outcome(subject.copying.zero(0, 4096, Flag.FastZero))).to.equal("done");
  });

  it("writes straight to the disk, acknowledged by it, while there is no overlay", async () => {
    const subject = await CopyingDisk.make();
    subject.copying.setOverlay(null);
    const held = subject.disk.hold({ operation: "write" });
    const request = subject.copying.write(0, filled(10, 1), Flag.None);
    expect(await isSettled(request)).to.equal(false);
    held.release();
    await request;
    expect(subject.directory.log).to.deep.equal([]);
    expect(subject.disk.log.map(({ operation }) => operation)).to.deep.equal(["write"]);
  });
});
