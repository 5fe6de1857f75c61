/**
 * A disk in memory with a volatile cache, for tests: at a power loss each sector that was changed and not flushed since
 * keeps its new content or falls back to the old one, as chance has it.
 * A flush that fails gives up what it was to make durable, as the kernel does: some of it is durable, some gone at once, and some seen
 * until evict() or a power loss, though no later flush will make it durable.
 *
 * Invariant: `#durable` differs from the cache in sectors of `#dirty` and `#forgotten` only.
 */
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../../src/block/device.js";
import { Flag } from "../../src/block/device.js";
import { MemoryDevice } from "./memory-device.js";
import type { Random } from "./seed.js";

/** What a disk writes whole or not at all. */
export const SECTOR_BYTES = 512;

/** A flush under way. */
interface Flush {
  readonly covered: Set<number>;
  /** What those sectors held that were written to since it began. */
  readonly old: Map<number, Buffer>;
}

export class WriteBackDisk implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #cache: MemoryDevice;
  readonly #durable: MemoryDevice;
  readonly #dirty = new Set<number>();
  /** What a failed flush gave up, and is still seen. */
  readonly #forgotten = new Set<number>();
  readonly #flushes = new Set<Flush>();

  /** @param initial its content, durable; or its size: zeroes */
  constructor(initial: Buffer | number) {
    const sizeBytes = typeof initial === "number" ? initial : initial.length;
    this.#cache = new MemoryDevice(sizeBytes);
    this.#durable = new MemoryDevice(sizeBytes);
    if (typeof initial !== "number") {
      this.#cache.fill(0, initial);
      this.#durable.fill(0, initial);
    }
    this.info = this.#cache.info;
  }

  /** A copy of what reads see. */
  contents(offset = 0, lengthBytes = this.info.sizeBytes - offset): Buffer {
    return this.#cache.contents(offset, lengthBytes);
  }

  /** A copy of what a power loss leaves at least. */
  durableContents(): Buffer {
    return this.#durable.contents();
  }

  losePower(random: Random): void {
    this.evict();
    for (const sector of this.#dirty) {
      const [from, to] = random.below(2) === 0 ? [this.#durable, this.#cache] : [this.#cache, this.#durable];
      this.#copy(sector, from, to);
    }
    this.#dirty.clear();
    this.#flushes.clear();
  }

  read(offset: number, into: Buffer): Promise<void> {
    return this.#cache.read(offset, into);
  }

  tryRead(offset: number, into: Buffer): boolean {
    return this.#cache.tryRead(offset, into);
  }

  async write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    this.#changing(offset, from.length);
    await this.#cache.write(offset, from, flags);
    this.#changed(offset, from.length, flags);
  }

  async zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    this.#changing(offset, lengthBytes);
    await this.#cache.zero(offset, lengthBytes, flags);
    this.#changed(offset, lengthBytes, flags);
  }

  async trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    this.#changing(offset, lengthBytes);
    await this.#cache.trim(offset, lengthBytes, flags);
    this.#changed(offset, lengthBytes, flags);
  }

  async flush(): Promise<void> {
    await this.#cache.flush();
    this.beginFlush()();
  }

  /** @returns what makes durable what was written until now, and nothing that is written after it */
  beginFlush(): () => void {
    const flush: Flush = { covered: new Set(this.#dirty), old: new Map() };
    this.#flushes.add(flush);
    return () => {
      this.#flushes.delete(flush);
      for (const sector of flush.covered) {
        const old = flush.old.get(sector);
        if (old !== undefined) this.#durable.fill(sector * SECTOR_BYTES, old);
        else if (this.#dirty.delete(sector)) this.#copy(sector, this.#cache, this.#durable);
        // What is durable is at least as new as this flush's content: an older one must not bring its own back.
        for (const other of this.#flushes) other.old.delete(sector);
      }
    };
  }

  /** A flush fails. */
  failFlush(random: Random): void {
    for (const sector of [...this.#dirty]) {
      const fate = random.oneOf(["durable", "gone", "seen"] as const);
      this.#dirty.delete(sector);
      for (const { covered, old } of this.#flushes) {
        covered.delete(sector);
        old.delete(sector);
      }
      if (fate === "durable") this.#copy(sector, this.#cache, this.#durable);
      else if (fate === "gone") this.#copy(sector, this.#durable, this.#cache);
      else this.#forgotten.add(sector);
    }
  }

  /** What failed flushes gave up is not seen any more. */
  evict(): void {
    for (const sector of this.#forgotten) this.#copy(sector, this.#durable, this.#cache);
    this.#forgotten.clear();
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#cache.extents(offset, lengthBytes, maxExtents);
  }

  close(): Promise<void> {
    return this.#cache.close();
  }

  /** Flushes under way cover what is there now, not what comes. */
  #changing(offset: number, lengthBytes: number): void {
    if (this.#flushes.size === 0) return;
    for (const sector of sectorsOf(offset, lengthBytes)) {
      for (const { covered, old } of this.#flushes) {
        if (covered.has(sector) && !old.has(sector))
          old.set(sector, this.#cache.contents(...this.#bounds(sector)));
      }
    }
  }

  #changed(offset: number, lengthBytes: number, flags: Flags): void {
    // FUA is about this request alone: what else is new in its sectors stays volatile.
    const isForced = (flags & Flag.Fua) !== 0;
    if (isForced) this.#durable.fill(offset, this.#cache.contents(offset, lengthBytes));
    for (const sector of sectorsOf(offset, lengthBytes)) {
      this.#dirty.add(sector);
      this.#forgotten.delete(sector);
      if (isForced) for (const flush of this.#flushes) flush.old.delete(sector);
    }
  }

  #copy(sector: number, from: MemoryDevice, to: MemoryDevice): void {
    to.fill(sector * SECTOR_BYTES, from.contents(...this.#bounds(sector)));
  }

  #bounds(sector: number): [start: number, lengthBytes: number] {
    const start = sector * SECTOR_BYTES;
    return [start, Math.min(SECTOR_BYTES, this.info.sizeBytes - start)];
  }
}

function* sectorsOf(offset: number, lengthBytes: number): Generator<number> {
  const end = offset + lengthBytes;
  for (let sector = Math.floor(offset / SECTOR_BYTES); sector * SECTOR_BYTES < end; sector++) yield sector;
}
