/**
 * THE block device interface: what every disk, overlay, filter and network client here implements.
 *
 * Rules that hold for each implementation (the contract suite in test/contract checks them):
 * - A device that you hold is open; there is no open(). After close() nothing else may be called.
 * - Offsets and lengths are bytes, safe integers. Callers stay inside `info.sizeBytes` and respect
 *   `info.blockSize`; `checked()` is the one place that enforces this for callers that can't be trusted.
 * - Buffers are lent until the promise settles: a device neither keeps nor changes them after that,
 *   nor does the caller change them before.
 * - Requests may be issued concurrently and may finish in any order. Overlapping concurrent requests
 *   have no defined order, but each byte ends up as one of them left it.
 * - `flush` makes durable every write, zero and trim whose promise had resolved when it was called,
 *   the layer's own metadata included. A request with Flag.Fua is durable when its promise resolves.
 * - A failed request rejects with DeviceError; the device stays usable.
 */

/** `native`: done by the layer itself; `emulated`: done, at a cost; `none`: refused with ENOTSUP. */
export type Capability = "native" | "emulated" | "none";

/** Limits on a request, as NBD_INFO_BLOCK_SIZE names them (NBD document, "Block size constraints"). */
export interface BlockSize {
  /** Offsets and lengths are multiples of this (the device's last, partial block excepted). Power of two. */
  readonly minimumBytes: number;
  /** Requests of this size or a multiple of it are efficient. Power of two. */
  readonly preferredBytes: number;
  /** The longest payload of one read or write; zero, trim and extents are not bound by it. */
  readonly maximumBytes: number;
}

/** What a device is and can do; frozen when it was opened. */
export interface DeviceInfo {
  readonly sizeBytes: number;
  readonly blockSize: BlockSize;
  readonly writable: boolean;
  readonly trim: Capability;
  readonly zero: Capability;
  readonly fua: Capability;
  readonly extents: Capability;
  /** A disk that turns, where neighbours are read faster (NBD_FLAG_ROTATIONAL); absent: it does not, as far as is known. */
  readonly rotational?: boolean;
}

/** Request flags, to be or-ed together. */
export const Flag = {
  None: 0,
  /** Durable before the promise resolves. */
  Fua: 1,
  /** zero: the range must stay allocated (NBD_CMD_FLAG_NO_HOLE). */
  NoHole: 2,
  /** zero: fail with ENOTSUP, changing nothing, if it would be no faster than writing (NBD_CMD_FLAG_FAST_ZERO). */
  FastZero: 4,
} as const;

/** Any combination of `Flag` values. */
export type Flags = number;

/** A run of bytes that share an allocation state, as in the `base:allocation` metadata context. */
export interface Extent {
  readonly lengthBytes: number;
  /** Nothing is allocated there. */
  readonly hole: boolean;
  /** Reads as zeroes. */
  readonly zero: boolean;
}

export interface BlockDevice {
  readonly info: DeviceInfo;
  /** Fills `into` with the content at `offset`. */
  read(offset: number, into: Buffer): Promise<void>;
  /**
   * As read(), at once, if the content is in memory. False: it is not, or that can't be told; `into` may have been changed.
   * For hot paths that can do without a promise; absent where a layer has no such shortcut.
   */
  tryRead?(offset: number, into: Buffer): boolean;
  write(offset: number, from: Buffer, flags: Flags): Promise<void>;
  /** Makes the range read as zeroes, deallocating it where that is possible unless Flag.NoHole. */
  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void>;
  /** Tells that the content is no longer needed; what a read then returns is undefined but stable. */
  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void>;
  flush(): Promise<void>;
  /**
   * Describes the range from `offset` on: at least one extent, contiguous, the last one clipped to the
   * range. May stop short of `lengthBytes` after `maxExtents` extents or wherever the layer finds it dear to go on.
   */
  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]>;
  /** Releases what the device holds; does not flush. Requests in flight have been awaited by the caller. */
  close(): Promise<void>;
}
