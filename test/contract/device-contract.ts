/**
 * What every block device must do, whatever its layer: run on each implementation, then on each wrapper
 * of one. See src/block/device.ts for the rules in words.
 *
 * A layer joins in layers.test.ts. Its device should have 256 KiB to 2 MiB, and better not a multiple of 4096.
 */
import { expect } from "chai";

import type { BlockDevice, Flags } from "../../src/block/device.js";
import { Flag } from "../../src/block/device.js";
import { DeviceError } from "../../src/errors.js";
import { Random, SEED } from "../tools/seed.js";
import { DeviceModel, expectSame, randomRange, readRange } from "./device-model.js";

export interface ContractOptions {
  /** The device checks ranges itself, takes zero-length requests and does what its info calls emulated. */
  readonly checked?: boolean;
  /** Requests in each random sequence; fewer for slow layers. Default 150. */
  readonly operations?: number;
}

export interface ContractSubject {
  readonly device: BlockDevice;
  /** Closes the device and what it stands on. */
  close(): Promise<void>;
}

const OPERATIONS_DEFAULT = 150;
const REQUEST_MAXIMUM_BYTES = 128 * 1024;

/** The contract as a mocha suite; `make` is called anew for each test. */
export function describeBlockDevice(
  title: string,
  make: () => Promise<ContractSubject>,
  options: ContractOptions = {},
): void {
  describe(`${title} as a block device`, () => {
    let subject: ContractSubject;
    let device: BlockDevice;
    let random: Random;

    beforeEach(async () => {
      subject = await make();
      ({ device } = subject);
      random = new Random(SEED);
    });

    afterEach(() => subject.close());

    it("reads at once what it reads in any case, or says that it can't", async () => {
      const content = random.bytes(8192);
      await device.write(4096, content, Flag.None);
      const into = Buffer.alloc(content.length);
      if (device.tryRead?.(4096, into) === true) expectSame(into, content, 4096, "read at once");
    });

    it("has an info that is frozen and makes sense", () => {
      const { info } = device;
      const { minimumBytes, preferredBytes, maximumBytes } = info.blockSize;
      expect(Object.isFrozen(info)).to.equal(true);
      expect(info.sizeBytes).to.be.greaterThan(0);
      for (const size of [minimumBytes, preferredBytes]) expect(Math.log2(size) % 1, `${size}`).to.equal(0);
      expect(minimumBytes).to.be.at.most(preferredBytes);
      expect(maximumBytes).to.be.at.least(preferredBytes);
      expect(maximumBytes % minimumBytes).to.equal(0);
    });

    it("holds the exact content after random writes, zeroes and trims", async () => {
      const model = await DeviceModel.of(device);
      for (let count = options.operations ?? OPERATIONS_DEFAULT; count > 0; count--)
        await randomRequest(model, random);
      await model.verify();
    });

    it("reads zeroes after all of it was zeroed", async () => {
      if (device.info.zero === "none") return expectRefused(device.zero(0, device.info.sizeBytes, Flag.None));
      const model = await DeviceModel.of(device);
      for (let count = 0; count < 10; count++) await randomWrite(model, random);
      await model.zero({ offset: 0, lengthBytes: device.info.sizeBytes }, Flag.None);
      await model.verify();
    });

    it("zeroes with each flag, or refuses fast zeroes and changes nothing", async () => {
      if (device.info.zero === "none") return expectRefused(device.zero(0, device.info.sizeBytes, Flag.None));
      const model = await DeviceModel.of(device);
      for (const flags of [Flag.NoHole, Flag.FastZero, Flag.FastZero | Flag.NoHole, fua(device)]) {
        const range = randomRange(device, random, REQUEST_MAXIMUM_BYTES);
        await model.write(range.offset, Buffer.alloc(range.lengthBytes, 0xa5), Flag.None);
        await model.zero(range, flags);
        await model.verify(undefined, `flags ${flags}`);
      }
    });

    it("is stable where it was trimmed", async () => {
      if (device.info.trim === "none") return expectRefused(device.trim(0, device.info.sizeBytes, Flag.None));
      const model = await DeviceModel.of(device);
      for (let count = 0; count < 10; count++) {
        await randomWrite(model, random);
        await model.trim(randomRange(device, random, REQUEST_MAXIMUM_BYTES), fua(device));
        await model.verify();
      }
    });

    it("describes its allocation contiguously, and what it calls zero is zero", async () => {
      if (device.info.extents === "none") return expectRefused(device.extents(0, device.info.sizeBytes, 1));
      const model = await DeviceModel.of(device);
      const all = { offset: 0, lengthBytes: device.info.sizeBytes };
      for (let round = 0; round < 5; round++) {
        for (let count = 0; count < 8; count++) await randomRequest(model, random);
        for (const maxExtents of [1, 2, 1000]) await model.verifyExtents(all, maxExtents);
        await model.verifyExtents(randomRange(device, random, REQUEST_MAXIMUM_BYTES), 1 + random.below(5));
      }
    });

    it("does not call data a hole", async () => {
      if (device.info.extents === "none") return expectRefused(device.extents(0, device.info.sizeBytes, 1));
      const model = await DeviceModel.of(device);
      const range = randomRange(device, random, REQUEST_MAXIMUM_BYTES);
      await model.write(range.offset, Buffer.alloc(range.lengthBytes, 0x5a), Flag.None);
      const extents = await model.verifyExtents(range, 1000);
      expect(extents.filter(({ hole, zero }) => hole || zero)).to.deep.equal([]);
    });

    it("does concurrent requests for neighbouring ranges without loss", async () => {
      const model = await DeviceModel.of(device);
      for (let round = 0; round < 4; round++) {
        const requests: Promise<void>[] = [];
        for (const { offset, lengthBytes } of neighbours(device, random)) {
          const kind = random.below(3);
          if (kind === 0) requests.push(model.write(offset, random.bytes(lengthBytes), Flag.None));
          else if (kind === 1 && device.info.zero !== "none")
            requests.push(model.zero({ offset, lengthBytes }, Flag.None));
          else requests.push(model.verify({ offset, lengthBytes }, "read beside writes"));
        }
        await Promise.all(requests);
        await model.verify();
      }
    });

    it("leaves each byte as one of two overlapping writes left it", async () => {
      const { offset, lengthBytes } = randomRange(device, random, REQUEST_MAXIMUM_BYTES);
      const unit = device.info.blockSize.minimumBytes;
      const partBytes = Math.min(lengthBytes, Math.ceil(lengthBytes / unit / 2) * unit);
      await device.write(offset, Buffer.alloc(lengthBytes, 1), Flag.None);
      await Promise.all([
        device.write(offset, Buffer.alloc(lengthBytes, 2), Flag.None),
        device.write(offset, Buffer.alloc(partBytes, 3), Flag.None),
      ]);
      const content = await readRange(device, offset, lengthBytes);
      expect(content.every((byte) => byte === 2 || byte === 3)).to.equal(true);
    });

    it("neither changes the caller's buffers nor keeps them", async () => {
      const { offset, lengthBytes } = randomRange(device, random, REQUEST_MAXIMUM_BYTES);
      const original = random.bytes(lengthBytes);
      const lent = Buffer.from(original);
      await device.write(offset, lent, Flag.None);
      expectSame(lent, original, 0, "buffer after the write");
      lent.fill(0xee);
      const around = Buffer.alloc(lengthBytes + 2, 0x77);
      await device.read(offset, around.subarray(1, 1 + lengthBytes));
      expectSame(around.subarray(1, 1 + lengthBytes), original, offset, "content after scribbling");
      expect([around[0], around.at(-1)], "bytes around the read").to.deep.equal([0x77, 0x77]);
      const kept = Buffer.from(around);
      await device.write(offset, Buffer.alloc(lengthBytes, 1), Flag.None);
      expectSame(around, kept, 0, "buffer of an earlier read");
    });

    it("keeps content over flushes and durable writes", async () => {
      const model = await DeviceModel.of(device);
      await device.flush();
      for (let count = 0; count < 3; count++) {
        const { offset, lengthBytes } = randomRange(device, random, REQUEST_MAXIMUM_BYTES);
        await Promise.all([model.write(offset, random.bytes(lengthBytes), fua(device)), device.flush()]);
      }
      await Promise.all([device.flush(), device.flush(), device.flush()]);
      await model.verify();
    });

    it("reads and writes its last block, which may be partial", async () => {
      const { sizeBytes, blockSize } = device.info;
      const model = await DeviceModel.of(device);
      for (const unit of [blockSize.minimumBytes, Math.max(blockSize.minimumBytes, 4096)]) {
        const offset = sizeBytes - (sizeBytes % unit === 0 ? unit : sizeBytes % unit);
        await model.write(offset, Buffer.alloc(sizeBytes - offset, unit & 0xff || 0x42), Flag.None);
        if (device.info.zero !== "none") {
          await model.verify({ offset, lengthBytes: sizeBytes - offset });
          await model.zero({ offset, lengthBytes: sizeBytes - offset }, Flag.None);
        }
        await model.verify();
      }
    });

    if (options.checked === true) describeChecking(() => device);
  });
}

