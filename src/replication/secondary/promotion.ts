/**
 * A secondary's life as a primary: from the instant of its failover on, its guests' writes go through a mirror and a dirty map, so
 * that it can take a replica of its own, and the old primary can come back with what differs.
 *
 * Invariant: before the first write that the old primary does not have, the dirty maps name every block in which this node may
 * differ from what it received: what the failover takes back, and what its own guest had written.
 */
import type { Logger } from "pino";
import type { BlockDevice } from "../../block/device.js";
import type { SecondaryMetadata } from "../../meta/metadata.js";
import type { Epoch } from "./epoch.js";
import type { MetadataKeeper } from "../metadata-keeper.js";
import { Primary } from "../primary/primary.js";
import type { PrimaryKeeper } from "../primary/keeper.js";
import type { PrimaryOptions } from "../primary/options.js";
import { handedOver } from "../roles.js";
import type { SecondaryDisk } from "./disk.js";
import type { FailoverTarget } from "../stage.js";

/** How a promoted node replicates. */
export type PrimarySettings = Omit<PrimaryOptions, "directory" | "disks" | "log">;

/** Makes the primary that the node is from now on; its guests' exports are to be put under the views by the caller. */
export function promote(
  disks: readonly SecondaryDisk[],
  metadata: MetadataKeeper<SecondaryMetadata>,
  options: Pick<PrimaryOptions, "directory" | "log"> & PrimarySettings,
): Promise<Primary> {
  return Primary.promoted(
    {
      ...options,
      disks: disks.map(({ name, path, stack }) => ({ name, path, device: stack })),
    },
    keeperOf(metadata),
  );
}

/**
 * Makes the primary's dirty maps tell, durably, what the failover takes back or keeps. Called again, even for another target, it
 * adds to what they tell.
 * @param isResumed whether the failover was asked for in an earlier life
 */
export async function tellChanges(
  primary: Primary,
  { tenure, offeredTenure, returning }: SecondaryMetadata,
  overlays: Epoch,
  target: FailoverTarget,
  isResumed: boolean,
  log: Logger,
): Promise<void> {
  for (const [index, { name: disk, dirty }] of primary.disks.entries()) {
    // Guests may have been let in: a map that is new by now, or tells nothing, was lost.
    if (isResumed && returning && dirty.tenure === null) {
      log.warn({ disk }, "what guests have changed since the failover is not known: a full copy");
      await dirty.describe(null, false);
      continue;
    }
    // The old primary's maps go by this name, unless the last answer to it was lost.
    const name = offeredTenure ?? tenure;
    await dirty.describe(name, name !== null);
    const changes = target === "checkpoint" ? overlays.overlays[index] : undefined;
    for (const overlay of changes === undefined ? [] : [changes.hidden, changes.active]) {
      for (const [start, end] of overlay.mapped()) await dirty.markMissed(start, end - start);
    }
  }
}

/** What a guest of each disk sees. */
export function guestExportsOf(primary: Primary): BlockDevice[] {
  return primary.disks.map(({ guestExport }) => guestExport);
}

function keeperOf(metadata: MetadataKeeper<SecondaryMetadata>): PrimaryKeeper {
  return {
    get current() {
      const { generation } = metadata.current;
      if (generation === null) throw new Error("a promoted node without a generation");
      return { ...metadata.current, generation };
    },
    get recorded() {
      return metadata.recorded;
    },
    save: (change) => metadata.save(change),
    saveSoon: (change) => metadata.saveSoon(change),
    comeBack: (tenure) => metadata.save(handedOver(metadata.current, tenure)),
  };
}
