/** What copy-before-write does when memory is short, the disk or the log fails, or the disk was given away. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { Deferred } from "../../../src/deferred.js";
import { DeviceError } from "../../../src/errors.js";
import { failureOf, isSettled, outcome, turns } from "../../tools/outcome.js";
import { BLOCK_BYTES, CopyingDisk, filled } from "./copying-disk.js";

describe("copy-before-write: memory", () => {
  it("acknowledges no write beyond its budget before earlier ones are on the disk", async () => {
    const subject = await CopyingDisk.make({ memoryBytes: 3 * BLOCK_BYTES });
    const held = subject.disk.hold({ operation: "write" });
    const writes = [0, 1, 2, 3, 4].map((block) =>
      subject.copying.write(block * BLOCK_BYTES, filled(BLOCK_BYTES, 1), Flag.None),
    );
    await held.arrived(3);
    expect(await Promise.all(writes.map(isSettled))).to.deep.equal([true, true, true, false, false]);
    expect(subject.budget.takenBytes).to.equal(3 * BLOCK_BYTES);
    held.releaseOne();
    expect(await Promise.all(writes.map(isSettled))).to.deep.equal([true, true, true, true, false]);
    expect(subject.budget.takenBytes).to.equal(3 * BLOCK_BYTES);
    held.release();
    await Promise.all(writes);
    await subject.copying.drain();
    expect([subject.budget.takenBytes, subject.copying.pendingBytes]).to.deep.equal([0, 0]);
  });

  it("takes a write larger than the budget, alone", async () => {
    const subject = await CopyingDisk.make({ memoryBytes: BLOCK_BYTES });
    await subject.copying.write(0, filled(5 * BLOCK_BYTES, 1), Flag.None);
    await subject.copying.drain();
    expect(subject.memory.contents(0, 5 * BLOCK_BYTES)).to.deep.equal(filled(5 * BLOCK_BYTES, 1));
    expect(subject.budget.takenBytes).to.equal(0);
  });

  it("gives memory back when writes fail, those that waited for it included", async () => {
    const subject = await CopyingDisk.make({ memoryBytes: 2 * BLOCK_BYTES });
    const held = subject.disk.hold({ operation: "write" });
    const writes = [0, 1, 2, 3].map((block) =>
      outcome(subject.copying.write(block * BLOCK_BYTES, filled(BLOCK_BYTES, 1), Flag.None)),
    );
    await held.arrived(4);
    for (let count = 0; count < 4; count++) held.failOne("EIO");
    await Promise.all(writes);
    await subject.copying.drain();
    await turns();
    expect([subject.budget.takenBytes, subject.copying.pendingBytes]).to.deep.equal([0, 0]);
  });
});

describe("copy-before-write: failures of the disk", () => {
  it("refuses writes, zeroes, trims and flushes after an acknowledged write was lost, until reset", async () => {
    const subject = await CopyingDisk.make();
    const { copying } = subject;
    subject.disk.fail({ operation: "write", count: 1 }, "ENOSPC");
    expect(await outcome(copying.write(0, filled(10, 1), Flag.None)), "acknowledged").to.equal("done");
    await copying.drain();
    expect(copying.failure?.errno).to.equal("ENOSPC");
    expect(copying.failure?.message).to.equal(
      "an acknowledged write at 0 was lost: injected ENOSPC: write at 0, 10 bytes",
    );
    expect(subject.errors).to.deep.equal(["write at 0"]);
    const later = [
      () => copying.write(9 * BLOCK_BYTES, filled(10, 1), Flag.None),
      () => copying.write(9 * BLOCK_BYTES, filled(10, 1), Flag.Fua),
      () => copying.zero(9 * BLOCK_BYTES, 10, Flag.None),
      () => copying.trim(9 * BLOCK_BYTES, 10, Flag.None),
      () => copying.flush(),
    ];
    for (const request of later) expect(await outcome(request())).to.equal("ENOSPC");
    expect(subject.changes, "that reached the disk").to.deep.equal(["write 0+10"]);
    copying.reset();
    for (const request of later) expect(await outcome(request())).to.equal("done");
    expect(copying.failure).to.equal(null);
  });

  it("fails a flush that was waiting for the write that was lost", async () => {
    const subject = await CopyingDisk.make();
    const held = subject.disk.hold({ operation: "write" });
    await subject.copying.write(0, filled(10, 1), Flag.None);
    const flush = outcome(subject.copying.flush());
    await held.arrived(1);
    held.failOne("EIO");
    expect(await flush).to.equal("EIO");
    expect(subject.memory.counts.flush).to.equal(0);
  });

  it("only reports failures of requests that nobody was told were done", async () => {
    const subject = await CopyingDisk.make();
    const { copying } = subject;
    subject.disk.fail({ operation: ["write", "zero", "trim"], count: 3 });
    expect(await outcome(copying.write(0, filled(10, 1), Flag.Fua))).to.equal("EIO");
    expect(await outcome(copying.zero(10, 10, Flag.None))).to.equal("EIO");
    expect(await outcome(copying.trim(20, 10, Flag.None))).to.equal("EIO");
    expect(subject.errors).to.deep.equal(["write at 0", "zero at 10", "trim at 20"]);
    expect(copying.failure).to.equal(null);
    expect(await outcome(copying.flush())).to.equal("done");
  });

  it("keeps the checkpoint when a write fails after its image was kept", async () => {
    const subject = await CopyingDisk.make();
    subject.memory.fill(0, filled(BLOCK_BYTES, 7));
    subject.disk.fail({ operation: "write", when: "after", count: 1 });
    expect(await outcome(subject.copying.write(0, filled(BLOCK_BYTES, 1), Flag.Fua))).to.equal("EIO");
    expect((await subject.checkpoint()).subarray(0, BLOCK_BYTES)).to.deep.equal(filled(BLOCK_BYTES, 7));
    subject.copying.reset();
    await subject.copying.write(0, filled(BLOCK_BYTES, 2), Flag.Fua);
    expect((await subject.checkpoint()).subarray(0, BLOCK_BYTES)).to.deep.equal(filled(BLOCK_BYTES, 7));
  });

  it("does not let a lock stay behind a failure", async () => {
    const subject = await CopyingDisk.make();
    subject.disk.fail({ operation: ["read", "write"], count: 2 });
    await outcome(subject.copying.read(0, Buffer.alloc(BLOCK_BYTES)));
    await outcome(subject.copying.write(0, filled(10, 1), Flag.Fua));
    expect(await outcome(subject.copying.write(0, filled(10, 1), Flag.Fua))).to.equal("done");
    expect(await outcome(subject.copying.read(0, Buffer.alloc(BLOCK_BYTES)))).to.equal("done");
  });
});

describe("copy-before-write: failures of the images", () => {
  const noSpace = new DeviceError("ENOSPC", "no space for images");

  for (const kind of ["write", "zero", "trim"] as const) {
    it(`refuses the request where the policy does, and leaves the disk as it was: ${kind}`, async () => {
      const asked: object[] = [];
      const subject = await CopyingDisk.make({
        onImageError: (failure) => {
          asked.push(failure);
          return Promise.reject(failure.error);
        },
      });
      const before = filled(8 * BLOCK_BYTES, 7);
      subject.memory.fill(0, before);
      subject.failLog(noSpace);
      const request =
        kind === "write"
          ? subject.copying.write(BLOCK_BYTES + 5, filled(BLOCK_BYTES, 1), Flag.Fua)
          : subject.copying[kind](BLOCK_BYTES, 2 * BLOCK_BYTES, Flag.None);
      expect(await outcome(request)).to.equal("ENOSPC");
      const blocks = { offset: BLOCK_BYTES, lengthBytes: 2 * BLOCK_BYTES };
      expect(asked).to.deep.equal([{ ...blocks, error: noSpace }]);
      expect(subject.memory.contents(0, before.length)).to.deep.equal(before);
    });
  }

  it("tells which blocks they are, too, of a write that nobody waits for", async () => {
    const asked: object[] = [];
    const subject = await CopyingDisk.make({
      onImageError: (failure) => {
        asked.push(failure);
        return Promise.reject(failure.error);
      },
    });
    subject.failLog(noSpace);
    await subject.copying.write(3 * BLOCK_BYTES + 5, filled(10, 1), Flag.None);
    await subject.copying.drain();
    expect(asked).to.deep.equal([{ offset: 3 * BLOCK_BYTES, lengthBytes: BLOCK_BYTES, error: noSpace }]);
  });

  it("refuses all that follows once an acknowledged write was refused so", async () => {
    const subject = await CopyingDisk.make();
    subject.memory.fill(0, filled(BLOCK_BYTES, 7));
    subject.failLog(noSpace);
    expect(await outcome(subject.copying.write(0, filled(10, 1), Flag.None))).to.equal("done");
    await subject.copying.drain();
    expect(await outcome(subject.copying.flush())).to.equal("ENOSPC");
    expect(subject.memory.contents(0, BLOCK_BYTES)).to.deep.equal(filled(BLOCK_BYTES, 7));
  });

  it("goes on without images where the policy does, and copies nothing more", async () => {
    const subject: CopyingDisk = await CopyingDisk.make({
      onImageError: () => {
        subject.directory.intercept = (): undefined => undefined;
        return subject.log.markBroken();
      },
    });
    subject.memory.fill(0, filled(8 * BLOCK_BYTES, 7));
    subject.failLog(noSpace);
    await subject.copying.write(0, filled(10, 1), Flag.None);
    await subject.copying.flush();
    expect(subject.memory.contents(0, 10)).to.deep.equal(filled(10, 1));
    subject.disk.log.length = 0;
    await subject.copying.write(4 * BLOCK_BYTES, filled(10, 2), Flag.Fua);
    await subject.copying.zero(0, 8 * BLOCK_BYTES, Flag.None);
    expect(subject.disk.log.map(({ operation }) => operation)).to.deep.equal(["write", "zero"]);
    const lost = "the last checkpoint is lost: its before-images could not be kept";
    expect((await failureOf(subject.checkpoint())).message).to.equal(lost);
    expect((await failureOf(subject.hidden.extents(0, 4096, 1))).message).to.equal(lost);
  });

  it("asks the policy for each write that comes while it is asked", async () => {
    const asked: number[] = [];
    const answer = new Deferred<void>();
    const subject: CopyingDisk = await CopyingDisk.make({
      onImageError: ({ offset }) => {
        asked.push(offset);
        return answer.promise;
      },
    });
    subject.memory.fill(0, filled(8 * BLOCK_BYTES, 7));
    subject.failLog(noSpace);
    for (const block of [0, 1]) {
      await subject.copying.write(block * BLOCK_BYTES, filled(10, 1), Flag.None);
      expect(await isSettled(subject.copying.flush())).to.equal(false);
    }
    expect(asked).to.deep.equal([0, BLOCK_BYTES]);
    expect(subject.changes).to.deep.equal([]);
    answer.resolve();
    await subject.copying.flush();
    expect(subject.memory.contents(BLOCK_BYTES, 10)).to.deep.equal(filled(10, 1));
  });

  it("asks the policy, too, when the old content can't be read", async () => {
    const subject = await CopyingDisk.make();
    subject.disk.fail({ operation: "read" });
    expect(await outcome(subject.copying.write(0, filled(10, 1), Flag.Fua))).to.equal("EIO");
    expect(subject.changes).to.deep.equal([]);
  });
});

describe("copy-before-write: fence", () => {
  it("refuses every later change and flush, and finishes what was under way", async () => {
    const subject = await CopyingDisk.make();
    const { copying } = subject;
    const held = subject.disk.hold({ operation: "write" });
    await copying.write(0, filled(10, 1), Flag.None);
    const durable = outcome(copying.write(BLOCK_BYTES, filled(10, 2), Flag.Fua));
    await held.arrived(2);
    copying.setFenced(true);
    for (const request of [
      copying.write(0, filled(10, 9), Flag.None),
      copying.write(0, filled(10, 9), Flag.Fua),
      copying.zero(0, 10, Flag.None),
      copying.trim(0, 10, Flag.None),
    ]) {
      expect(await outcome(request)).to.equal("ESHUTDOWN");
    }
    held.release();
    expect(await durable).to.equal("done");
    await copying.drain();
    expect(subject.memory.contents(0, 10)).to.deep.equal(filled(10, 1));
    expect(subject.memory.contents(BLOCK_BYTES, 10)).to.deep.equal(filled(10, 2));
    expect(await outcome(copying.flush())).to.equal("ESHUTDOWN");
    expect(subject.changes).to.have.length(2);
  });

  it("stays, without an overlay and after reset()", async () => {
    const subject = await CopyingDisk.make();
    subject.copying.setFenced(true);
    subject.copying.setOverlay(null);
    subject.copying.reset();
    expect(await outcome(subject.copying.write(0, filled(10, 9), Flag.None))).to.equal("ESHUTDOWN");
  });
});