/** What checked() adds: every request may come, and only right ones go on. */
function describeChecking(subject: () => BlockDevice): void {
  it("refuses requests outside of it, and changes nothing", async () => {
    const device = subject();
    const { sizeBytes } = device.info;
    const model = await DeviceModel.of(device);
    const outside: [number, number][] = [
      [sizeBytes, 1],
      [sizeBytes - 1, 2],
      [0, sizeBytes + 1],
      [Number.MAX_SAFE_INTEGER, 1],
    ];
    for (const [offset, lengthBytes] of outside) {
      const payload = Buffer.alloc(lengthBytes, 1);
      await expectRefused(device.read(offset, payload), "EINVAL");
      await expectRefused(device.write(offset, payload, Flag.None), lengthErrno(offset));
      await expectRefused(device.zero(offset, lengthBytes, Flag.None), lengthErrno(offset));
      await expectRefused(device.trim(offset, lengthBytes, Flag.None), "EINVAL");
      await expectRefused(device.extents(offset, lengthBytes, 1), "EINVAL");
    }
    await expectRefused(device.read(-1, Buffer.alloc(1)), "EINVAL");
    await expectRefused(device.write(0.5, Buffer.alloc(1), Flag.None), "EINVAL");
    await expectRefused(device.extents(0, 1, 0), "EINVAL");
    await model.verify();
  });

  it("takes requests of no length", async () => {
    const device = subject();
    for (const offset of [0, 1, device.info.sizeBytes]) {
      await device.read(offset, Buffer.alloc(0));
      await device.write(offset, Buffer.alloc(0), Flag.Fua);
      await device.zero(offset, 0, Flag.None);
      await device.trim(offset, 0, Flag.None);
    }
  });

  it("has every capability and no alignment", () => {
    const { blockSize, trim, zero, fua: durable, extents } = subject().info;
    expect(blockSize.minimumBytes).to.equal(1);
    expect([trim, zero, durable, extents]).to.not.include("none");
  });
}

