/**
 * Copy-before-write: keeps the old content of every block in the hidden overlay before the block is overwritten.
 * (QEMU: the backup job with sync=none that replication.c starts on the secondary disk.)
 *
 * A plain write is acknowledged once it is here in memory and goes on in the background; FUA and flush are
 * acknowledged when it is durable (NBD document, "Ordering of messages and writes").
 *
 * Invariants:
 * - While an epoch is open, a block's content on the disk changes only after its before-image is in the overlay.
 * - Requests that touch a common block are applied one after the other in order of arrival; reads and extents wait
 *   for earlier writes to what they ask for, so that they see what was acknowledged.
 * - Background writes hold no more memory than the budget; whoever exceeds it waits, and so does the socket behind.
 * - After a failure behind an acknowledgement nothing is acknowledged any more until reset(): neither a later write
 *   nor a flush may pretend that the lost one is there.
 */
import type { Clock } from "../../clock.js";
import { asError, DeviceError, errnoOf } from "../../errors.js";
import { COPIED_MAXIMUM_BYTES } from "../../meta/overlay-log-batch.js";
import { type BlockDevice, type DeviceInfo, type Extent, Flag, type Flags } from "../device.js";
import { CommonStart } from "./common-start.js";
import { type ArenaCopy, CopyArena, payloadBuffers } from "../buffer-pool.js";
import type { MemoryBudget } from "../memory-budget.js";
import { type BeforeImage, COPY_BLOCK_BYTES, type HiddenOverlay } from "../overlay/hidden.js";
import { type RangeHold, RangeLock, type RangeLockMode } from "../range-lock.js";
import { imagesOf, isHole, isZeroes, MAX_IMAGE_BYTES, readImages } from "./before-image.js";

export interface CopyBeforeWriteOptions {
  /** Memory for acknowledged writes that are not on the disk yet. */
  readonly memory: MemoryBudget;
  readonly clock: Clock;
  /**
   * The before-image could not be kept (design, promise 5). Resolve to overwrite the blocks without it, which gives up the
   * checkpoint; reject to refuse the write.
   */
  readonly onImageError: (error: Error) => Promise<void>;
  /** A request failed: `acknowledged` says whether its sender believes it done. */
  readonly onError: (failure: {
    operation: string;
    offset: number;
    lengthBytes: number;
    error: Error;
  }) => void;
}

const DONE = Promise.resolve();

type Operation =
  | { readonly kind: "write"; readonly offset: number; readonly lengthBytes: number; readonly data: Buffer }
  | {
      readonly kind: "zero" | "trim";
      readonly offset: number;
      readonly lengthBytes: number;
      readonly data: null;
    };

