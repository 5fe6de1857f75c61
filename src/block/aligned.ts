/**
 * Read-modify-write: any offset and length over a device that takes whole blocks only.
 *
 * Invariants:
 * - Who changes part of a block reads it, changes it and writes it back while it holds the block exclusively;
 *   who changes whole blocks holds them shared. So no change in between is lost, and whole-block
 *   requests never wait for each other.
 * - The device's last block may be partial; its end counts as aligned. It is read by itself: a layer may refuse it, and what is before
 *   it can be had then.
 *
 * checked() uses this, and only where the minimum block size is not 1. Ranges were checked before.
 */
import type { BlockDevice, DeviceInfo, Extent, Flags } from "./device.js";
import { Flag } from "./device.js";
import type { RangeHold, RangeLockMode } from "./range-lock.js";
import { RangeLock } from "./range-lock.js";
import { DeviceError, failedAt } from "../errors.js";

export class AlignedDevice implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #next: BlockDevice;
  readonly #blockBytes: number;
  readonly #lock = new RangeLock();

  constructor(next: BlockDevice) {
    this.#next = next;
    this.#blockBytes = next.info.blockSize.minimumBytes;
    this.info = Object.freeze({
      ...next.info,
      blockSize: Object.freeze({ ...next.info.blockSize, minimumBytes: 1 }),
    });
  }

  read(offset: number, into: Buffer): Promise<void> {
    const partialAt = this.#blockStart(this.info.sizeBytes);
    if (offset < partialAt && offset + into.length > partialAt) {
      return this.read(offset, into.subarray(0, partialAt - offset)).then(() =>
        this.read(partialAt, into.subarray(partialAt - offset)).catch(failedAt(partialAt)),
      );
    }
    return this.#isAligned(offset, into.length)
      ? this.#next.read(offset, into)
      : this.#readParts(offset, into);
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    if (!this.#isAligned(offset, from.length)) {
      return this.#locked("exclusive", offset, from.length, () => this.#writeParts(offset, from, flags));
    }
    return this.#locked("shared", offset, from.length, () => this.#next.write(offset, from, flags));
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    if (!this.#isAligned(offset, lengthBytes)) {
      return this.#locked("exclusive", offset, lengthBytes, () =>
        this.#zeroParts(offset, lengthBytes, flags),
      );
    }
    return this.#locked("shared", offset, lengthBytes, () => this.#next.zero(offset, lengthBytes, flags));
  }

  /** Trims the whole blocks in the range; the rest keeps its content, which is as good as any. */
  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    const start = this.#blockEnd(offset);
    const end = this.#wholeEnd(offset + lengthBytes);
    if (start >= end) return Promise.resolve();
    return this.#locked("shared", start, end - start, () => this.#next.trim(start, end - start, flags));
  }

  flush(): Promise<void> {
    return this.#next.flush();
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    if (this.#isAligned(offset, lengthBytes)) return this.#next.extents(offset, lengthBytes, maxExtents);
    return this.#clippedExtents(offset, lengthBytes, maxExtents);
  }

  close(): Promise<void> {
    return this.#next.close();
  }

  async #clippedExtents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    const start = this.#blockStart(offset);
    const end = offset + lengthBytes;
    const extents: Extent[] = [];
    let at = start;
    for (const extent of await this.#next.extents(start, this.#blockEnd(end) - start, maxExtents)) {
      const next = at + extent.lengthBytes;
      const clipped = Math.min(next, end) - Math.max(at, offset);
      if (clipped > 0) extents.push({ ...extent, lengthBytes: clipped });
      at = next;
    }
    // An extent may end inside of a block, before the range. Data is never wrong, and the caller gets on.
    if (extents.length === 0) {
      extents.push({
        lengthBytes: Math.min(this.#blockEnd(offset + 1), end) - offset,
        hole: false,
        zero: false,
      });
    }
    return extents;
  }

  /** Reads at most one block before, the whole blocks in place, and one block after. */
  async #readParts(offset: number, into: Buffer): Promise<void> {
    for (const [at, end] of this.#parts(offset, into.length)) {
      const part = into.subarray(at - offset, end - offset);
      if (this.#isAligned(at, end - at)) await this.#next.read(at, part).catch(failedAt(at));
      else (await this.#readBlock(at)).copy(part, 0, at - this.#blockStart(at));
    }
  }

  async #writeParts(offset: number, from: Buffer, flags: Flags): Promise<void> {
    for (const [at, end] of this.#parts(offset, from.length)) {
      const part = from.subarray(at - offset, end - offset);
      if (this.#isAligned(at, end - at)) {
        await this.#next.write(at, part, flags).catch(failedAt(at));
      } else {
        const block = await this.#readBlock(at);
        block.set(part, at - this.#blockStart(at));
        await this.#writeBlock(at, block, flags);
      }
    }
  }

  /** The whole blocks first: if the layer has no fast zero, nothing has been changed yet. */
  async #zeroParts(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    const parts = this.#parts(offset, lengthBytes);
    const whole = parts.find(([at, end]) => this.#isAligned(at, end - at));
    if (whole !== undefined) await this.#next.zero(whole[0], whole[1] - whole[0], flags);
    else if ((flags & Flag.FastZero) !== 0) throw new DeviceError("ENOTSUP", "no whole block to zero fast");
    for (const part of parts) {
      if (part === whole) continue;
      const [at, end] = part;
      const block = await this.#readBlock(at);
      block.fill(0, at - this.#blockStart(at), end - this.#blockStart(at));
      await this.#writeBlock(at, block, flags & Flag.Fua);
    }
  }

  /** Cuts a range into [start, end) parts: at most one run of whole blocks, and parts of a block beside it. */
  #parts(offset: number, lengthBytes: number): (readonly [number, number])[] {
    const end = offset + lengthBytes;
    const wholeStart = Math.min(end, this.#blockEnd(offset));
    const wholeEnd = Math.max(wholeStart, this.#wholeEnd(end));
    const parts = [[offset, wholeStart] as const, [wholeStart, wholeEnd] as const, [wholeEnd, end] as const];
    return parts.filter(([from, to]) => from < to);
  }

  /** The whole block that the offset is in. */
  async #readBlock(offset: number): Promise<Buffer> {
    const start = this.#blockStart(offset);
    const block = Buffer.allocUnsafe(this.#blockEnd(start + 1) - start);
    await this.#next.read(start, block).catch(failedAt(offset));
    return block;
  }

  #writeBlock(offset: number, block: Buffer, flags: Flags): Promise<void> {
    return this.#next.write(this.#blockStart(offset), block, flags).catch(failedAt(offset));
  }

  #locked(mode: RangeLockMode, offset: number, lengthBytes: number, run: () => Promise<void>): Promise<void> {
    const start = this.#blockStart(offset);
    const end = this.#blockEnd(offset + lengthBytes);
    const hold = this.#lock.tryLock(start, end, mode);
    if (hold !== null) return releasing(hold, run);
    return this.#lock.lock(start, end, mode).then((later) => releasing(later, run));
  }

  #isAligned(offset: number, lengthBytes: number): boolean {
    const end = offset + lengthBytes;
    return offset % this.#blockBytes === 0 && (end % this.#blockBytes === 0 || end === this.info.sizeBytes);
  }

  #blockStart(offset: number): number {
    return offset - (offset % this.#blockBytes);
  }

  /** The next end of a block at or after `offset`. */
  #blockEnd(offset: number): number {
    return Math.min(this.info.sizeBytes, this.#blockStart(offset + this.#blockBytes - 1));
  }

  /** The last end of a block at or before `offset`. */
  #wholeEnd(offset: number): number {
    return offset === this.info.sizeBytes ? offset : this.#blockStart(offset);
  }
}

/** Also where `run` throws instead of rejecting. */
async function releasing(hold: RangeHold, run: () => Promise<void>): Promise<void> {
  try {
    await run();
  } finally {
    hold.release();
  }
}
