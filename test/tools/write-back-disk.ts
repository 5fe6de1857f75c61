/**
 * A disk in memory with a volatile cache, for tests: at a power loss each page that was changed and not flushed since
 * keeps its new content or falls back to the old one, as chance has it.
 *
 * Invariant: `#durable` differs from the cache in pages of `#dirty` only.
 */
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../../src/block/device.js";
import { Flag } from "../../src/block/device.js";
import { MEMORY_PAGE_BYTES, MemoryDevice } from "./memory-device.js";
import type { Random } from "./seed.js";

export class WriteBackDisk implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #cache: MemoryDevice;
  readonly #durable: Buffer;
  readonly #dirty = new Set<number>();

  /** @param initial its content, durable */
  constructor(initial: Buffer) {
    this.#cache = new MemoryDevice(initial.length);
    this.#cache.fill(0, initial);
    this.#durable = Buffer.from(initial);
    this.info = this.#cache.info;
  }

  /** A copy of what reads see. */
  contents(): Buffer {
    return this.#cache.contents();
  }

  /** A copy of what a power loss leaves at least. */
  durableContents(): Buffer {
    return Buffer.from(this.#durable);
  }

  losePower(random: Random): void {
    for (const page of this.#dirty) {
      const [start, end] = this.#bounds(page);
      if (random.below(2) === 0) this.#cache.fill(start, this.#durable.subarray(start, end));
      else this.#cache.contents(start, end - start).copy(this.#durable, start);
    }
    this.#dirty.clear();
  }

  read(offset: number, into: Buffer): Promise<void> {
    return this.#cache.read(offset, into);
  }

  async write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    await this.#cache.write(offset, from, flags);
    this.#changed(offset, from.length, flags);
  }

  async zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    await this.#cache.zero(offset, lengthBytes, flags);
    this.#changed(offset, lengthBytes, flags);
  }

  async trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    await this.#cache.trim(offset, lengthBytes, flags);
    this.#changed(offset, lengthBytes, flags);
  }

  async flush(): Promise<void> {
    await this.#cache.flush();
    for (const page of this.#dirty) {
      const [start, end] = this.#bounds(page);
      this.#cache.contents(start, end - start).copy(this.#durable, start);
    }
    this.#dirty.clear();
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#cache.extents(offset, lengthBytes, maxExtents);
  }

  close(): Promise<void> {
    return this.#cache.close();
  }

  #changed(offset: number, lengthBytes: number, flags: Flags): void {
    const end = offset + lengthBytes;
    // FUA is about this request alone: what else is new in its pages stays volatile.
    if ((flags & Flag.Fua) !== 0) this.#cache.contents(offset, lengthBytes).copy(this.#durable, offset);
    for (let page = Math.floor(offset / MEMORY_PAGE_BYTES); page * MEMORY_PAGE_BYTES < end; page++) {
      this.#dirty.add(page);
    }
  }

  #bounds(page: number): [start: number, end: number] {
    const start = page * MEMORY_PAGE_BYTES;
    return [start, Math.min(start + MEMORY_PAGE_BYTES, this.info.sizeBytes)];
  }
}