export class CopyBeforeWrite implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #disk: BlockDevice;
  readonly #options: CopyBeforeWriteOptions;
  readonly #locks = new RangeLock();
  readonly #background = new Set<Promise<void>>();
  readonly #copies = new CopyArena();
  readonly #start: CommonStart;
  #hidden: HiddenOverlay | null = null;
  #isClosed = false;
  #failure: DeviceError | null = null;
  #pendingBytes = 0;
  /** How many wait for what is done in the background; while nobody does, the log may be patient. */
  #awaited = 0;

  constructor(disk: BlockDevice, options: CopyBeforeWriteOptions) {
    this.info = disk.info;
    this.#disk = disk;
    this.#options = options;
    this.#start = new CommonStart(options.clock);
  }

  /** Bytes acknowledged and not yet on the disk. */
  get pendingBytes(): number {
    return this.#pendingBytes;
  }

  /** The failure that has stopped acknowledgements, if any. */
  get failure(): DeviceError | null {
    return this.#failure;
  }

  /**
   * Opens an epoch with an empty overlay, or ends copying (null: writes go straight to the disk).
   * Only with no request in flight and after drain().
   */
  setOverlay(hidden: HiddenOverlay | null): void {
    this.#hidden = hidden;
  }

  /** Forgets a failure: whoever calls this knows that the lost writes will be sent again, or were given up. */
  reset(): void {
    this.#failure = null;
  }

  /** Refuses everything from now on: the disk is about to belong to somebody else (failover). */
  fence(): void {
    this.#isClosed = true;
  }

  /** Resolves when every acknowledged write is on the disk, or has failed (see `failure`). */
  async drain(): Promise<void> {
    while (this.#background.size > 0) await this.#hurry(Promise.allSettled(this.#background));
  }

  async read(offset: number, into: Buffer): Promise<void> {
    const hold = await this.#take(offset, offset + into.length, "shared");
    try {
      await this.#disk.read(offset, into);
    } finally {
      hold.release();
    }
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    const operation = { kind: "write", offset, lengthBytes: from.length, data: from } as const;
    if (this.#hidden === null || (flags & Flag.Fua) !== 0) return this.#submit(operation, flags);
    const refusal = this.#refusal();
    if (refusal !== null) return Promise.reject(refusal);
    return this.#submitInBackground(offset, from);
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    // Whether zeroing is fast depends on what lies there; before-images have to be read in any case.
    if ((flags & Flag.FastZero) !== 0 && this.#hidden !== null) {
      return Promise.reject(new DeviceError("ENOTSUP", "zeroing is not fast while before-images are kept"));
    }
    return this.#submit({ kind: "zero", offset, lengthBytes, data: null }, flags);
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#submit({ kind: "trim", offset, lengthBytes, data: null }, flags);
  }

  async flush(): Promise<void> {
    // A snapshot: later writes are not this flush's business, and under load there would always be one more.
    await this.#hurry(Promise.allSettled([...this.#background]));
    const refusal = this.#refusal();
    if (refusal !== null) throw refusal;
    await this.#disk.flush();
  }

  /** Waits as a read does: an acknowledged write that is not on the disk yet must not be taken for a hole. */
  async extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    const hold = await this.#take(offset, offset + lengthBytes, "shared");
    try {
      return await this.#disk.extents(offset, lengthBytes, maxExtents);
    } finally {
      hold.release();
    }
  }

  close(): Promise<void> {
    return this.#disk.close();
  }

  #refusal(): DeviceError | null {
    if (this.#isClosed)
      return new DeviceError("ESHUTDOWN", "this disk was promoted: it takes no more replication writes");
    return this.#failure;
  }

  /** Acknowledged when it is on the disk. */
  async #submit(operation: Operation, flags: Flags): Promise<void> {
    const refusal = this.#refusal();
    if (refusal !== null) throw refusal;
    try {
      const [start, end] = this.#blocks(operation.offset, operation.lengthBytes);
      await this.#apply(operation, flags, this.#take(start, end, "exclusive"), false);
    } catch (error) {
      this.#report(operation, error);
      throw error;
    }
  }

  /** Acknowledged when it is in memory. The lock is taken at once: it keeps the order of arrival. */
  #submitInBackground(offset: number, from: Buffer): Promise<void> {
    const { memory } = this.#options;
    const admitted = memory.tryTake(from.length) ? null : this.#hurry(memory.take(from.length));
    const copy = this.#copies.copy(from);
    this.#pendingBytes += from.length;
    const [start, end] = this.#blocks(offset, from.length);
    const turn = this.#locks.take(start, end, "exclusive");
    const applied = this.#applyBehind(offset, copy, turn, admitted).finally(() => {
      this.#background.delete(applied);
    });
    this.#background.add(applied);
    return admitted ?? DONE;
  }

  /** Never rejects. */
  async #applyBehind(
    offset: number,
    copy: ArenaCopy,
    turn: RangeHold | Promise<RangeHold>,
    admitted: Promise<void> | null,
  ): Promise<void> {
    const { bytes } = copy;
    const operation = { kind: "write", offset, lengthBytes: bytes.length, data: bytes } as const;
    try {
      // Whoever waits for the acknowledgement waits for nothing that is begun here.
      await this.#start.join(bytes.length, this.#awaited > 0);
      await this.#apply(operation, Flag.None, turn, true);
    } catch (error) {
      const reason = `an acknowledged write at ${offset} was lost: ${asError(error).message}`;
      this.#failure ??= new DeviceError(errnoOf(error), reason, { cause: error });
      this.#report(operation, error);
    }
    this.#copies.release(copy);
    this.#pendingBytes -= bytes.length;
    if (admitted !== null) await admitted;
    this.#options.memory.give(bytes.length);
  }

  #report(operation: Operation, error: unknown): void {
    this.#options.onError({
      operation: operation.kind,
      offset: operation.offset,
      lengthBytes: operation.lengthBytes,
      error: asError(error),
    });
  }

  /** The whole blocks that a range touches. */
  #blocks(offset: number, lengthBytes: number): [start: number, end: number] {
    const end = Math.ceil((offset + lengthBytes) / COPY_BLOCK_BYTES) * COPY_BLOCK_BYTES;
    return [offset - (offset % COPY_BLOCK_BYTES), Math.min(end, this.info.sizeBytes)];
  }

  /** A turn that somebody waits for: what is done in the background before it had better be quick. */
  #take(start: number, end: number, mode: RangeLockMode): RangeHold | Promise<RangeHold> {
    const turn = this.#locks.take(start, end, mode);
    return turn instanceof Promise ? this.#hurry(turn) : turn;
  }

  async #hurry<T>(wait: Promise<T>): Promise<T> {
    this.#awaited++;
    this.#start.hurry();
    this.#hidden?.hurry();
    try {
      return await wait;
    } finally {
      this.#awaited--;
    }
  }

  /** @param isBehind nobody waits for it, unless for all that is done in the background */
  async #apply(
    operation: Operation,
    flags: Flags,
    turn: RangeHold | Promise<RangeHold>,
    isBehind: boolean,
  ): Promise<void> {
    const hold = turn instanceof Promise ? await turn : turn;
    try {
      const isChange = await this.#keepBeforeImages(operation, isBehind);
      if (isChange) await this.#overwrite(operation, flags);
      else if ((flags & Flag.Fua) !== 0) await this.#disk.flush();
    } finally {
      hold.release();
    }
  }

  #overwrite(operation: Operation, flags: Flags): Promise<void> {
    const { offset, lengthBytes } = operation;
    switch (operation.kind) {
      case "write":
        return this.#disk.write(offset, operation.data, flags);
      case "zero":
        return this.#disk.zero(offset, lengthBytes, flags);
      case "trim":
        return this.#disk.trim(offset, lengthBytes, flags);
    }
  }

  /** @returns false if the request would change nothing: what it writes is there already, and needs no before-image. */
  async #keepBeforeImages(operation: Operation, isBehind: boolean): Promise<boolean> {
    const [start, end] = this.#blocks(operation.offset, operation.lengthBytes);
    const hidden = this.#hidden;
    if (hidden === null) return true;
    const missing = hidden.missing(start, end);
    // Once the checkpoint is given up, copying would only cost.
    if (missing.length === 0 || hidden.isBroken) return true;
    if (operation.kind === "write" && end - start <= MAX_IMAGE_BYTES) {
      return this.#keepUnlessEqual(hidden, operation, [start, end], missing, isBehind);
    }
    // A longer range is copied a piece at a time, which bounds memory whatever its length.
    for (const [gapStart, gapEnd] of missing) {
      let at = gapStart;
      while (at < gapEnd) at = await this.#keepPiece(hidden, operation, at, gapEnd);
    }
    return true;
  }

  async #keepUnlessEqual(
    hidden: HiddenOverlay,
    operation: Operation & { kind: "write" },
    [start, end]: readonly [start: number, end: number],
    missing: readonly [start: number, end: number][],
    isBehind: boolean,
  ): Promise<boolean> {
    const keep = (images: readonly BeforeImage[]): Promise<void> =>
      hidden.keep(images, isBehind && this.#awaited === 0);
    const buffer = payloadBuffers.take(end - start);
    let isHeld = true;
    const giveBack = (): void => {
      if (isHeld) payloadBuffers.give(buffer);
      isHeld = false;
    };
    try {
      // Reading a long hole would fill the page cache with zeroes first.
      if (await isHole(this.#disk, start, end)) {
        if (isZeroes(operation.data)) return false;
        await keep(missing.map(([from, to]) => ({ offset: from, lengthBytes: to - from, data: null })));
        return true;
      }
      const old = buffer.subarray(0, end - start);
      await this.#disk.read(start, old);
      const from = operation.offset - start;
      if (operation.data.equals(old.subarray(from, from + operation.lengthBytes))) return false;
      const kept = keep(imagesOf(old, start, missing));
      // A buffer is many times as long as a block: held until that is durable, thousands of them would break the budget.
      if (old.length <= COPIED_MAXIMUM_BYTES) giveBack();
      await kept;
    } catch (error) {
      await this.#options.onImageError(asError(error));
    } finally {
      giveBack();
    }
    return true;
  }

  /** @returns how far it got */
  async #keepPiece(hidden: HiddenOverlay, operation: Operation, start: number, end: number): Promise<number> {
    if (hidden.isBroken) return end;
    try {
      const piece = await readImages(this.#disk, start, end);
      // Zeroes written over zeroes change nothing, which spares an empty disk a log of its emptiness.
      const images =
        operation.kind === "zero" ? piece.images.filter((image) => image.data !== null) : piece.images;
      if (images.length > 0) await hidden.keep(images);
      return piece.end;
    } catch (error) {
      await this.#options.onImageError(asError(error));
      return end;
    }
  }
}
