/** What a primary must know after a restart, and where it finds it at its start. */
import type { Logger } from "pino";
import { DirtyMap, dirtyMapName } from "../../block/dirty-map.js";
import {
  checkDisks,
  metadataPath,
  newPrimaryMetadata,
  type PrimaryMetadata,
  readMetadata,
  writeMetadata,
} from "../../meta/metadata.js";
import type { StateDirectory } from "../../meta/state-directory.js";
import { findForeignDisk, type ForeignDisk, identifyDisks } from "../../meta/disk-identity.js";
import { newLine } from "../generation.js";
import { MetadataKeeper } from "../metadata-keeper.js";
import { asPrimary, handedOver } from "../roles.js";
import type { NamedDisk } from "../named-disk.js";

export type PrimaryFacts = Pick<
  PrimaryMetadata,
  "uuid" | "generation" | "ancestors" | "replicaGeneration" | "epoch" | "cleanShutdown" | "disks"
>;

/** What a primary must know after a restart, and how it is kept. */
export interface PrimaryKeeper {
  readonly current: PrimaryFacts;
  /** The last that is on record for certain. */
  readonly recorded: Pick<PrimaryFacts, "replicaGeneration"> & { readonly generation: string | null };
  save(change: Partial<PrimaryFacts>): Promise<void>;
  /** As MetadataKeeper.saveSoon(). */
  saveSoon(change: Partial<PrimaryFacts>): Promise<void>;
  /** From the next start on the node is the secondary of the one that took over. @param tenure of its dirty maps */
  comeBack(tenure: string | null): Promise<void>;
}

/**
 * Reads, or makes, the metadata of a node that is started as a primary; nothing is written yet. With a disk that is another file the
 * data is new, of a line of history that has nothing to do with the one on record.
 * @returns known: what is on record, or null; foreign: how a disk is not as the node left it, or null
 * @throws MetadataError if the state directory can't be trusted or belongs to other disks
 */
export async function openPrimaryKeeper(
  directory: StateDirectory,
  disks: readonly NamedDisk[],
  log: Logger,
): Promise<{
  readonly keeper: PrimaryKeeper;
  readonly known: PrimaryMetadata | null;
  readonly foreign: ForeignDisk | null;
}> {
  const identities = await identifyDisks(disks, true);
  const found = await readMetadata(directory);
  const known = found === null ? null : asPrimary(found, metadataPath(directory));
  if (known !== null) checkDisks(directory, known.disks, identities);
  const foreign = known === null ? null : findForeignDisk(known.disks, identities, disks);
  const line = foreign?.isOtherFile === true ? { ...newLine(), replicaGeneration: null } : {};
  const initial = { ...(known ?? newPrimaryMetadata(identities)), ...line };
  const metadata = new MetadataKeeper<PrimaryMetadata>(directory, initial, log);
  const keeper: PrimaryKeeper = {
    get current() {
      return metadata.current;
    },
    get recorded() {
      return metadata.recorded;
    },
    save: (change) => metadata.save(change),
    saveSoon: (change) => metadata.saveSoon(change),
    comeBack: (tenure) => writeMetadata(directory, handedOver(metadata.current, tenure)),
  };
  return { keeper, known, foreign };
}

/**
 * The dirty map of each disk.
 * @param sizes of the disks that the maps are of; those of larger ones are made larger
 * @throws MetadataError if one can't be trusted: none is open then
 */
export async function openDirtyMaps(
  directory: StateDirectory,
  disks: readonly NamedDisk[],
  log: Logger,
  sizes: readonly number[] = disks.map(({ device }) => device.info.sizeBytes),
): Promise<readonly DirtyMap[]> {
  const maps: DirtyMap[] = [];
  try {
    for (const [disk, { name, device }] of disks.entries()) {
      const onBroken = (error: Error, isRemoved: boolean): void => {
        const remedy = isRemoved
          ? "the next start copies everything"
          : `remove ${directory.path}/${dirtyMapName(disk)} before the next start`;
        log.error({ disk: name, error: error.message }, `dirty map can't be kept: ${remedy}`);
      };
      const sizeBytes = sizes[disk] ?? device.info.sizeBytes;
      const flushDisk = (): Promise<void> => device.flush();
      maps.push(await DirtyMap.open({ directory, disk, sizeBytes, flushDisk, onBroken }));
    }
  } catch (error) {
    for (const map of maps) await map.close();
    throw error;
  }
  return maps;
}
