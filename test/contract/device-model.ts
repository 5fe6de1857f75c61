/**
 * What a block device must hold: a plain buffer beside it that takes the same requests.
 *
 * After a trim the content is undefined but stable: the model reads it once and holds the device to it.
 */
import { expect } from "chai";

import type { BlockDevice, Extent, Flags } from "../../src/block/device.js";
import { Flag } from "../../src/block/device.js";
import { DeviceError } from "../../src/errors.js";
import type { Random } from "../tools/seed.js";

/** A range of a device that it will take: aligned to its minimum block size. */
export interface Range {
  readonly offset: number;
  readonly lengthBytes: number;
}

/** Reads a range of any length in pieces that the device takes. */
export async function readRange(device: BlockDevice, offset: number, lengthBytes: number): Promise<Buffer> {
  const content = Buffer.alloc(lengthBytes);
  const pieceBytes = device.info.blockSize.maximumBytes;
  for (let at = 0; at < lengthBytes; at += pieceBytes) {
    await device.read(offset + at, content.subarray(at, at + pieceBytes));
  }
  return content;
}

/** A random aligned range of at least a block, now and then one that ends at the device's end. */
export function randomRange(device: BlockDevice, random: Random, maximumBytes: number): Range {
  const { sizeBytes, blockSize } = device.info;
  const unit = blockSize.minimumBytes;
  const blocks = Math.ceil(sizeBytes / unit);
  const longest = Math.max(
    1,
    Math.min(blocks, Math.floor(Math.min(maximumBytes, blockSize.maximumBytes) / unit)),
  );
  const count = 1 + random.below(random.oneOf([1, Math.min(8, longest), longest]));
  const first = random.below(8) === 0 ? blocks - count : random.below(blocks - count + 1);
  const offset = first * unit;
  return { offset, lengthBytes: Math.min(sizeBytes, offset + count * unit) - offset };
}

/** Compares without printing a megabyte: the first difference says enough. */
export function expectSame(actual: Buffer, expected: Buffer, offset: number, what: string): void {
  if (actual.equals(expected)) return;
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  const message = `${what}: byte ${offset + at} is ${String(actual[at])}, not ${String(expected[at])}`;
  expect.fail(message);
}

export class DeviceModel {
  readonly device: BlockDevice;
  readonly content: Buffer;

  private constructor(device: BlockDevice, content: Buffer) {
    this.device = device;
    this.content = content;
  }

  /** Begins with what the device holds now. */
  static async of(device: BlockDevice): Promise<DeviceModel> {
    return new DeviceModel(device, await readRange(device, 0, device.info.sizeBytes));
  }

  async write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    await this.device.write(offset, from, flags);
    from.copy(this.content, offset);
  }

  /** Where Flag.FastZero is refused, nothing may have changed: the model leaves its content alone. */
  async zero({ offset, lengthBytes }: Range, flags: Flags): Promise<void> {
    try {
      await this.device.zero(offset, lengthBytes, flags);
    } catch (error) {
      const refused = error instanceof DeviceError && error.errno === "ENOTSUP";
      if (!refused || (flags & Flag.FastZero) === 0) throw error;
      return;
    }
    this.content.fill(0, offset, offset + lengthBytes);
  }

  async trim({ offset, lengthBytes }: Range, flags: Flags): Promise<void> {
    await this.device.trim(offset, lengthBytes, flags);
    (await readRange(this.device, offset, lengthBytes)).copy(this.content, offset);
  }

  async verify(
    range: Range = { offset: 0, lengthBytes: this.content.length },
    what = "content",
  ): Promise<void> {
    const { offset, lengthBytes } = range;
    const expected = this.content.subarray(offset, offset + lengthBytes);
    expectSame(await readRange(this.device, offset, lengthBytes), expected, offset, what);
  }

  /** Walks a range by its extents; what they call zero must be zero. */
  async verifyExtents({ offset, lengthBytes }: Range, maxExtents: number): Promise<Extent[]> {
    const all: Extent[] = [];
    let at = offset;
    const end = offset + lengthBytes;
    while (at < end) {
      const extents = await this.device.extents(at, end - at, maxExtents);
      expect(extents.length, "extents at once").to.be.within(1, maxExtents);
      for (const extent of extents) {
        expect(extent.lengthBytes, `extent at ${at}`).to.be.within(1, end - at);
        if (extent.zero) {
          const content = this.content.subarray(at, at + extent.lengthBytes);
          expectSame(content, Buffer.alloc(extent.lengthBytes), at, "extent that is said to be zero");
        }
        at += extent.lengthBytes;
        all.push(extent);
      }
    }
    return all;
  }
}
