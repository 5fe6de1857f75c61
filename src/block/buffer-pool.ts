/**
 * Buffers that are used again: a fresh one of 1 MiB costs 256 page faults and, being memory outside of V8's heap,
 * garbage collections; together more than all else that is done for a request of that size.
 *
 * Invariants: a buffer is with one holder or in the pool, never both; the pool keeps no more than its limit, and what
 * it keeps is what was given back last, whose pages the caches still have. What nobody took for a while is let go.
 * Besides, one buffer of the longest size is kept, limit or not: short ones must not crowd it out, since allocating it anew
 * sets off a whole garbage collection.
 */
import assert from "node:assert/strict";

import { libc } from "../os/libc.js";

/** Sizes are powers of two from this on; a shorter wish gets that much. */
export const SMALLEST_BYTES = 32 * 1024;
/** Longer ones are made to measure and not kept: they are rare, and each would displace many. */
const LARGEST_BYTES = 32 * 1024 * 1024;

const PAGE_BYTES = 4096;

/** A buffer that lay in the pool for this long is let go. */
const TRIM_INTERVAL_MS = 2000;

export class BufferPool {
  readonly #limitBytes: number;
  /** By size class. */
  readonly #free: Buffer[][] = [];
  #keptBytes = 0;
  /** The least that was kept since the last trim. */
  #unusedBytes = 0;
  #isTrimDue = false;
  #longest: Buffer | null = null;
  /** Nobody has taken it since the last trim. */
  #isLongestUnused = false;

  /** @param limitBytes of what is kept for later; what is held by others is theirs to bound */
  constructor(limitBytes: number) {
    this.#limitBytes = limitBytes;
  }

  /** Bytes that wait to be used again. */
  get keptBytes(): number {
    return this.#keptBytes + (this.#longest?.length ?? 0);
  }

  /** A buffer of whole pages, of at least this length, its content undefined; to be given back itself, not a view of a part. */
  take(lengthBytes: number): Buffer {
    if (lengthBytes > LARGEST_BYTES) return allocatePages(Math.ceil(lengthBytes / PAGE_BYTES) * PAGE_BYTES);
    const longest = this.#longest;
    if (longest !== null && lengthBytes > LARGEST_BYTES / 2) {
      this.#longest = null;
      return longest;
    }
    const index = classOf(lengthBytes);
    const kept = this.#free[index]?.pop();
    if (kept === undefined) return allocatePages(SMALLEST_BYTES * 2 ** index);
    this.#keptBytes -= kept.length;
    this.#unusedBytes = Math.min(this.#unusedBytes, this.#keptBytes);
    return kept;
  }

