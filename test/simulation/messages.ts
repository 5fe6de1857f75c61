/** What passes over the simulated link, in place of NBD's and QMP's bytes. */
import type { Extent, Flags } from "../../src/block/device.js";
import type { Errno } from "../../src/errors.js";
import type { QmpErrorBody } from "../../src/qmp/errors.js";

export interface DiskRequest {
  readonly id: number;
  readonly kind: "read" | "write" | "zero" | "trim" | "flush" | "extents" | "disconnect";
  readonly offset: number;
  readonly lengthBytes: number;
  readonly flags: Flags;
  readonly data?: Buffer;
  readonly maxExtents?: number;
}

export interface DiskAnswer {
  readonly id: number;
  readonly errno?: Errno;
  readonly data?: Buffer;
  readonly extents?: Extent[];
}

export interface QmpRequest {
  readonly id: number;
  readonly name: string;
  readonly args: object;
  /** What the primary's disks held when it was sent; the servers don't look at it. */
  readonly instant: unknown;
}

export type QmpAnswer =
  { readonly id: number; readonly result: unknown } | { readonly id: number; readonly error: QmpErrorBody };

export interface QmpEvent {
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
}
