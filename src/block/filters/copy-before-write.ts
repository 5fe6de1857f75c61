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
import { type BlockDevice, type DeviceInfo, type Extent, Flag, type Flags } from "../device.js";
import type { RangeFailure, RequestFailure } from "../failure.js";
import type { MemoryBudget } from "../memory-budget.js";
import type { HiddenOverlay } from "../overlay/hidden.js";
import { type RangeHold, RangeLock, type RangeLockMode } from "../range-lock.js";
import { CommonStart } from "./common-start.js";
import { ImageKeeper, type Operation } from "./image-keeper.js";
import { type WriteBehind, WritesBehind } from "./writes-behind.js";

export interface CopyBeforeWriteOptions {
  /** Memory for acknowledged writes that are not on the disk yet. */
  readonly memory: MemoryBudget;
  readonly clock: Clock;
  /**
   * The before-image of these blocks could not be kept. Resolve to overwrite the blocks without it, which gives up the
   * checkpoint; reject to refuse the write.
   */
  readonly onImageError: (failure: RangeFailure) => Promise<void>;
  /** A request failed: `acknowledged` says whether its sender believes it done. */
  readonly onError: (failure: RequestFailure) => void;
}

const DONE = Promise.resolve();

export class CopyBeforeWrite implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #disk: BlockDevice;
  readonly #options: CopyBeforeWriteOptions;
  readonly #locks = new RangeLock();
  readonly #images: ImageKeeper;
  readonly #behind: WritesBehind;
  readonly #start: CommonStart<WriteBehind>;
  #hidden: HiddenOverlay | null = null;
  #isFenced = false;
  #failure: DeviceError | null = null;
  /** A request that was to be durable failed: its flush may have lost what was acknowledged before. */
  #isInDoubt = false;
  /** Callers that wait for background writes; while there are none, the log may wait a little for more records. */
  #awaited = 0;

  constructor(disk: BlockDevice, options: CopyBeforeWriteOptions) {
    this.info = disk.info;
    this.#disk = disk;
    this.#options = options;
    this.#images = new ImageKeeper(disk, options.onImageError);
    this.#behind = new WritesBehind(options.memory);
    this.#start = new CommonStart(options.clock, this.#copyTogether);
  }

  /** Bytes acknowledged and not yet on the disk. */
  get pendingBytes(): number {
    return this.#behind.lengthBytes;
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

  /** Whether something acknowledged may be lost. */
  get mayHaveLost(): boolean {
    return this.#failure !== null || this.#isInDoubt;
  }

  /** Forgets a failure: whoever calls this knows that the lost writes will be sent again, or were given up. */
  reset(): void {
    this.#failure = null;
    this.#isInDoubt = false;
  }

  /** While fenced, every change and flush is refused: the disk is about to belong to somebody else (failover). */
  setFenced(isFenced: boolean): void {
    this.#isFenced = isFenced;
  }

  /** Resolves when every acknowledged write is on the disk, or has failed (see `failure`). */
  async drain(): Promise<void> {
    while (!this.#behind.isEmpty) await this.#hurry(this.#behind.settled());
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
    await this.#hurry(this.#behind.settled());
    const refusal = this.#refusal();
    if (refusal !== null) throw refusal;
    await this.makeDurable();
  }

  /** Flushes the disk. A failure may have lost any write that was acknowledged before. */
  async makeDurable(): Promise<void> {
    try {
      await this.#disk.flush();
    } catch (error) {
      const reason = `acknowledged writes may be lost: ${asError(error).message}`;
      this.#failure ??= new DeviceError(errnoOf(error), reason, { cause: error });
      throw error;
    }
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
    if (this.#isFenced)
      return new DeviceError("ESHUTDOWN", "this disk was promoted: it takes no more replication writes");
    return this.#failure;
  }

  /** Acknowledged when it is on the disk. */
  async #submit(operation: Operation, flags: Flags): Promise<void> {
    const refusal = this.#refusal();
    if (refusal !== null) throw refusal;
    try {
      const [start, end] = this.#images.blocksOf(operation.offset, operation.lengthBytes);
      await this.#apply(operation, flags, this.#take(start, end, "exclusive"), false);
    } catch (error) {
      if ((flags & Flag.Fua) !== 0) this.#isInDoubt = true;
      this.#report(operation, error);
      throw error;
    }
  }

  /** Acknowledged when it is in memory. The lock is taken at once: it keeps the order of arrival. */
  #submitInBackground(offset: number, from: Buffer): Promise<void> {
    const [start, end] = this.#images.blocksOf(offset, from.length);
    const turn = this.#locks.take(start, end, "exclusive");
    const write = this.#behind.add(offset, from, turn);
    const { admitted } = write;
    const acknowledged = admitted === null ? DONE : this.#hurry(admitted);
    // Asked after #hurry(), which counts this caller too if its acknowledgement has to wait for memory.
    this.#start.join(write, from.length, this.#awaited > 0);
    return acknowledged;
  }

  /** The common case in one go, with a promise for all: a block in memory that has no before-image, or has one. */
  readonly #copyTogether = (together: readonly WriteBehind[]): void => {
    const hidden = this.#hidden;
    const staged: { readonly write: WriteBehind; readonly hold: RangeHold }[] = [];
    for (const write of together) {
      const { turn } = write;
      if (hidden === null || turn instanceof Promise) {
        void this.#copyAlone(write);
        continue;
      }
      switch (this.#images.stage(hidden, write.offset, write.copy.bytes)) {
        case "staged":
          staged.push({ write, hold: turn });
          break;
        case "kept before":
          this.#overwriteBehind(write, turn);
          break;
        case "no change":
          turn.release();
          this.#behind.done(write);
          break;
        case "not at once":
          void this.#copyAlone(write);
          break;
      }
    }
    if (hidden === null || staged.length === 0) return;
    hidden.commit(this.#awaited === 0).then(
      () => {
        for (const { write, hold } of staged) this.#overwriteBehind(write, hold);
      },
      (error: unknown) => {
        for (const { write, hold } of staged) void this.#overwriteWithoutImage(write, hold, error);
      },
    );
  };

  #overwriteBehind(write: WriteBehind, hold: RangeHold): void {
    this.#disk.write(write.offset, write.copy.bytes, Flag.None).then(
      () => {
        hold.release();
        this.#behind.done(write);
      },
      (error: unknown) => {
        hold.release();
        this.#lost(write, error);
      },
    );
  }

  /** Never rejects. @param reason why the image of it could not be kept */
  async #overwriteWithoutImage(write: WriteBehind, hold: RangeHold, reason: unknown): Promise<void> {
    try {
      const [start, end] = this.#images.blocksOf(write.offset, write.copy.bytes.length);
      await this.#options.onImageError({ offset: start, lengthBytes: end - start, error: asError(reason) });
      this.#overwriteBehind(write, hold);
    } catch (error) {
      hold.release();
      this.#lost(write, error);
    }
  }

  /** Never rejects. */
  async #copyAlone(write: WriteBehind): Promise<void> {
    const { bytes } = write.copy;
    const operation = {
      kind: "write",
      offset: write.offset,
      lengthBytes: bytes.length,
      data: bytes,
    } as const;
    try {
      await this.#apply(operation, Flag.None, write.turn, true);
      this.#behind.done(write);
    } catch (error) {
      this.#lost(write, error);
    }
  }

  /** It was acknowledged, and is not on the disk. */
  #lost(write: WriteBehind, error: unknown): void {
    const lengthBytes = write.copy.bytes.length;
    const reason = `an acknowledged write at ${write.offset} was lost: ${asError(error).message}`;
    this.#failure ??= new DeviceError(errnoOf(error), reason, { cause: error });
    this.#report({ kind: "write", offset: write.offset, lengthBytes }, error);
    this.#behind.done(write);
  }

  #report(operation: Omit<Operation, "data">, error: unknown): void {
    this.#options.onError({
      operation: operation.kind,
      offset: operation.offset,
      lengthBytes: operation.lengthBytes,
      error: asError(error),
    });
  }

  /** Takes the lock for a caller that waits; if background writes are in its way, they are hurried. */
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

  /** @param isBehind it was acknowledged already: only those wait for it who wait for all background writes */
  async #apply(
    operation: Operation,
    flags: Flags,
    turn: RangeHold | Promise<RangeHold>,
    isBehind: boolean,
  ): Promise<void> {
    const hold = turn instanceof Promise ? await turn : turn;
    try {
      const hidden = this.#hidden;
      const isPatient = (): boolean => isBehind && this.#awaited === 0;
      const isChange = hidden === null || (await this.#images.keep(hidden, operation, isPatient));
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
}