  /** Takes back what take() gave; nobody may read or write it any more. */
  give(buffer: Buffer): void {
    if (buffer.length === LARGEST_BYTES && this.#longest === null) {
      this.#longest = buffer;
      this.#isLongestUnused = false;
      if (!this.#isTrimDue) this.#trimLater();
      return;
    }
    if (buffer.length > LARGEST_BYTES || this.#keptBytes + buffer.length > this.#limitBytes) return;
    const index = classOf(buffer.length);
    assert(buffer.length === SMALLEST_BYTES * 2 ** index, "not a buffer of this pool");
    const free = (this.#free[index] ??= []);
    free.push(buffer);
    this.#keptBytes += buffer.length;
    if (!this.#isTrimDue) this.#trimLater();
  }

  #trimLater(): void {
    this.#isTrimDue = true;
    this.#unusedBytes = this.#keptBytes;
    setTimeout(() => {
      this.#trim();
      this.#isTrimDue = false;
      if (this.keptBytes > 0) this.#trimLater();
    }, TRIM_INTERVAL_MS).unref();
  }

  /** Lets go of what nobody needed, the longest buffers first. */
  #trim(): void {
    if (this.#isLongestUnused) this.#longest = null;
    this.#isLongestUnused = true;
    for (let index = this.#free.length - 1; index >= 0; index--) {
      const free = this.#free[index] ?? [];
      while (free.length > 0 && this.#unusedBytes >= SMALLEST_BYTES * 2 ** index) {
        free.pop();
        this.#keptBytes -= SMALLEST_BYTES * 2 ** index;
        this.#unusedBytes -= SMALLEST_BYTES * 2 ** index;
      }
    }
  }
}

/** Aligned to pages, for O_DIRECT, where libc can tell the address. */
function allocatePages(lengthBytes: number): Buffer {
  const buffer = Buffer.allocUnsafeSlow(lengthBytes + PAGE_BYTES);
  const start = -placeInPage(buffer) & (PAGE_BYTES - 1);
  return buffer.subarray(start, start + lengthBytes);
}

/** Whether the content begins where a page of memory does; false where that can't be known. */
export function isPageAligned(content: Buffer): boolean {
  return libc() !== null && placeInPage(content) === 0;
}

function placeInPage(content: Buffer): number {
  return Number((libc()?.address(content) ?? 0n) % BigInt(PAGE_BYTES));
}

function classOf(lengthBytes: number): number {
  let index = 0;
  for (let size = SMALLEST_BYTES; size < lengthBytes; size *= 2) index++;
  return index;
}

/** For payloads of any device and connection of the process. */
export const payloadBuffers = new BufferPool(32 * 1024 * 1024);

/** A buffer of the pool with several users; the last one to release it gives it back. */
export interface SharedBuffer {
  readonly bytes: Buffer;
  readonly users: number;
  hold(): void;
  release(): void;
  /** Calls back when the last user has released it. */
  whenFree(callback: () => void): void;
}

/** @param bytes from `payloadBuffers`; its first user is the caller */
export function shareBuffer(bytes: Buffer): SharedBuffer {
  return new CountedBuffer(bytes);
}

class CountedBuffer implements SharedBuffer {
  readonly bytes: Buffer;
  users = 1;
  #onFree: (() => void) | null = null;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  hold(): void {
    this.users++;
  }

  release(): void {
    assert(this.users > 0, "released more often than held");
    this.users--;
    if (this.users > 0) return;
    payloadBuffers.give(this.bytes);
    this.#onFree?.();
  }

  whenFree(callback: () => void): void {
    assert(this.#onFree === null && this.users > 0, "one waits for it, while it is in use");
    this.#onFree = callback;
  }
}

/** Lends `use` a buffer of this length, its content undefined, until its promise has settled. */
export async function withBuffer<T>(lengthBytes: number, use: (content: Buffer) => Promise<T>): Promise<T> {
  const buffer = payloadBuffers.take(lengthBytes);
  try {
    return await use(buffer.subarray(0, lengthBytes));
  } finally {
    payloadBuffers.give(buffer);
  }
}

/** A part of a buffer of the pool; its holder releases the slab once, and does not use the part any more. */
export interface Part {
  readonly bytes: Buffer;
  readonly slab: SharedBuffer;
}

/**
 * Short buffers, many to a slab of the pool: one by itself costs the garbage collector more than it is worth.
 *
 * Invariants: no two parts that are held overlap; one that is longer than a slab has a buffer of its own.
 */
export class Arena {
  readonly #slabBytes: number;
  #slab: SharedBuffer | null = null;
  #usedBytes = 0;

  /** @param slabBytes what the pool has a buffer of */
  constructor(slabBytes: number) {
    this.#slabBytes = slabBytes;
  }

  /** With whatever content. */
  take(lengthBytes: number): Part {
    if (lengthBytes > this.#slabBytes) {
      const own = shareBuffer(payloadBuffers.take(lengthBytes));
      return { bytes: own.bytes.subarray(0, lengthBytes), slab: own };
    }
    const slab = this.#slabWith(lengthBytes);
    const start = this.#usedBytes;
    this.#usedBytes += lengthBytes;
    slab.hold();
    return { bytes: slab.bytes.subarray(start, this.#usedBytes), slab };
  }

  copy(from: Buffer): Part {
    const part = this.take(from.length);
    from.copy(part.bytes);
    return part;
  }

  /** Keeps no slab for what comes next; parts that are held stay as they are. */
  letGo(): void {
    this.#slab?.release();
    this.#slab = null;
  }

  #slabWith(lengthBytes: number): SharedBuffer {
    if (this.#slab?.users === 1) this.#usedBytes = 0;
    if (this.#slab !== null && this.#usedBytes + lengthBytes <= this.#slabBytes) return this.#slab;
    this.letGo();
    this.#usedBytes = 0;
    return (this.#slab = shareBuffer(payloadBuffers.take(this.#slabBytes)));
  }
}

/** The memory that one request has borrowed: buffers of `payloadBuffers`, or a part of a shared one. */
export class Loan {
  readonly #arena: Arena;
  #buffers: Buffer[] | null = null;
  #shared: SharedBuffer | null = null;

  /** @param arena for a short one */
  constructor(arena: Arena) {
    this.#arena = arena;
  }

  /** Whether nothing of the pool is on loan. */
  get isEmpty(): boolean {
    return this.#buffers === null && this.#shared === null;
  }

  /** A buffer of just this length; a short one is a part of a slab. */
  take(lengthBytes: number): Buffer {
    return lengthBytes < SMALLEST_BYTES ? this.#takePart(lengthBytes) : this.takeApart(lengthBytes);
  }

  /** As take(), but a short one is fresh memory: for what would pin a whole slab, because it may be held for long. */
  takeApart(lengthBytes: number): Buffer {
    if (lengthBytes < SMALLEST_BYTES) return Buffer.allocUnsafeSlow(lengthBytes);
    const buffer = payloadBuffers.take(lengthBytes);
    (this.#buffers ??= []).push(buffer);
    return buffer.subarray(0, lengthBytes);
  }

  #takePart(lengthBytes: number): Buffer {
    // A second part for one request is rare: a long read with holes in it.
    if (this.#shared !== null) return Buffer.allocUnsafeSlow(lengthBytes);
    const { bytes, slab } = this.#arena.take(lengthBytes);
    this.#shared = slab;
    return bytes;
  }

  /** Holds a part of what somebody else has. */
  share(buffer: SharedBuffer): void {
    assert(this.#shared === null, "a loan shares one buffer");
    buffer.hold();
    this.#shared = buffer;
  }

  /** Nobody uses any of it any more. */
  release(): void {
    this.#shared?.release();
    this.#shared = null;
    if (this.#buffers === null) return;
    for (const buffer of this.#buffers) payloadBuffers.give(buffer);
    this.#buffers = null;
  }
}
