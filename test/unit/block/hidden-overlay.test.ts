/** The view beside copy-before-write: it shows the checkpoint, however the two interleave. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { ExtentMap } from "../../../src/block/extent-map.js";
import { extentsThrough } from "../../../src/block/overlay/layered.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { FailingDevice } from "../../tools/failing-device.js";
import { outcome, turns } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";
import { BLOCK_BYTES, CopyingDisk, filled } from "./copying-disk.js";

describe("hidden overlay", () => {
  it("takes no changes", async () => {
    const { hidden } = await CopyingDisk.make();
    expect(hidden.info.writable).to.equal(false);
    for (const request of [hidden.write(), hidden.zero(), hidden.trim()]) {
      expect(await outcome(request)).to.equal("EPERM");
    }
    expect(await outcome(hidden.flush())).to.equal("done");
  });

  it("shows the old content to a read that had looked at the map before the block was overwritten", async () => {
    const subject = await CopyingDisk.make();
    subject.memory.fill(0, filled(4 * BLOCK_BYTES, 7));
    // The reader's two gaps: one block is overwritten while it reads, the other one was before.
    await subject.copying.write(BLOCK_BYTES, filled(BLOCK_BYTES, 1), Flag.Fua);
    const held = subject.disk.hold({ operation: "read", count: 2 });
    const into = Buffer.alloc(4 * BLOCK_BYTES);
    const read = subject.hidden.read(0, into);
    await held.arrived(2);
    await subject.copying.write(3 * BLOCK_BYTES - 10, filled(20, 1), Flag.Fua);
    await subject.copying.zero(0, BLOCK_BYTES, Flag.None);
    held.release();
    await read;
    expect(into).to.deep.equal(filled(4 * BLOCK_BYTES, 7));
  });

  it("shows zeroes to a read that had looked at the map before a hole was filled", async () => {
    const subject = await CopyingDisk.make();
    const held = subject.disk.hold({ operation: "read", count: 1 });
    const into = Buffer.alloc(2 * BLOCK_BYTES, 0xee);
    const read = subject.hidden.read(0, into);
    await held.arrived(1);
    await subject.copying.write(0, filled(BLOCK_BYTES, 1), Flag.Fua);
    held.release();
    await read;
    expect(into).to.deep.equal(filled(2 * BLOCK_BYTES, 0));
  });

  it("tells the old allocation to who had looked at the map before it changed", async () => {
    const subject = await CopyingDisk.make();
    subject.memory.fill(BLOCK_BYTES, filled(BLOCK_BYTES, 7));
    const held = subject.disk.hold({ operation: "extents", count: 1 });
    const request = subject.hidden.extents(0, 2 * BLOCK_BYTES, 4);
    await held.arrived(1);
    await subject.copying.write(0, filled(BLOCK_BYTES, 1), Flag.Fua);
    await subject.copying.trim(BLOCK_BYTES, BLOCK_BYTES, Flag.None);
    held.release();
    const extents = await request;
    expect(extents).to.deep.equal([
      { lengthBytes: BLOCK_BYTES, hole: true, zero: true },
      { lengthBytes: BLOCK_BYTES, hole: false, zero: false },
    ]);
  });

  it("fails a read under which the checkpoint was given up, rather than show what was written since", async () => {
    const subject: CopyingDisk = await CopyingDisk.make({
      onImageError: () => {
        subject.directory.intercept = (): undefined => undefined;
        return subject.log.markBroken();
      },
    });
    subject.memory.fill(0, filled(BLOCK_BYTES, 7));
    const heldRead = subject.disk.hold({ operation: "read", count: 1 });
    const into = Buffer.alloc(BLOCK_BYTES);
    const read = outcome(subject.hidden.read(0, into));
    const heldExtents = subject.disk.hold({ operation: "extents", count: 1 });
    const extents = outcome(subject.hidden.extents(0, BLOCK_BYTES, 1));
    await Promise.all([heldRead.arrived(1), heldExtents.arrived(1)]);
    subject.failLog(new Error("no space"));
    await subject.copying.write(0, filled(BLOCK_BYTES, 1), Flag.Fua);
    heldRead.release();
    heldExtents.release();
    expect([await read, await extents]).to.deep.equal(["EIO", "EIO"]);
  });

  it("shows the checkpoint through random reads beside random changes", async () => {
    const random = new Random(SEED);
    const sizeBytes = 20 * BLOCK_BYTES + 77;
    const subject = await CopyingDisk.make({ sizeBytes });
    const before = Buffer.alloc(sizeBytes);
    for (let at = 0; at < sizeBytes; at += BLOCK_BYTES) {
      if (random.below(3) > 0) random.bytes(BLOCK_BYTES).copy(before, at);
    }
    for (let at = 0; at < sizeBytes; at += BLOCK_BYTES) {
      const block = before.subarray(at, at + BLOCK_BYTES);
      if (!block.equals(Buffer.alloc(block.length))) subject.memory.fill(at, block);
    }
    subject.disk.reorder({}, random, 6);
    const requests: Promise<void>[] = [];
    const range = (): [number, number] => {
      const offset = random.below(sizeBytes);
      return [offset, 1 + random.below(Math.min(3 * BLOCK_BYTES, sizeBytes - offset))];
    };
    for (let count = 0; count < 400; count++) {
      const [offset, lengthBytes] = range();
      const kind = random.below(4);
      if (kind === 0) requests.push(subject.copying.write(offset, random.bytes(lengthBytes), Flag.None));
      else if (kind === 1) requests.push(subject.copying.trim(offset, lengthBytes, Flag.None));
      else if (kind === 2) requests.push(verifyRead(subject, before, offset, lengthBytes));
      else requests.push(verifyExtents(subject, before, offset, lengthBytes));
      if (random.below(10) === 0) await turns(1);
    }
    await Promise.all(requests);
    await subject.copying.drain();
    expect((await subject.checkpoint()).equals(before)).to.equal(true);
  });
});

async function verifyRead(
  subject: CopyingDisk,
  before: Buffer,
  offset: number,
  lengthBytes: number,
): Promise<void> {
  const into = Buffer.alloc(lengthBytes);
  await subject.hidden.read(offset, into);
  expect(into.equals(before.subarray(offset, offset + lengthBytes)), `read at ${offset}`).to.equal(true);
}

async function verifyExtents(
  subject: CopyingDisk,
  before: Buffer,
  offset: number,
  lengthBytes: number,
): Promise<void> {
  let at = offset;
  for (const extent of await subject.hidden.extents(offset, lengthBytes, 5)) {
    const content = before.subarray(at, at + extent.lengthBytes);
    if (extent.zero) expect(content.equals(Buffer.alloc(content.length)), `extent at ${at}`).to.equal(true);
    at += extent.lengthBytes;
  }
  expect(at).to.be.within(offset + 1, offset + lengthBytes);
}

describe("extentsThrough", () => {
  it("comes to an end although the map never stops changing", async () => {
    const backing = new FailingDevice(new MemoryDevice(64 * BLOCK_BYTES));
    const map = new ExtentMap();
    let next = 64 * BLOCK_BYTES;
    backing.delay(
      {
        where: () => {
          // Somewhere else, and now and then right here.
          map.set(next, next + 1, next);
          next += 2;
          return false;
        },
      },
      0,
    );
    const layer = { map, backing, fetch: (): Promise<void> => Promise.resolve() };
    const extents = await extentsThrough(layer, 0, 8 * BLOCK_BYTES, 4);
    expect(extents).to.deep.equal([{ lengthBytes: 8 * BLOCK_BYTES, hole: true, zero: true }]);
  });

  it("stops where the overlay gained an extent while the device below was asked", async () => {
    const memory = new MemoryDevice(64 * BLOCK_BYTES);
    const backing = new FailingDevice(memory);
    const map = new ExtentMap();
    map.set(0, BLOCK_BYTES, 0);
    const held = backing.hold({ operation: "extents", count: 1 });
    const layer = { map, backing, fetch: (): Promise<void> => Promise.resolve() };
    const request = extentsThrough(layer, 0, 8 * BLOCK_BYTES, 4);
    await held.arrived(1);
    map.set(3 * BLOCK_BYTES, 4 * BLOCK_BYTES, 0);
    held.release();
    expect(await request).to.deep.equal([
      { lengthBytes: BLOCK_BYTES, hole: false, zero: false },
      { lengthBytes: 2 * BLOCK_BYTES, hole: true, zero: true },
    ]);
  });
});
