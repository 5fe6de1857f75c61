/**
 * An ordered map of disjoint byte ranges of a disk to where their content is: the index of an overlay.
 *
 * Each extent [start, end) has a target: byte `start + k` is found at position `target + k` of the overlay's
 * file, or the whole extent reads as zeroes (`ZERO`). Adjacent extents that continue each other are merged, so
 * that a sequential fill costs one entry, and random 4 KiB blocks cost 24 bytes each.
 *
 * Invariants: extents are non-empty, disjoint and sorted; no two neighbours could be merged unless a leaf
 * boundary lies between them; every leaf holds at least one extent, unless it is the only one.
 *
 * Lookups are two binary searches; an insertion moves at most one leaf. Leaves are typed arrays: a million
 * extents are no load for the garbage collector.
 */

/** Target of an extent that reads as zeroes. */
export const ZERO = -1;
/** Reported by visit() for a gap. */
export const ABSENT = -2;

const LEAF_CAPACITY = 128;

interface Leaf {
  count: number;
  readonly starts: Float64Array;
  readonly ends: Float64Array;
  readonly targets: Float64Array;
}

function newLeaf(): Leaf {
  return {
    count: 0,
    starts: new Float64Array(LEAF_CAPACITY),
    ends: new Float64Array(LEAF_CAPACITY),
    targets: new Float64Array(LEAF_CAPACITY),
  };
}

function at(array: Float64Array, index: number): number {
  const value = array[index];
  if (value === undefined) throw new RangeError("extent map: slot out of range");
  return value;
}

function advance(target: number, bytes: number): number {
  return target === ZERO ? ZERO : target + bytes;
}

export class ExtentMap {
  #leaves: Leaf[] = [newLeaf()];
  #extents = 0;
  #bytes = 0;
  #version = 0;

  /** How many extents there are. */
  get extentCount(): number {
    return this.#extents;
  }

  /** How many bytes are mapped. */
  get mappedBytes(): number {
    return this.#bytes;
  }

  /** Changes whenever the map does: lets a reader see that it has to look again. */
  get version(): number {
    return this.#version;
  }

  clear(): void {
    this.#leaves = [newLeaf()];
    this.#extents = 0;
    this.#bytes = 0;
    this.#version++;
  }

  /**
   * Calls `visit(start, end, target)` for each piece of [start, end) in order, gaps included (`ABSENT`).
   * The map must not change meanwhile.
   */
  visit(start: number, end: number, visit: (start: number, end: number, target: number) => void): void {
    let position = start;
    let [leafIndex, slot] = this.#locate(start);
    for (;;) {
      const leaf = this.#leaves[leafIndex];
      if (leaf === undefined) break;
      if (slot >= leaf.count) {
        leafIndex++;
        slot = 0;
        continue;
      }
      const extentStart = at(leaf.starts, slot);
      if (extentStart >= end) break;
      if (extentStart > position) {
        visit(position, extentStart, ABSENT);
        position = extentStart;
      }
      const pieceEnd = Math.min(at(leaf.ends, slot), end);
      visit(position, pieceEnd, advance(at(leaf.targets, slot), position - extentStart));
      position = pieceEnd;
      if (position === end) return;
      slot++;
    }
    if (position < end) visit(position, end, ABSENT);
  }

  /** The mapped ranges, in order. */
  ranges(): [start: number, end: number][] {
    const ranges: [number, number][] = [];
    for (const leaf of this.#leaves) {
      for (let slot = 0; slot < leaf.count; slot++) ranges.push([at(leaf.starts, slot), at(leaf.ends, slot)]);
    }
    return ranges;
  }

  /** Whether no byte of [start, end) is missing. */
  covers(start: number, end: number): boolean {
    let covered = true;
    this.visit(start, end, (_start, _end, target) => {
      if (target === ABSENT) covered = false;
    });
    return covered;
  }

  /** Whether any byte of [start, end) is mapped. */
  intersects(start: number, end: number): boolean {
    const [leafIndex, slot] = this.#locateExtent(start);
    const leaf = this.#leaf(leafIndex);
    return slot < leaf.count && at(leaf.starts, slot) < end;
  }

  /** Maps [start, end) to `target`, whatever was there before. */
  set(start: number, end: number, target: number): void {
    this.delete(start, end);
    this.#bytes += end - start;
    let [leafIndex, slot] = this.#locate(start);
    let leaf = this.#leaf(leafIndex);

    // The predecessor may sit at the end of the leaf before.
    if (slot > 0) {
      const before = slot - 1;
      if (at(leaf.ends, before) === start && continues(leaf, before, target)) {
        leaf.ends[before] = end;
        if (
          slot < leaf.count &&
          at(leaf.starts, slot) === end &&
          continues(leaf, before, at(leaf.targets, slot))
        ) {
          leaf.ends[before] = at(leaf.ends, slot);
          this.#remove(leafIndex, slot, 1);
        }
        return;
      }
    }
    if (
      slot < leaf.count &&
      at(leaf.starts, slot) === end &&
      advance(target, end - start) === at(leaf.targets, slot)
    ) {
      leaf.starts[slot] = start;
      leaf.targets[slot] = target;
      return;
    }
    if (leaf.count === LEAF_CAPACITY) {
      this.#split(leafIndex);
      [leafIndex, slot] = this.#locate(start);
      leaf = this.#leaf(leafIndex);
    }
    this.#insert(leaf, slot, start, end, target);
  }

