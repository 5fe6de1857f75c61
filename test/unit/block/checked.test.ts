import { expect } from "chai";

import { checked } from "../../../src/block/checked.js";
import type { BlockDevice, BlockSize } from "../../../src/block/device.js";
import { Flag } from "../../../src/block/device.js";
import { ConfigError, errnoOf } from "../../../src/errors.js";
import { FailingDevice } from "../../tools/failing-device.js";
import type { MemoryDeviceOptions } from "../../tools/memory-device.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { deviceErrorOf } from "../../tools/outcome.js";

const SIZE_BYTES = 64 * 1024;
const BLOCK_BYTES = 4096;

interface Subject {
  readonly memory: MemoryDevice;
  readonly below: FailingDevice;
  readonly device: BlockDevice;
}

function make(options: MemoryDeviceOptions = {}, sizeBytes = SIZE_BYTES): Subject {
  const memory = new MemoryDevice(sizeBytes, options);
  const below = new FailingDevice(memory);
  return { memory, below, device: checked(below) };
}

/** What reached the layer below, in words. */
function requests({ below }: Subject): string[] {
  const flagsOf = (flags: number): string => (flags === Flag.None ? "" : ` flags ${flags}`);
  return below.log.map(
    ({ operation, offset, lengthBytes, flags }) => `${operation} ${offset}+${lengthBytes}${flagsOf(flags)}`,
  );
}

