/** Reading through an overlay: what its map holds comes from the overlay, the rest from the backing device. */
import type { BlockDevice, Extent } from "../device.js";
import { ABSENT, type ExtentMap, ZERO } from "../extent-map.js";
import { settleAll } from "../settle-all.js";

export interface Layer {
  readonly map: ExtentMap;
  readonly backing: BlockDevice;
  /** Fills `into` from where the map's target says the content is. */
  fetch(target: number, into: Buffer): Promise<void>;
}

/**
 * Reads through a layer that may gain extents meanwhile. A copy-before-write between our look at the map and our read
 * of the backing device would show us the new content; it enters its extent in the map before it overwrites, so a
 * second look after the read finds it, and what the overlay gained replaces what we read.
 */
export async function readThrough(layer: Layer, offset: number, into: Buffer): Promise<void> {
  const { map } = layer;
  const end = offset + into.length;
  const version = map.version;
  const gaps: [start: number, end: number][] = [];
  const reads: Promise<void>[] = [];
  map.visit(offset, end, (start, pieceEnd, target) => {
    const piece = into.subarray(start - offset, pieceEnd - offset);
    if (target === ABSENT) {
      gaps.push([start, pieceEnd]);
      reads.push(layer.backing.read(start, piece));
    } else if (target === ZERO) piece.fill(0);
    else reads.push(layer.fetch(target, piece));
  });
  await settleAll(reads);
  if (map.version === version) return;

  const second: Promise<void>[] = [];
  for (const [gapStart, gapEnd] of gaps) {
    map.visit(gapStart, gapEnd, (start, pieceEnd, target) => {
      const piece = into.subarray(start - offset, pieceEnd - offset);
      if (target === ZERO) piece.fill(0);
      else if (target !== ABSENT) second.push(layer.fetch(target, piece));
    });
  }
  await settleAll(second);
}

/**
 * Describes a range through a layer, up to the first gap's end. What the overlay gained while the device below was
 * asked may have been overwritten there by then, so the answer stops short of it.
 */
export async function extentsThrough(
  layer: Layer,
  offset: number,
  lengthBytes: number,
  maxExtents: number,
): Promise<Extent[]> {
  // Ends with the second round at the latest: where the first one has nothing to tell, the map begins with an extent.
  for (;;) {
    const [extents, gap] = mappedPrefix(layer.map, offset, offset + lengthBytes, maxExtents);
    if (gap === null) return extents;
    const below = await layer.backing.extents(gap.start, gap.end - gap.start, maxExtents - extents.length);
    let at = gap.start;
    const end = firstMapped(layer.map, gap.start, gap.end);
    for (const extent of below) {
      if (at >= end) break;
      extents.push(at + extent.lengthBytes <= end ? extent : { ...extent, lengthBytes: end - at });
      at += extent.lengthBytes;
    }
    if (extents.length > 0) return extents;
  }
}

function firstMapped(map: ExtentMap, start: number, end: number): number {
  if (!map.intersects(start, end)) return end;
  let first = end;
  map.visit(start, end, (pieceStart, _pieceEnd, target) => {
    if (target !== ABSENT) first = Math.min(first, pieceStart);
  });
  return first;
}

/** The extents up to and without the first gap, and that gap unless `maxExtents` was reached before it. */
function mappedPrefix(
  map: ExtentMap,
  start: number,
  end: number,
  maxExtents: number,
): [Extent[], { start: number; end: number } | null] {
  const extents: Extent[] = [];
  let gap: { start: number; end: number } | null = null;
  map.visit(start, end, (pieceStart, pieceEnd, target) => {
    if (gap !== null || extents.length === maxExtents) return;
    if (target === ABSENT) gap = { start: pieceStart, end: pieceEnd };
    else extents.push({ lengthBytes: pieceEnd - pieceStart, hole: target === ZERO, zero: target === ZERO });
  });
  return [extents, gap];
}
