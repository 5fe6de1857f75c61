/** What a disk holds before it is overwritten: content where there is some, a marker where it reads as zeroes. */
import type { BlockDevice } from "../device.js";
import { type BeforeImage, COPY_BLOCK_BYTES } from "../overlay/hidden.js";
import { isZeroes } from "../zeroes.js";

/** The most content that one step of copying holds in memory. */
export const MAX_IMAGE_BYTES = 1024 * 1024;
/** From this length on it pays to ask for holes before reading. */
export const ASK_EXTENTS_FROM_BYTES = 64 * 1024;

/** The before-images of the `missing` parts of a range whose old content was read from `start` on. */
export function imagesOf(
  old: Buffer,
  start: number,
  missing: readonly [start: number, end: number][],
): BeforeImage[] {
  const images: BeforeImage[] = [];
  for (const [gapStart, gapEnd] of missing) {
    splitZeroes(old.subarray(gapStart - start, gapEnd - start), gapStart, images);
  }
  return images;
}

/**
 * Reads before-images from `start` on: holes of any length, and content up to MAX_IMAGE_BYTES.
 * @returns the images, which lie between `start` and `end`, and the offset up to which they tell all
 */
export async function readImages(
  disk: BlockDevice,
  start: number,
  limit: number,
): Promise<{ images: BeforeImage[]; end: number }> {
  if (limit - start < ASK_EXTENTS_FROM_BYTES || disk.info.extents !== "native") {
    return readContent(disk, start, Math.min(limit, start + MAX_IMAGE_BYTES));
  }
  const [extent] = await disk.extents(start, limit - start, 1);
  // Blocks are all or nothing: a hole counts only as far as it fills whole blocks.
  const wholeBlocks = extent?.zero === true ? extentEnd(start, extent.lengthBytes, limit) : start;
  if (wholeBlocks > start) {
    return { images: [{ offset: start, lengthBytes: wholeBlocks - start, data: null }], end: wholeBlocks };
  }
  return readContent(disk, start, Math.min(limit, start + MAX_IMAGE_BYTES));
}

/** Whether a range that is long enough to ask is one hole. */
export async function isHole(disk: BlockDevice, start: number, end: number): Promise<boolean> {
  if (end - start < ASK_EXTENTS_FROM_BYTES || disk.info.extents !== "native") return false;
  const [extent] = await disk.extents(start, end - start, 1);
  return extent?.zero === true && extent.lengthBytes === end - start;
}

function extentEnd(start: number, lengthBytes: number, limit: number): number {
  const end = start + lengthBytes;
  return end >= limit ? limit : end - (end % COPY_BLOCK_BYTES);
}

async function readContent(
  disk: BlockDevice,
  start: number,
  end: number,
): Promise<{ images: BeforeImage[]; end: number }> {
  const content = Buffer.allocUnsafe(end - start);
  await disk.read(start, content);
  const images: BeforeImage[] = [];
  splitZeroes(content, start, images);
  return { images, end };
}

/** Cuts content into runs of zero blocks and runs of others. */
function splitZeroes(content: Buffer, offset: number, images: BeforeImage[]): void {
  let runStart = 0;
  let runIsZero = false;
  for (let at = 0; at < content.length; at += COPY_BLOCK_BYTES) {
    const block = content.subarray(at, at + COPY_BLOCK_BYTES);
    const isZero = isZeroes(block);
    if (at > 0 && isZero !== runIsZero) {
      images.push(imageOf(content, runStart, at, offset, runIsZero));
      runStart = at;
    }
    runIsZero = isZero;
  }
  images.push(imageOf(content, runStart, content.length, offset, runIsZero));
}

function imageOf(content: Buffer, start: number, end: number, offset: number, isZero: boolean): BeforeImage {
  return {
    offset: offset + start,
    lengthBytes: end - start,
    data: isZero ? null : content.subarray(start, end),
  };
}