  /** Unmaps [start, end). */
  delete(start: number, end: number): void {
    this.#version++;
    for (;;) {
      const [leafIndex, slot] = this.#locateExtent(start);
      const leaf = this.#leaf(leafIndex);
      if (slot >= leaf.count) return;
      const extentStart = at(leaf.starts, slot);
      const extentEnd = at(leaf.ends, slot);
      if (extentStart >= end) return;
      if (extentStart < start) {
        if (extentEnd > end && leaf.count === LEAF_CAPACITY) {
          this.#split(leafIndex);
          continue;
        }
        leaf.ends[slot] = start;
        this.#bytes -= Math.min(extentEnd, end) - start;
        if (extentEnd > end) {
          this.#insert(leaf, slot + 1, end, extentEnd, advance(at(leaf.targets, slot), end - extentStart));
          return;
        }
        continue;
      }
      if (extentEnd > end) {
        leaf.starts[slot] = end;
        leaf.targets[slot] = advance(at(leaf.targets, slot), end - extentStart);
        this.#bytes -= end - extentStart;
        return;
      }
      let last = slot;
      while (last < leaf.count && at(leaf.ends, last) <= end) {
        this.#bytes -= at(leaf.ends, last) - at(leaf.starts, last);
        last++;
      }
      this.#remove(leafIndex, slot, last - slot);
    }
  }

  #leaf(index: number): Leaf {
    const leaf = this.#leaves[index];
    if (leaf === undefined) throw new RangeError("extent map: leaf out of range");
    return leaf;
  }

  /**
   * The slot of the first extent that ends after `position`, in the leaf where `position` belongs. Behind that
   * leaf's last slot means: the first extent of the next leaf, if there is one; or the place to insert at.
   */
  #locate(position: number): [leafIndex: number, slot: number] {
    let low = 0;
    let high = this.#leaves.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (at(this.#leaf(middle).starts, 0) <= position) low = middle;
      else high = middle - 1;
    }
    const leaf = this.#leaf(low);
    let first = 0;
    let end = leaf.count;
    while (first < end) {
      const middle = (first + end) >>> 1;
      if (at(leaf.ends, middle) <= position) first = middle + 1;
      else end = middle;
    }
    return [low, first];
  }

  /** As #locate(), but of an extent that exists, unless there is none behind `position` at all. */
  #locateExtent(position: number): [leafIndex: number, slot: number] {
    const [leafIndex, slot] = this.#locate(position);
    const isBehindLeaf = slot === this.#leaf(leafIndex).count;
    return isBehindLeaf && leafIndex + 1 < this.#leaves.length ? [leafIndex + 1, 0] : [leafIndex, slot];
  }

  #insert(leaf: Leaf, slot: number, start: number, end: number, target: number): void {
    leaf.starts.copyWithin(slot + 1, slot, leaf.count);
    leaf.ends.copyWithin(slot + 1, slot, leaf.count);
    leaf.targets.copyWithin(slot + 1, slot, leaf.count);
    leaf.starts[slot] = start;
    leaf.ends[slot] = end;
    leaf.targets[slot] = target;
    leaf.count++;
    this.#extents++;
  }

  #remove(leafIndex: number, slot: number, count: number): void {
    const leaf = this.#leaf(leafIndex);
    leaf.starts.copyWithin(slot, slot + count, leaf.count);
    leaf.ends.copyWithin(slot, slot + count, leaf.count);
    leaf.targets.copyWithin(slot, slot + count, leaf.count);
    leaf.count -= count;
    this.#extents -= count;
    if (leaf.count === 0 && this.#leaves.length > 1) this.#leaves.splice(leafIndex, 1);
  }

  #split(leafIndex: number): void {
    const leaf = this.#leaf(leafIndex);
    const kept = leaf.count >>> 1;
    const upper = newLeaf();
    upper.starts.set(leaf.starts.subarray(kept, leaf.count));
    upper.ends.set(leaf.ends.subarray(kept, leaf.count));
    upper.targets.set(leaf.targets.subarray(kept, leaf.count));
    upper.count = leaf.count - kept;
    leaf.count = kept;
    this.#leaves.splice(leafIndex + 1, 0, upper);
  }
}

/** Whether content at `target` goes on where the extent in `slot` stops. */
function continues(leaf: Leaf, slot: number, target: number): boolean {
  return advance(at(leaf.targets, slot), at(leaf.ends, slot) - at(leaf.starts, slot)) === target;
}
