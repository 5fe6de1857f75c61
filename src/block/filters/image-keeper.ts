/**
 * Keeps in the hidden overlay what a change of the disk is about to overwrite, whatever the change and its length.
 *
 * The caller holds the blocks: nobody else changes them, from here until they have been overwritten.
 */
import { asError } from "../../errors.js";
import { COPIED_MAXIMUM_BYTES } from "../../meta/overlay-log-batch.js";
import { payloadBuffers } from "../buffer-pool.js";
import type { BlockDevice } from "../device.js";
import type { RangeFailure } from "../failure.js";
import { type BeforeImage, COPY_BLOCK_BYTES, type HiddenOverlay } from "../overlay/hidden.js";
import { ASK_EXTENTS_FROM_BYTES, imagesOf, isHole, MAX_IMAGE_BYTES, readImages } from "./before-image.js";
import { isZeroes } from "../zeroes.js";

/** A change of the disk. */
export type Operation =
  | { readonly kind: "write"; readonly offset: number; readonly lengthBytes: number; readonly data: Buffer }
  | {
      readonly kind: "zero" | "trim";
      readonly offset: number;
      readonly lengthBytes: number;
      readonly data: null;
    };

/** What stage() found: an image was staged; all blocks have one; the disk holds the new content already; it can't be told at once. */
export type Staging = "staged" | "kept before" | "no change" | "not at once";

/** For old content that is done with before anybody else is called. */
const SCRATCH = Buffer.allocUnsafeSlow(ASK_EXTENTS_FROM_BYTES);

export class ImageKeeper {
  readonly #disk: BlockDevice;
  readonly #onImageError: (failure: RangeFailure) => Promise<void>;

  /** @param onImageError as in CopyBeforeWriteOptions */
  constructor(disk: BlockDevice, onImageError: (failure: RangeFailure) => Promise<void>) {
    this.#disk = disk;
    this.#onImageError = onImageError;
  }

  /** The whole blocks that a range touches. */
  blocksOf(offset: number, lengthBytes: number): [start: number, end: number] {
    const end = Math.ceil((offset + lengthBytes) / COPY_BLOCK_BYTES) * COPY_BLOCK_BYTES;
    return [offset - (offset % COPY_BLOCK_BYTES), Math.min(end, this.#disk.info.sizeBytes)];
  }

  /**
   * The common case of a short write, in one go: its blocks are in memory, and all have a before-image or none has. What was
   * staged is kept when the overlay's next commit() resolves.
   */
  stage(hidden: HiddenOverlay, offset: number, data: Buffer): Staging {
    const [start, end] = this.blocksOf(offset, data.length);
    // After a failure of the log keep() has to ask what is to become of the checkpoint.
    if (hidden.isBroken || hidden.hasFailed || end - start >= ASK_EXTENTS_FROM_BYTES) return "not at once";
    const coverage = hidden.coverage(start, end);
    if (coverage !== "none") return coverage === "all" ? "kept before" : "not at once";
    const old = SCRATCH.subarray(0, end - start);
    if (this.#disk.tryRead?.(start, old) !== true) return "not at once";
    if (data.equals(old.subarray(offset - start, offset - start + data.length))) return "no change";
    for (const image of imagesOf(old, start, [[start, end]])) hidden.stage(image);
    return "staged";
  }

  /**
   * Resolves when whatever the operation overwrites is kept, or the checkpoint was given up.
   * @param isPatient whether nobody waits for it; asked when the image is about to be logged
   * @returns false if the request would change nothing: what it writes is there already, and needs no before-image
   * @throws what onImageError() rejects with: it must not be done
   */
  async keep(hidden: HiddenOverlay, operation: Operation, isPatient: () => boolean): Promise<boolean> {
    const [start, end] = this.blocksOf(operation.offset, operation.lengthBytes);
    const missing = hidden.missing(start, end);
    // Once the checkpoint is given up, copying would only cost.
    if (missing.length === 0 || hidden.isBroken) return true;
    if (operation.kind === "write" && end - start <= MAX_IMAGE_BYTES) {
      return this.#keepUnlessEqual(hidden, operation, [start, end], missing, isPatient);
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
    isPatient: () => boolean,
  ): Promise<boolean> {
    const keep = (images: readonly BeforeImage[]): Promise<void> => hidden.keep(images, isPatient());
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
      await this.#onImageError({ offset: start, lengthBytes: end - start, error: asError(error) });
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
      await this.#onImageError({ offset: start, lengthBytes: end - start, error: asError(error) });
      return end;
    }
  }
}
