/** Random requests to a disk, and what each of them does to it. */
import fc from "fast-check";

import { type BlockDevice, Flag } from "../../src/block/device.js";

/** The unit in which trims take effect on every layer here, the device's last, partial one included. */
const PAGE_BYTES = 4096;
const LONGEST_BYTES = 5 * PAGE_BYTES;

export interface Request {
  readonly kind: "write" | "zero" | "trim" | "flush" | "read";
  readonly disk: number;
  readonly offset: number;
  readonly lengthBytes: number;
  /** Makes the content; 0: zeroes. */
  readonly pattern: number;
  readonly fua: boolean;
}

/** Requests that run at once, from either side. */
export interface Load {
  readonly primary: readonly Request[];
  readonly view: readonly Request[];
}

/** A range of a disk and what it holds after a request. */
export interface Effect {
  readonly offset: number;
  readonly content: Buffer;
}

/** Requests inside disks of these sizes, many of which overlap, end at pages, or at the disk's end. */
export function requestOn(sizes: readonly number[]): fc.Arbitrary<Request> {
  return fc
    .nat({ max: sizes.length - 1 })
    .chain((disk) => {
      const sizeBytes = sizes[disk] ?? 0;
      return fc.record({
        kind: fc.constantFrom("write", "write", "write", "zero", "trim", "read", "flush"),
        disk: fc.constant(disk),
        pattern: fc.nat({ max: 250 }),
        fua: fc.nat({ max: 4 }).map((roll) => roll === 4),
        extent: extentOf(sizeBytes),
      } satisfies Record<string, fc.Arbitrary<unknown>>);
    })
    .map(({ extent, ...request }) => ({ ...request, ...extent }));
}

function extentOf(sizeBytes: number): fc.Arbitrary<{ offset: number; lengthBytes: number }> {
  const pages = Math.floor(sizeBytes / PAGE_BYTES);
  const unaligned = fc.record({
    offset: fc.nat({ max: sizeBytes - 1 }),
    lengthBytes: fc.integer({ min: 1, max: LONGEST_BYTES }),
  });
  const aligned = fc
    .record({ page: fc.nat({ max: pages }), count: fc.integer({ min: 1, max: 4 }) })
    .map(({ page, count }) => ({ offset: page * PAGE_BYTES, lengthBytes: count * PAGE_BYTES }));
  const toTheEnd = fc
    .integer({ min: 1, max: Math.min(LONGEST_BYTES, sizeBytes) })
    .map((lengthBytes) => ({ offset: sizeBytes - lengthBytes, lengthBytes }));
  // Before-images that the log borrows rather than copies.
  const manyPages = fc
    .record({ page: fc.nat({ max: pages }), count: fc.integer({ min: 17, max: 70 }) })
    .map(({ page, count }) => ({ offset: page * PAGE_BYTES, lengthBytes: count * PAGE_BYTES }));
  const long = fc.nat({ max: sizeBytes - 1 }).map((offset) => ({ offset, lengthBytes: sizeBytes }));
  return fc
    .oneof(
      { arbitrary: unaligned, weight: 4 },
      { arbitrary: aligned, weight: 4 },
      { arbitrary: toTheEnd, weight: 1 },
      { arbitrary: manyPages, weight: 2 },
      { arbitrary: long, weight: 1 },
    )
    .map(({ offset, lengthBytes }) => {
      const start = Math.min(offset, sizeBytes - 1);
      return { offset: start, lengthBytes: Math.min(lengthBytes, sizeBytes - start) };
    });
}

/** Sends a request; what a read brings back is resolved, with null for all others. */
export async function issue(device: BlockDevice, request: Request): Promise<Buffer | null> {
  const { kind, offset, lengthBytes, fua } = request;
  const flags = fua ? Flag.Fua : Flag.None;
  switch (kind) {
    case "write":
      await device.write(offset, contentOf(request), flags);
      return null;
    case "zero":
      await device.zero(offset, lengthBytes, flags);
      return null;
    case "trim":
      await device.trim(offset, lengthBytes, flags);
      return null;
    case "flush":
      await device.flush();
      return null;
    case "read": {
      const into = Buffer.alloc(lengthBytes);
      await device.read(offset, into);
      return into;
    }
  }
}

/**
 * What a request changes; null: nothing.
 * @param trims `pages`: a trim drops whole pages; `bytes`: it zeroes exactly its range, as a mirror's does
 */
