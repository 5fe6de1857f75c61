/**
 * A disk that never waits for stable storage (QEMU: cache=unsafe): flushes and FUA are answered at once. For tests, and
 * for disks that nobody would miss. close() flushes, so that an orderly stop leaves nothing behind in memory alone.
 */
import { type BlockDevice, type DeviceInfo, type Extent, Flag, type Flags } from "../device.js";

export function unsafeCache(next: BlockDevice): BlockDevice {
  return new UnsafeCache(next);
}

class UnsafeCache implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #next: BlockDevice;

  constructor(next: BlockDevice) {
    this.info = Object.freeze({ ...next.info, fua: "native" });
    this.#next = next;
  }

  read(offset: number, into: Buffer): Promise<void> {
    return this.#next.read(offset, into);
  }

  tryRead(offset: number, into: Buffer): boolean {
    return this.#next.tryRead?.(offset, into) === true;
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    return this.#next.write(offset, from, flags & ~Flag.Fua);
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#next.zero(offset, lengthBytes, flags & ~Flag.Fua);
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#next.trim(offset, lengthBytes, flags & ~Flag.Fua);
  }

  flush(): Promise<void> {
    return Promise.resolve();
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#next.extents(offset, lengthBytes, maxExtents);
  }

  async close(): Promise<void> {
    await this.#next.flush();
    await this.#next.close();
  }
}