/** Past the end of a disk there is no space; any offset that is an integer counts as past it. */
function lengthErrno(offset: number): string {
  return Number.isSafeInteger(offset) ? "ENOSPC" : "EINVAL";
}

async function expectRefused(request: Promise<unknown>, errno = "ENOTSUP"): Promise<void> {
  const error = await request.then(
    () => "not refused",
    (reason: unknown) => reason,
  );
  expect(error).to.be.instanceOf(DeviceError).and.have.property("errno", errno);
}

/** Flag.Fua where the device takes it. */
function fua(device: BlockDevice): Flags {
  return device.info.fua === "none" ? Flag.None : Flag.Fua;
}

async function randomWrite(model: DeviceModel, random: Random): Promise<void> {
  const { offset, lengthBytes } = randomRange(model.device, random, REQUEST_MAXIMUM_BYTES);
  const flags = random.below(10) === 0 ? fua(model.device) : Flag.None;
  await model.write(offset, random.bytes(lengthBytes), flags);
}

async function randomRequest(model: DeviceModel, random: Random): Promise<void> {
  const { device } = model;
  const range = randomRange(device, random, REQUEST_MAXIMUM_BYTES);
  const kind = random.below(10);
  if (kind === 0) await model.verify(range);
  else if (kind === 1 && device.info.trim !== "none") await model.trim(range, Flag.None);
  else if (kind <= 3 && device.info.zero !== "none") await model.zero(range, zeroFlags(device, random));
  else if (kind === 4) await device.flush();
  else await randomWrite(model, random);
}

function zeroFlags(device: BlockDevice, random: Random): Flags {
  const noHole = random.oneOf([Flag.None, Flag.NoHole]);
  const fast = random.oneOf([Flag.None, Flag.None, Flag.FastZero]);
  return noHole | fast | random.oneOf([Flag.None, Flag.None, Flag.None, fua(device)]);
}

/** Adjoining ranges, shorter than any block where the device takes that. */
function neighbours(device: BlockDevice, random: Random): { offset: number; lengthBytes: number }[] {
  const { sizeBytes, blockSize } = device.info;
  const unit = blockSize.minimumBytes;
  const blocks = Math.floor(sizeBytes / unit);
  const ranges = [];
  let at = random.below(Math.max(1, blocks - 2000)) * unit;
  while (ranges.length < 24 && at < sizeBytes) {
    const lengthBytes = Math.min(sizeBytes - at, (1 + random.below(unit === 1 ? 300 : 3)) * unit);
    ranges.push({ offset: at, lengthBytes });
    at += lengthBytes;
  }
  return ranges;
}