export function effectOf(request: Request, sizeBytes: number, trims: "pages" | "bytes"): Effect | null {
  const { kind, offset, lengthBytes } = request;
  switch (kind) {
    case "write":
      return { offset, content: contentOf(request) };
    case "zero":
      return { offset, content: Buffer.alloc(lengthBytes) };
    case "trim":
      return trims === "bytes"
        ? { offset, content: Buffer.alloc(lengthBytes) }
        : trimmed(offset, lengthBytes, sizeBytes);
    case "flush":
    case "read":
      return null;
  }
}

/** The whole pages that a trim touches. */
export function roundTrim(request: Request, sizeBytes: number): Request {
  const offset = request.offset - (request.offset % PAGE_BYTES);
  const end = Math.ceil((request.offset + request.lengthBytes) / PAGE_BYTES) * PAGE_BYTES;
  return { ...request, offset, lengthBytes: Math.min(end, sizeBytes) - offset };
}

function trimmed(offset: number, lengthBytes: number, sizeBytes: number): Effect | null {
  const start = Math.ceil(offset / PAGE_BYTES) * PAGE_BYTES;
  const end = offset + lengthBytes;
  const wholeEnd = end === sizeBytes ? end : end - (end % PAGE_BYTES);
  return start < wholeEnd ? { offset: start, content: Buffer.alloc(wholeEnd - start) } : null;
}

/** Content that tells its place as well as its request: a misplaced byte is found out. */
function contentOf({ offset, lengthBytes, pattern }: Request): Buffer {
  const content = Buffer.alloc(lengthBytes);
  if (pattern === 0) return content;
  for (let at = 0; at < lengthBytes; at++)
    content[at] = (pattern * 37 + ((offset + at) >>> 3) * 11 + at) % 256;
  return content;
}

export function apply(disk: Buffer, effects: readonly Effect[]): void {
  for (const { offset, content } of effects) content.copy(disk, offset);
}

/**
 * Checks that each byte is as one of these made it.
 * @param bases contents that `actual` may show where they are not changed
 * @param effects what may have been done to it, in whatever order
 * @throws Error that names the first byte that is none of them
 */
export function expectOneOf(
  actual: Buffer,
  offset: number,
  bases: readonly Buffer[],
  effects: readonly Effect[],
  what: string,
): void {
  const explained = new Uint8Array(actual.length);
  for (const base of bases) {
    for (let at = 0; at < actual.length; at++) if (actual[at] === base[offset + at]) explained[at] = 1;
  }
  for (const effect of effects) {
    const start = Math.max(offset, effect.offset);
    const end = Math.min(offset + actual.length, effect.offset + effect.content.length);
    for (let at = start; at < end; at++) {
      if (actual[at - offset] === effect.content[at - effect.offset]) explained[at - offset] = 1;
    }
  }
  expectExplained(actual, offset, bases, explained, what);
}

/** As expectOneOf(), where every request was acknowledged: what one of them changed must show one of the changes. */
export function expectChanged(actual: Buffer, base: Buffer, effects: readonly Effect[], what: string): void {
  const explained = new Uint8Array(actual.length);
  const changed = new Uint8Array(actual.length);
  for (const { offset, content } of effects) {
    for (let at = 0; at < content.length; at++) {
      changed[offset + at] = 1;
      if (actual[offset + at] === content[at]) explained[offset + at] = 1;
    }
  }
  for (let at = 0; at < actual.length; at++) {
    if (changed[at] === 0 && actual[at] === base[at]) explained[at] = 1;
  }
  expectExplained(actual, 0, [base], explained, what);
}

function expectExplained(
  actual: Buffer,
  offset: number,
  bases: readonly Buffer[],
  explained: Uint8Array,
  what: string,
): void {
  const bad = explained.indexOf(0);
  if (bad === -1) return;
  const was = bases.map((base) => String(base[offset + bad])).join(" or ");
  throw new Error(
    `${what}: byte ${offset + bad} is ${String(actual[bad])}; it was ${was} and nothing made it so`,
  );
}

/** The requests that touch no byte of an earlier one. */
export function disjoint(requests: readonly Request[]): Request[] {
  const kept: Request[] = [];
  for (const request of requests) {
    const overlaps = kept.some(
      (other) =>
        other.disk === request.disk &&
        other.offset < request.offset + request.lengthBytes &&
        request.offset < other.offset + other.lengthBytes,
    );
    if (!overlaps) kept.push(request);
  }
  return kept;
}

/** What belongs to a disk. */
export function at<T>(items: readonly T[], index: number): T {
  const item = items[index];
  if (item === undefined) throw new RangeError(`there is no disk ${index}`);
  return item;
}
