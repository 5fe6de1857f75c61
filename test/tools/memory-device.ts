/**
 * A sparse block device in memory, for tests.
 *
 * It applies a request at the call and resolves in a microtask, so it never reorders; put a FailingDevice
 * above it to hold, reorder or fail requests. It asserts what callers owe to a device (range, alignment,
 * writable, nothing after close): a layer that breaks the rules fails its test.
 *
 * Invariant: a page that is absent from `#pages` is a hole and reads as zeroes; one that is there is data.
 */
import assert from "node:assert/strict";

import type { BlockDevice, Capability, DeviceInfo, Extent, Flags } from "../../src/block/device.js";
import { Flag } from "../../src/block/device.js";
import { DeviceError } from "../../src/errors.js";

/** The unit of allocation. */
export const MEMORY_PAGE_BYTES = 4096;

const MEBIBYTE = 1024 * 1024;

export interface MemoryDeviceOptions {
  readonly minimumBytes?: number;
  readonly preferredBytes?: number;
  readonly maximumBytes?: number;
  readonly writable?: boolean;
  /** `none` makes the device refuse with ENOTSUP. Default of these four: native. */
  readonly trim?: Capability;
  readonly zero?: Capability;
  readonly fua?: Capability;
  readonly extents?: Capability;
  readonly rotational?: boolean;
}

/** How many requests of each kind reached the device. */
export interface RequestCounts {
  read: number;
  write: number;
  zero: number;
  trim: number;
  flush: number;
  extents: number;
}

export class MemoryDevice implements BlockDevice {
  readonly info: DeviceInfo;
  readonly counts: RequestCounts = { read: 0, write: 0, zero: 0, trim: 0, flush: 0, extents: 0 };
  readonly #pages = new Map<number, Buffer>();
  #closed = false;

