/**
 * The hidden overlay of one disk: before-images of what was overwritten since the last checkpoint, over the disk.
 * Read through it, the disk is as it was at the checkpoint. (QEMU: the hidden disk of `driver=replication`.)
 *
 * Invariants:
 * - The map names a block only when its before-image is durable in the log, and from then until the overlay is
 *   dropped: extents are added, never changed or removed.
 * - A block that the map does not name has not been overwritten in this epoch.
 */
import { DeviceError } from "../../errors.js";
import type { OverlayLog } from "../../meta/overlay-log.js";
import type { RecoveredRecord } from "../../meta/overlay-log-recovery.js";
import type { BlockDevice, DeviceInfo, Extent } from "../device.js";
import { ABSENT, ExtentMap, ZERO } from "../extent-map.js";
import { extentsThrough, type Layer, readThrough } from "./layered.js";

/** What is copied before a write is rounded out to blocks of this size: one page of the page cache. */
export const COPY_BLOCK_BYTES = 4096;

/** A before-image: `data` is null where the disk read as zeroes. */
export interface BeforeImage {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly data: Buffer | null;
}

/** An image in the log that is not durable yet: what the map will say of it. */
interface Appended {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly target: number;
}

export class HiddenOverlay implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #map: ExtentMap;
  readonly #log: OverlayLog;
  readonly #diskIndex: number;
  readonly #layer: Layer;
  #staged: Appended[] = [];
  #refusal: DeviceError | null = null;

  /** @param map what recovery found in the log (recoverImage()) */
  constructor(backing: BlockDevice, log: OverlayLog, diskIndex: number, map = new ExtentMap()) {
    this.#map = map;
    this.info = Object.freeze({ ...backing.info, writable: false });
    this.#log = log;
    this.#diskIndex = diskIndex;
    this.#layer = { map: this.#map, backing, fetch: (target, into) => log.read(target, into) };
  }

  /** Bytes of the disk that have a before-image. */
  get mappedBytes(): number {
    return this.#map.mappedBytes;
  }

  /** Whether the checkpoint was given up because a before-image could not be kept. */
  get isBroken(): boolean {
    return this.#log.isBroken;
  }

  /** Whether a before-image could not be kept: no other one will be. */
  get hasFailed(): boolean {
    return this.#log.hasFailed;
  }

  /** The disk below may lack what it held at the checkpoint; before-images are kept on. */
  refuseReads(reason: string): void {
    this.#refusal = new DeviceError("EIO", reason);
  }

  /** Which parts of [start, end) have no before-image yet. */
  missing(start: number, end: number): [start: number, end: number][] {
    const gaps: [number, number][] = [];
    this.#map.visit(start, end, (gapStart, gapEnd, target) => {
      if (target === ABSENT) gaps.push([gapStart, gapEnd]);
    });
    return gaps;
  }

  /** How much of [start, end) has a before-image. */
  coverage(start: number, end: number): "none" | "part" | "all" {
    if (!this.#map.intersects(start, end)) return "none";
    return this.#map.covers(start, end) ? "all" : "part";
  }

  /** All extents, in order of offset. */
  mapped(): [start: number, end: number][] {
    return this.#map.ranges();
  }

  /**
   * Keeps before-images of blocks that have none; when this resolves they are durable and the blocks may be overwritten.
   * Their content is copied or lent as OverlayLog.append() says.
   * @param patient as for the log: nobody waits, unless hurry() is called
   * @throws DeviceError if they can't be kept
   */
  async keep(images: readonly BeforeImage[], patient = false): Promise<void> {
    await this.#commit(
      images.map((image) => this.#append(image)),
      patient,
    );
  }

  /** Takes a before-image to be kept by the next commit(), as keep() does. @throws DeviceError, having taken nothing */
  stage(image: BeforeImage): void {
    this.#staged.push(this.#append(image));
  }

  /** Resolves when all that was staged is kept; `patient` and failures as for keep(). */
  commit(patient: boolean): Promise<void> {
    const staged = this.#staged;
    this.#staged = [];
    return this.#commit(staged, patient);
  }

  #append({ offset, lengthBytes, data }: BeforeImage): Appended {
    const kind = data === null ? "zero" : "data";
    const position = this.#log.add({ disk: this.#diskIndex, kind, offset, lengthBytes, data });
    return { offset, lengthBytes, target: data === null ? ZERO : position };
  }

  async #commit(appended: readonly Appended[], patient: boolean): Promise<void> {
    await this.#log.commit(patient);
    for (const { offset, lengthBytes, target } of appended) {
      this.#map.set(offset, offset + lengthBytes, target);
    }
  }

  /** Somebody waits for images that are being kept. */
  hurry(): void {
    this.#log.hurry();
  }

  async read(offset: number, into: Buffer): Promise<void> {
    this.#refuseIfLost();
    await readThrough(this.#layer, offset, into);
    // Given up meanwhile, blocks may have been overwritten under the read without an image.
    this.#refuseIfLost();
  }

  async extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    this.#refuseIfLost();
    const extents = await extentsThrough(this.#layer, offset, lengthBytes, maxExtents);
    this.#refuseIfLost();
    return extents;
  }

  write(): Promise<void> {
    return refuseWrite();
  }

  zero(): Promise<void> {
    return refuseWrite();
  }

  trim(): Promise<void> {
    return refuseWrite();
  }

  flush(): Promise<void> {
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  #refuseIfLost(): void {
    if (this.#refusal !== null) throw this.#refusal;
    if (this.#log.isBroken) {
      throw new DeviceError("EIO", "the last checkpoint is lost: its before-images could not be kept");
    }
  }
}

/** Enters what recovery finds in the log. */
export function recoverImage(map: ExtentMap, { kind, offset, lengthBytes, position }: RecoveredRecord): void {
  map.set(offset, offset + lengthBytes, kind === "zero" ? ZERO : position);
}

function refuseWrite(): Promise<never> {
  return Promise.reject(new DeviceError("EPERM", "the hidden overlay takes before-images only"));
}