function errno(request: Promise<unknown>): Promise<string> {
  return request.then(
    () => "done",
    (error: unknown) => errnoOf(error),
  );
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe("checked", () => {
  it("returns the next layer's own promise where there is nothing to do", () => {
    const next = new MemoryDevice(SIZE_BYTES);
    const promises = { read: Promise.resolve(), write: Promise.resolve(), flush: Promise.resolve() };
    next.read = (): Promise<void> => promises.read;
    next.write = (): Promise<void> => promises.write;
    next.flush = (): Promise<void> => promises.flush;
    const device = checked(next);
    expect(device.read(1, Buffer.alloc(7))).to.equal(promises.read);
    expect(device.write(1, Buffer.alloc(7), Flag.Fua)).to.equal(promises.write);
    expect(device.flush()).to.equal(promises.flush);
  });

  it("reads at once what the next layer has in memory, and nothing outside", async () => {
    const { memory, device } = make();
    await memory.write(100, Buffer.alloc(50, 7), Flag.None);
    const into = Buffer.alloc(50);
    expect(device.tryRead?.(100, into)).to.equal(true);
    expect(into).to.deep.equal(Buffer.alloc(50, 7));
    expect(device.tryRead?.(SIZE_BYTES - 49, into)).to.equal(false);
    expect(device.tryRead?.(-1, into)).to.equal(false);
  });

  it("refuses a device with block sizes that no request can be made to fit, naming the size", () => {
    const sized = (blockSize: Partial<BlockSize>): BlockDevice => {
      const device = new MemoryDevice(SIZE_BYTES);
      const { info } = device;
      return Object.assign(device, { info: { ...info, blockSize: { ...info.blockSize, ...blockSize } } });
    };
    const wrong: [Partial<BlockSize>, string][] = [
      [{ minimumBytes: 0 }, "its minimum block size is to be a power of two, not 0"],
      [{ minimumBytes: 0.5 }, "its minimum block size is to be a power of two, not 0.5"],
      [{ minimumBytes: 768 }, "its minimum block size is to be a power of two, not 768"],
      [{ preferredBytes: 5000 }, "its preferred block size is to be a power of two, not 5000"],
      ...[0, -1, NaN, 1000.5].map((maximumBytes): [Partial<BlockSize>, string] => [
        { maximumBytes },
        `its maximum block size is to be a number of bytes, 1 or more, not ${maximumBytes}`,
      ]),
      [
        { minimumBytes: 512, maximumBytes: 511 },
        "its maximum block size is to be a number of bytes, 512 or more, not 511",
      ],
    ];
    for (const [blockSize, mistake] of wrong) {
      expect(() => checked(sized(blockSize)))
        .to.throw(ConfigError, `a device can't be used: ${mistake}`)
        .with.property("code", "bad-block-size");
    }
    expect(checked(sized({ maximumBytes: Infinity })).info.blockSize.maximumBytes).to.equal(Infinity);
  });

  it("says what it emulates", () => {
    const { info } = make({
      trim: "none",
      zero: "none",
      fua: "emulated",
      minimumBytes: 512,
      maximumBytes: 8192,
    }).device;
    expect(info).to.deep.include({ trim: "emulated", zero: "emulated", fua: "emulated", extents: "native" });
    expect(info.blockSize).to.deep.equal({
      minimumBytes: 1,
      preferredBytes: 4096,
      maximumBytes: 32 * 1024 * 1024,
    });
  });

  it("refuses to tell no extents at all, naming the number", async () => {
    const { device } = make();
    for (const count of [0, -1, NaN]) {
      const error = await deviceErrorOf(device.extents(0, 10, count));
      expect(error.errno).to.equal("EINVAL");
      expect(error.message).to.equal(`one extent is to be asked for at least, not ${count}`);
    }
  });

  it("refuses to change a read-only device, even where a request has no length", async () => {
    const subject = make({ writable: false });
    const { device } = subject;
    expect(await errno(device.write(0, Buffer.alloc(1), Flag.None))).to.equal("EPERM");
    expect(await errno(device.zero(0, 0, Flag.None))).to.equal("EPERM");
    expect(await errno(device.trim(0, 1, Flag.None))).to.equal("EPERM");
    await device.flush();
    expect(requests(subject)).to.deep.equal(["flush 0+0"]);
  });

  it("splits payloads that are too long for the layer", async () => {
    const subject = make({ maximumBytes: 1000 });
    const payload = Buffer.from(Array.from({ length: 2500 }, (_, index) => index % 251));
    await subject.device.write(10, payload, Flag.Fua);
    const back = Buffer.alloc(2500);
    await subject.device.read(10, back);
    expect(back).to.deep.equal(payload);
    expect(requests(subject)).to.deep.equal([
      "write 10+1000 flags 1",
      "write 1010+1000 flags 1",
      "write 2010+500 flags 1",
      "read 10+1000",
      "read 1010+1000",
      "read 2010+500",
    ]);
  });

  it("tells at which of the pieces it failed, where the layer tells nothing more exact", async () => {
    const offsetOf = async (request: Promise<unknown>): Promise<number | null> =>
      (await deviceErrorOf(request)).offset;
    for (const minimumBytes of [1, BLOCK_BYTES]) {
      const { below, device } = make({ maximumBytes: 8192, minimumBytes, zero: "none" });
      const at = 16_384;
      const bad = { offset: at, lengthBytes: 1 };
      for (const [told, expected] of [
        [null, at],
        [at + 100, at + 100],
      ] as const) {
        const rule = below.fail(bad, "EIO", told);
        expect(await offsetOf(device.read(0, Buffer.alloc(SIZE_BYTES)))).to.equal(expected);
        expect(await offsetOf(device.write(0, Buffer.alloc(SIZE_BYTES), Flag.None))).to.equal(expected);
        expect(await offsetOf(device.zero(0, SIZE_BYTES, Flag.None))).to.equal(expected);
        rule.remove();
      }
      below.fail(bad, "EIO");
      expect(await offsetOf(device.read(at, Buffer.alloc(BLOCK_BYTES)))).to.equal(null);
    }
  });

  it("tells which block at its ends a request failed at", async () => {
    const { below, device } = make({ minimumBytes: BLOCK_BYTES });
    const lengthBytes = 2 * BLOCK_BYTES;
    for (const [operation, request] of [
      ["read", () => device.read(100, Buffer.alloc(lengthBytes))],
      ["read", () => device.write(100, Buffer.alloc(lengthBytes), Flag.None)],
      ["write", () => device.write(100, Buffer.alloc(lengthBytes), Flag.None)],
      ["write", () => device.zero(100, lengthBytes, Flag.None)],
    ] as const) {
      for (const [bad, expected] of [
        [0, 100],
        [lengthBytes, lengthBytes],
      ] as const) {
        const rule = below.fail({ operation, offset: bad, lengthBytes: 1 }, "EIO");
        expect((await deviceErrorOf(request())).offset).to.equal(expected);
        rule.remove();
      }
    }
  });

  it("flushes after a durable request where the layer has no FUA, and only once", async () => {
    const subject = make({ fua: "none", maximumBytes: 1000 });
    await subject.device.write(0, Buffer.alloc(1500), Flag.Fua);
    await subject.device.zero(0, 10, Flag.Fua | Flag.NoHole);
    await subject.device.trim(0, 10, Flag.Fua);
    expect(requests(subject)).to.deep.equal([
      "write 0+1000",
      "write 1000+500",
      "flush 0+0",
      `zero 0+10 flags ${Flag.NoHole}`,
      "flush 0+0",
      "trim 0+10",
      "flush 0+0",
    ]);
  });

  it("flushes after durable zeroes that had to be written, where the layer has no FUA", async () => {
    const subject = make({ fua: "none", zero: "none" });
    await subject.device.zero(0, 10, Flag.Fua);
    expect(requests(subject)).to.deep.equal(["write 0+10", "flush 0+0"]);
  });

  it("fails a durable request when the flush fails", async () => {
    const { below, device } = make({ fua: "none" });
    below.fail({ operation: "flush" });
    expect(await errno(device.write(0, Buffer.alloc(5), Flag.Fua))).to.equal("EIO");
  });

  it("writes zeroes where the layer can't zero, but not when they should be fast", async () => {
    const subject = make({ zero: "none", maximumBytes: 8192 });
    subject.memory.fill(0, Buffer.alloc(SIZE_BYTES, 1));
    expect(await errno(subject.device.zero(100, 20000, Flag.FastZero))).to.equal("ENOTSUP");
    expect(requests(subject)).to.deep.equal([]);
    await subject.device.zero(100, 20000, Flag.NoHole);
    expect(requests(subject)).to.deep.equal(["write 100+8092", "write 8192+8192", "write 16384+3716"]);
    const expected = Buffer.alloc(SIZE_BYTES, 1).fill(0, 100, 20100);
    expect(subject.memory.contents().equals(expected)).to.equal(true);
  });

  it("answers trims and extents that the layer lacks without asking it", async () => {
    const subject = make({ trim: "none", extents: "none" });
    await subject.device.trim(0, 5000, Flag.Fua);
    expect(await subject.device.extents(7, 5000, 3)).to.deep.equal([
      { lengthBytes: 5000, hole: false, zero: false },
    ]);
    expect(requests(subject)).to.deep.equal([]);
  });

  describe("over a layer with blocks", () => {
    it("passes whole blocks on as they are", async () => {
      const subject = make({ minimumBytes: BLOCK_BYTES });
      await subject.device.write(BLOCK_BYTES, Buffer.alloc(2 * BLOCK_BYTES), Flag.Fua);
      await subject.device.read(0, Buffer.alloc(BLOCK_BYTES));
      await subject.device.zero(0, SIZE_BYTES, Flag.NoHole);
      expect(requests(subject)).to.deep.equal([
        "write 4096+8192 flags 1",
        "read 0+4096",
        `zero 0+65536 flags ${Flag.NoHole}`,
      ]);
    });

    it("reads, changes and writes the blocks at the ends only", async () => {
      const subject = make({ minimumBytes: BLOCK_BYTES });
      await subject.device.write(4000, Buffer.alloc(9000, 3), Flag.None);
      expect(requests(subject)).to.deep.equal([
        "read 0+4096",
        "write 0+4096",
        "write 4096+8192",
        "read 12288+4096",
        "write 12288+4096",
      ]);
      expect(subject.memory.contents(3999, 9002)).to.deep.equal(
        Buffer.from([0, ...Buffer.alloc(9000, 3), 0]),
      );
    });

    it("takes the device's partial last block as a whole one", async () => {
      const subject = make({ minimumBytes: BLOCK_BYTES }, SIZE_BYTES + 100);
      await subject.device.write(SIZE_BYTES, Buffer.alloc(100, 5), Flag.None);
      await subject.device.write(SIZE_BYTES + 1, Buffer.alloc(99, 6), Flag.None);
      expect(requests(subject)).to.deep.equal(["write 65536+100", "read 65536+100", "write 65536+100"]);
      expect(subject.memory.contents(SIZE_BYTES, 100)).to.deep.equal(
        Buffer.from([5, ...Buffer.alloc(99, 6)]),
      );
    });

    it("reads all before a partial last block that the layer refuses, and tells where that begins", async () => {
      const subject = make({ minimumBytes: BLOCK_BYTES }, SIZE_BYTES + 100);
      const [start, readBytes] = [SIZE_BYTES - BLOCK_BYTES - 100, BLOCK_BYTES + 100];
      subject.memory.fill(start, Buffer.alloc(readBytes + 100, 5));
      subject.below.fail({ operation: "read", offset: SIZE_BYTES, lengthBytes: 100 }, "EINVAL");
      const into = Buffer.alloc(readBytes + 100);
      const error = await deviceErrorOf(subject.device.read(start, into));
      expect(error).to.include({ errno: "EINVAL", offset: SIZE_BYTES });
      expect(into.subarray(0, readBytes)).to.deep.equal(Buffer.alloc(readBytes, 5));
    });

    it("loses neither of two concurrent writes in one block", async () => {
      const { memory, below, device } = make({ minimumBytes: BLOCK_BYTES });
      const held = below.hold({ operation: "write", count: 1 });
      const writes = [
        device.write(0, Buffer.from([1]), Flag.None),
        device.write(1, Buffer.from([2]), Flag.None),
      ];
      await held.arrived(1);
      await turn();
      held.release();
      await Promise.all(writes);
      expect(memory.contents(0, 3)).to.deep.equal(Buffer.from([1, 2, 0]));
    });

    it("does not put old bytes over a whole block written meanwhile", async () => {
      const { memory, below, device } = make({ minimumBytes: BLOCK_BYTES });
      const held = below.hold({ operation: "write", count: 1 });
      const part = device.write(0, Buffer.from([1]), Flag.None);
      await held.arrived(1);
      const whole = device.write(0, Buffer.alloc(BLOCK_BYTES, 2), Flag.None);
      await turn();
      held.release();
      await Promise.all([part, whole]);
      expect(memory.contents(1, BLOCK_BYTES - 1).equals(Buffer.alloc(BLOCK_BYTES - 1, 2))).to.equal(true);
    });

    it("lets go of a block when its request fails", async () => {
      const { below, device } = make({ minimumBytes: BLOCK_BYTES });
      below.fail({ operation: "read", count: 1 }, "ENOMEM");
      const writes = [1, 2].map((offset) => errno(device.write(offset, Buffer.from([1]), Flag.None)));
      expect(await Promise.all(writes)).to.deep.equal(["ENOMEM", "done"]);
    });

    it("lets go of a block when the layer throws instead of rejecting", async () => {
      const memory = new MemoryDevice(SIZE_BYTES, { minimumBytes: BLOCK_BYTES });
      const device = checked(memory);
      const write = memory.write.bind(memory);
      memory.write = () => {
        memory.write = write;
        throw new Error("thrown");
      };
      const block = Buffer.alloc(BLOCK_BYTES);
      const thrown = async (): Promise<void> => device.write(0, block, Flag.None);
      expect(await errno(thrown())).to.equal("EIO");
      expect(await errno(device.write(1, Buffer.from([1]), Flag.None))).to.equal("done");
    });

    it("takes any bytes for a write inside of a block, a plain Uint8Array too", async () => {
      const { memory, device } = make({ minimumBytes: BLOCK_BYTES });
      await device.write(1, Uint8Array.of(1, 2) as Buffer, Flag.None);
      expect(memory.contents(0, 4)).to.deep.equal(Buffer.from([0, 1, 2, 0]));
    });

    it("trims the whole blocks of a range only", async () => {
      const subject = make({ minimumBytes: BLOCK_BYTES });
      await subject.device.trim(1, 2 * BLOCK_BYTES, Flag.None);
      await subject.device.trim(1, BLOCK_BYTES, Flag.None);
      expect(requests(subject)).to.deep.equal(["trim 4096+4096"]);
    });

    it("zeroes fast or changes nothing", async () => {
      const subject = make({ minimumBytes: BLOCK_BYTES });
      subject.memory.fill(0, Buffer.alloc(SIZE_BYTES, 1));
      subject.below.fail(
        { operation: "zero", where: ({ flags }) => (flags & Flag.FastZero) !== 0 },
        "ENOTSUP",
      );
      expect(await errno(subject.device.zero(5, 3 * BLOCK_BYTES, Flag.FastZero))).to.equal("ENOTSUP");
      expect(await errno(subject.device.zero(5, 10, Flag.FastZero)), "inside a block").to.equal("ENOTSUP");
      expect(subject.memory.contents().equals(Buffer.alloc(SIZE_BYTES, 1))).to.equal(true);
    });

    it("clips extents to the range that was asked for", async () => {
      const { memory, device } = make({ minimumBytes: BLOCK_BYTES });
      memory.fill(BLOCK_BYTES, Buffer.alloc(BLOCK_BYTES, 1));
      expect(await device.extents(4000, 5000, 10)).to.deep.equal([
        { lengthBytes: 96, hole: true, zero: true },
        { lengthBytes: 4096, hole: false, zero: false },
        { lengthBytes: 808, hole: true, zero: true },
      ]);
    });

    it("tells of the block at hand, as data, where the only extent that it may ask for ends before the range", async () => {
      const { memory, device } = make({ minimumBytes: 2 * BLOCK_BYTES });
      memory.fill(BLOCK_BYTES, Buffer.alloc(BLOCK_BYTES, 1));
      const data = { hole: false, zero: false };
      expect(await device.extents(5000, 10_000, 1)).to.deep.equal([{ lengthBytes: 3192, ...data }]);
      expect(await device.extents(5000, 100, 1)).to.deep.equal([{ lengthBytes: 100, ...data }]);
    });
  });
});