  constructor(sizeBytes: number, options: MemoryDeviceOptions = {}) {
    const minimumBytes = options.minimumBytes ?? 1;
    this.info = Object.freeze({
      sizeBytes,
      blockSize: Object.freeze({
        minimumBytes,
        preferredBytes: options.preferredBytes ?? Math.max(minimumBytes, MEMORY_PAGE_BYTES),
        maximumBytes: options.maximumBytes ?? 32 * MEBIBYTE,
      }),
      writable: options.writable ?? true,
      trim: options.trim ?? "native",
      zero: options.zero ?? "native",
      fua: options.fua ?? "native",
      extents: options.extents ?? "native",
      rotational: options.rotational ?? false,
    });
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Pages that hold data; a measure of what a layer above really wrote. */
  get allocatedBytes(): number {
    return this.#pages.size * MEMORY_PAGE_BYTES;
  }

  /** A copy of the content, past every rule and counter. */
  contents(offset = 0, lengthBytes = this.info.sizeBytes - offset): Buffer {
    const copy = Buffer.alloc(lengthBytes);
    this.#copyOut(offset, copy);
    return copy;
  }

  /** Sets the content, past every rule and counter. */
  fill(offset: number, from: Buffer): void {
    this.#copyIn(offset, from);
  }

  read(offset: number, into: Buffer): Promise<void> {
    this.counts.read++;
    this.#assertPayload(offset, into.length);
    this.#copyOut(offset, into);
    return Promise.resolve();
  }

  tryRead(offset: number, into: Buffer): boolean {
    void this.read(offset, into);
    return true;
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    this.counts.write++;
    this.#assertPayload(offset, from.length);
    this.#assertWritable(flags);
    this.#copyIn(offset, from);
    return Promise.resolve();
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    this.counts.zero++;
    if (this.info.zero === "none") return refused("zero");
    this.#assertRange(offset, lengthBytes);
    this.#assertWritable(flags);
    this.#eachPage(offset, lengthBytes, (page, start, end) => {
      if ((flags & Flag.NoHole) !== 0) this.#page(page).fill(0, start, end);
      else if (this.#isWhole(page, start, end)) this.#pages.delete(page);
      else this.#pages.get(page)?.fill(0, start, end);
    });
    return Promise.resolve();
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    this.counts.trim++;
    if (this.info.trim === "none") return refused("trim");
    this.#assertRange(offset, lengthBytes);
    this.#assertWritable(flags);
    this.#eachPage(offset, lengthBytes, (page, start, end) => {
      if (this.#isWhole(page, start, end)) this.#pages.delete(page);
    });
    return Promise.resolve();
  }

  flush(): Promise<void> {
    this.counts.flush++;
    assert(!this.#closed, "flush after close");
    return Promise.resolve();
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    this.counts.extents++;
    if (this.info.extents === "none") return refused("extents");
    this.#assertRange(offset, lengthBytes);
    assert(maxExtents >= 1, "no room for an extent");
    const extents: Extent[] = [];
    let at = offset;
    const end = offset + lengthBytes;
    while (at < end && extents.length < maxExtents) {
      const start = at;
      const hole = !this.#pages.has(pageOf(at));
      do at = Math.min(end, (pageOf(at) + 1) * MEMORY_PAGE_BYTES);
      while (at < end && this.#pages.has(pageOf(at)) !== hole);
      extents.push({ lengthBytes: at - start, hole, zero: hole });
    }
    return Promise.resolve(extents);
  }

  close(): Promise<void> {
    assert(!this.#closed, "closed twice");
    this.#closed = true;
    return Promise.resolve();
  }

  #assertRange(offset: number, lengthBytes: number): void {
    const { sizeBytes, blockSize } = this.info;
    const request = `${offset}+${lengthBytes} of ${sizeBytes}`;
    const end = offset + lengthBytes;
    assert(!this.#closed, `request after close: ${request}`);
    assert(Number.isSafeInteger(offset) && Number.isSafeInteger(lengthBytes), `not integers: ${request}`);
    assert(offset >= 0 && lengthBytes > 0 && end <= sizeBytes, `out of range: ${request}`);
    assert(offset % blockSize.minimumBytes === 0, `unaligned start: ${request}`);
    assert(end % blockSize.minimumBytes === 0 || end === sizeBytes, `unaligned end: ${request}`);
  }

  #assertPayload(offset: number, lengthBytes: number): void {
    this.#assertRange(offset, lengthBytes);
    assert(lengthBytes <= this.info.blockSize.maximumBytes, `payload of ${lengthBytes} is too long`);
  }

  #assertWritable(flags: Flags): void {
    assert(this.info.writable, "change of a read-only device");
    assert((flags & Flag.Fua) === 0 || this.info.fua !== "none", "FUA, which the device lacks");
  }

  #page(index: number): Buffer {
    let page = this.#pages.get(index);
    if (page === undefined) {
      page = Buffer.alloc(MEMORY_PAGE_BYTES);
      this.#pages.set(index, page);
    }
    return page;
  }

  /** Whether [start, end) covers all of the page that lies inside the device. */
  #isWhole(page: number, start: number, end: number): boolean {
    const inside = Math.min(MEMORY_PAGE_BYTES, this.info.sizeBytes - page * MEMORY_PAGE_BYTES);
    return start === 0 && end >= inside;
  }

  #eachPage(
    offset: number,
    lengthBytes: number,
    each: (page: number, start: number, end: number) => void,
  ): void {
    const end = offset + lengthBytes;
    for (let at = offset; at < end; at = (pageOf(at) + 1) * MEMORY_PAGE_BYTES) {
      const base = pageOf(at) * MEMORY_PAGE_BYTES;
      each(pageOf(at), at - base, Math.min(MEMORY_PAGE_BYTES, end - base));
    }
  }

  #copyOut(offset: number, into: Buffer): void {
    this.#eachPage(offset, into.length, (page, start, end) => {
      const at = page * MEMORY_PAGE_BYTES + start - offset;
      const data = this.#pages.get(page);
      if (data === undefined) into.fill(0, at, at + end - start);
      else data.copy(into, at, start, end);
    });
  }

  #copyIn(offset: number, from: Buffer): void {
    this.#eachPage(offset, from.length, (page, start, end) => {
      const at = page * MEMORY_PAGE_BYTES + start - offset;
      from.copy(this.#page(page), start, at, at + end - start);
    });
  }
}

function pageOf(offset: number): number {
  return Math.floor(offset / MEMORY_PAGE_BYTES);
}

function refused(operation: string): Promise<never> {
  return Promise.reject(new DeviceError("ENOTSUP", `this memory device has no ${operation}`));
}
