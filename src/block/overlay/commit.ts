/**
 * Failover's commit: merges the overlays into the disk while clients of the view go on reading and writing.
 * (QEMU: the active commit job that replication_stop() starts.)
 *
 * Invariants:
 * - A block is an overlay's or the disk's for the whole commit, decided by what the overlays held when it began.
 *   The overlays are never emptied before the end, so the commit can be cut off at any instant and begun anew:
 *   a second run writes the same content again.
 * - A write to an overlay's block goes to the active overlay, and to the disk as well once the block is committed.
 *   The active overlay thus always has the newest content of such a block, which is what a new run goes by.
 * - Nothing but this device writes the disk or the overlays.
 */
import { DeviceError } from "../../errors.js";
import { withBuffer } from "../buffer-pool.js";
import { type BlockDevice, type DeviceInfo, type Extent, Flag, type Flags } from "../device.js";
import { ExtentMap, ZERO } from "../extent-map.js";
import { RangeLock } from "../range-lock.js";
import { settleAll } from "../settle-all.js";
import { isZeroes } from "../zeroes.js";
import type { ActiveOverlay } from "./active.js";
import type { HiddenOverlay } from "./hidden.js";

/** One step of the commit; also how long a client's write may wait for it. */
const STEP_BYTES = 1024 * 1024;

/** Called after each step: bytes done and in all. */
export type CommitProgress = (doneBytes: number, totalBytes: number) => void;

export class CommitDevice implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #disk: BlockDevice;
  readonly #active: ActiveOverlay;
  readonly #locks = new RangeLock();
  /** The overlays' blocks, and those of them that the disk has by now; the targets mean nothing. */
  readonly #owned = new ExtentMap();
  readonly #committed = new ExtentMap();
  #isInterrupted = false;

  constructor(disk: BlockDevice, hidden: HiddenOverlay, active: ActiveOverlay) {
    this.info = active.info;
    this.#disk = disk;
    this.#active = active;
    for (const [start, end] of [...hidden.mapped(), ...active.mapped()]) this.#owned.set(start, end, ZERO);
  }

  /** Bytes that the commit has to write. */
  get totalBytes(): number {
    return this.#owned.mappedBytes;
  }

  /**
   * Writes the overlays' content to the disk and makes it durable.
   * @throws DeviceError if it can't be done; the device then keeps serving through the overlays, and may be run again
   */
  async run(onProgress: CommitProgress): Promise<void> {
    let doneBytes = 0;
    try {
      for (const [start, end] of this.#owned.ranges()) {
        for (let at = start; at < end; at += STEP_BYTES) {
          const stepEnd = Math.min(at + STEP_BYTES, end);
          if (this.#isInterrupted) throw new DeviceError("ESHUTDOWN", "the commit was interrupted");
          await this.#commitStep(at, stepEnd);
          doneBytes += stepEnd - at;
          onProgress(doneBytes, this.totalBytes);
        }
      }
      await this.#disk.flush();
    } catch (error) {
      this.#committed.clear();
      throw error;
    }
  }

  /** Makes run() reject after the step that it is at. */
  interrupt(): void {
    this.#isInterrupted = true;
  }

  read(offset: number, into: Buffer): Promise<void> {
    return this.#active.read(offset, into);
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    return this.#change(offset, from.length, (device, start, end) =>
      device.write(start, from.subarray(start - offset, end - offset), flags),
    );
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    // The disk may refuse when the overlay has been zeroed already; a refusal must have changed nothing.
    if ((flags & Flag.FastZero) !== 0) {
      return Promise.reject(new DeviceError("ENOTSUP", "zeroing is not fast while a commit is under way"));
    }
    return this.#change(offset, lengthBytes, (device, start, end) => device.zero(start, end - start, flags));
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    // Both sides of a committed block must end up alike, which zero promises and trim does not.
    return this.zero(offset, lengthBytes, flags);
  }

  async flush(): Promise<void> {
    await settleAll([this.#active.flush(), this.#disk.flush()]);
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#active.extents(offset, lengthBytes, maxExtents);
  }

  close(): Promise<void> {
    return this.#active.close();
  }

  async #commitStep(start: number, end: number): Promise<void> {
    const hold = await this.#locks.lock(start, end, "exclusive");
    try {
      await withBuffer(end - start, async (content) => {
        await this.#active.read(start, content);
        if (isZeroes(content)) await this.#disk.zero(start, content.length, 0);
        else await this.#disk.write(start, content, 0);
      });
      this.#committed.set(start, end, ZERO);
    } finally {
      hold.release();
    }
  }

  async #change(
    offset: number,
    lengthBytes: number,
    apply: (device: BlockDevice, start: number, end: number) => Promise<void>,
  ): Promise<void> {
    const hold = await this.#locks.lock(offset, offset + lengthBytes, "exclusive");
    try {
      const parts: Promise<void>[] = [];
      this.#owned.visit(offset, offset + lengthBytes, (start, end, target) => {
        if (target === ZERO) this.#changeOwned(start, end, apply, parts);
        else parts.push(apply(this.#disk, start, end));
      });
      await settleAll(parts);
    } finally {
      hold.release();
    }
  }

  #changeOwned(
    start: number,
    end: number,
    apply: (device: BlockDevice, start: number, end: number) => Promise<void>,
    parts: Promise<void>[],
  ): void {
    parts.push(apply(this.#active, start, end));
    this.#committed.visit(start, end, (committedStart, committedEnd, target) => {
      if (target === ZERO) parts.push(apply(this.#disk, committedStart, committedEnd));
    });
  }
}
