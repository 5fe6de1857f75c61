import { DirtyMap } from "../../src/block/dirty-map.js";
import type { StateDirectory } from "../../src/meta/state-directory.js";
import { MemoryStateDirectory } from "./memory-state-directory.js";

/** The dirty map of a disk alone in its state directory, with a link to a replica; a test that breaks it says so itself. */
export async function openDirtyMap(
  sizeBytes: number,
  directory: StateDirectory = new MemoryStateDirectory(),
  onBroken: (error: Error, isRemoved: boolean) => void = (error) => {
    throw error;
  },
  flushDisk: () => Promise<void> = () => Promise.resolve(),
): Promise<DirtyMap> {
  const map = await DirtyMap.open({ directory, disk: 0, sizeBytes, flushDisk, onBroken });
  map.linkMade(false);
  return map;
}
