/** What a node changed by itself, for a person: how much, and where that begins. */
import { z } from "zod";

import { formatSize } from "../config/units.js";

/** Ranges that a summary names. */
const RANGES = 3;

export const changesSummarySchema = z.strictObject({
  bytes: z.int().nonnegative(),
  /** The first ranges of it, in whole dirty blocks. */
  first: z
    .array(
      z.strictObject({
        disk: z.string(),
        offset: z.int().nonnegative(),
        lengthBytes: z.int().positive(),
      }),
    )
    .max(RANGES)
    .readonly(),
});

export type ChangesSummary = z.output<typeof changesSummarySchema>;

/** A disk's dirty map. */
export interface Changes {
  readonly sizeBytes: number;
  readonly missedBytes: number;
  nextMissed(from: number, maximumBytes: number): { offset: number; lengthBytes: number } | null;
}

/** @param maps the disks' by their names */
export function summaryOf(maps: Iterable<readonly [disk: string, map: Changes]>): ChangesSummary {
  const first: ChangesSummary["first"][number][] = [];
  let bytes = 0;
  for (const [disk, map] of maps) {
    bytes += map.missedBytes;
    let from = 0;
    while (first.length < RANGES && from < map.sizeBytes) {
      const run = map.nextMissed(from, Infinity);
      if (run === null) break;
      first.push({ disk, ...run });
      from = run.offset + run.lengthBytes;
    }
  }
  return { bytes, first };
}

/** `3 MiB, first on disk0 at 0+65536, 1048576+4096`. */
export function describeChanges({ bytes, first }: ChangesSummary): string {
  const ranges = first.map(({ disk, offset, lengthBytes }, index) => {
    const where = disk === first[index - 1]?.disk ? "" : `on ${disk} at `;
    return `${where}${offset}+${lengthBytes}`;
  });
  return ranges.length === 0 ? formatSize(bytes) : `${formatSize(bytes)}, first ${ranges.join(", ")}`;
}
