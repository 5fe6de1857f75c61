/**
 * `--grow`: disks that are larger from this start on.
 *
 * In this order, so that a crash between two steps leaves what the same start goes on with:
 * 1. metadata.json no longer tells when the file was changed last, for it is about to be;
 * 2. the file is made larger, as it is opened; a device, or the export of another server, has been by somebody else;
 * 3. metadata.json has the new size: from here on the disk is that large.
 * Its dirty map follows when it is opened (meta/dirty-map-growth.ts).
 * A start that is refused before the second step takes the first one back.
 */
import type { Logger } from "pino";
import type { DiskConfig, GrowthConfig } from "../config/fields.js";
import { ConfigError, MetadataError } from "../errors.js";
import type { FileIdentity } from "../meta/disk-identity.js";
import {
  type DiskIdentity,
  metadataPath,
  type NodeMetadata,
  readMetadata,
  writeMetadata,
} from "../meta/metadata.js";
import type { StateDirectory } from "../meta/state-directory.js";
import type { NamedDisk } from "../replication/named-disk.js";

/** From the size on record to the one that is wanted. */
export interface Growing {
  readonly fromBytes: number;
  readonly toBytes: number;
}

/** What of `--grow` is still to be done: a disk that is as large, or larger, on record has grown before. */
export function growingDisks(
  known: NodeMetadata | null,
  growth: readonly GrowthConfig[],
): ReadonlyMap<string, Growing> {
  const growing = new Map<string, Growing>();
  for (const { name, sizeBytes } of growth) {
    const onRecord = known?.disks.find((disk) => disk.name === name);
    if (onRecord === undefined || onRecord.sizeBytes >= sizeBytes) continue;
    growing.set(name, { fromBytes: onRecord.sizeBytes, toBytes: sizeBytes });
  }
  return growing;
}

/**
 * The first step.
 * @param known what is on record
 * @param identify as IdentifiableDisk has it, of a path
 * @returns what is on record then
 * @throws MetadataError if a disk is another file: it is not this node's to be made larger
 */
export async function announceGrowth(
  directory: StateDirectory,
  known: NodeMetadata,
  growing: ReadonlyMap<string, Growing>,
  paths: readonly DiskConfig[],
  identify: (path: string) => Promise<FileIdentity | null>,
): Promise<NodeMetadata> {
  const disks: DiskIdentity[] = [];
  for (const disk of known.disks) {
    const path = growing.has(disk.name) ? paths.find(({ name }) => name === disk.name)?.path : undefined;
    const file = path === undefined ? null : await identify(path);
    if (file !== null && disk.inode !== null && file.inode !== disk.inode) {
      throw new MetadataError(
        "foreign-disk",
        `--grow: disk ${disk.name}: ${path ?? ""} is another file than the one of ${metadataPath(directory)}: put that back`,
      );
    }
    // One that somebody else has changed stays noticed: its content may not be what the other node has.
    disks.push(file?.modifiedNs === disk.modifiedNs ? { ...disk, modifiedNs: null } : disk);
  }
  const announced = { ...known, disks };
  await writeMetadata(directory, announced);
  return announced;
}

/**
 * Takes the first step back for what is as it was: a change by somebody else before the next start has to be noticed.
 * @param known what was on record before it
 * @param identify as for announceGrowth()
 */
export async function retractGrowth(
  directory: StateDirectory,
  known: NodeMetadata,
  growing: ReadonlyMap<string, Growing>,
  paths: readonly DiskConfig[],
  identify: (path: string) => Promise<FileIdentity | null>,
): Promise<void> {
  const now = await readMetadata(directory);
  if (now === null) return;
  const disks: DiskIdentity[] = [];
  for (const [index, disk] of now.disks.entries()) {
    const before = known.disks[index];
    const path = growing.has(disk.name) ? paths.find(({ name }) => name === disk.name)?.path : undefined;
    const file = path === undefined ? null : await identify(path);
    const isAsBefore = file !== null && disk.sizeBytes === before?.sizeBytes;
    disks.push(isAsBefore && file.modifiedNs === before.modifiedNs ? before : disk);
  }
  if (disks.some((disk, index) => disk !== now.disks[index]))
    await writeMetadata(directory, { ...now, disks });
}

/**
 * The last step, with the disks open.
 * @throws ConfigError if one is not as large as it is to be
 */
export async function recordGrowth(
  directory: StateDirectory,
  announced: NodeMetadata,
  growing: ReadonlyMap<string, Growing>,
  opened: readonly NamedDisk[],
  log: Logger,
): Promise<void> {
  for (const { name, path, device } of opened) {
    const { sizeBytes } = device.info;
    const { fromBytes, toBytes } = growing.get(name) ?? { fromBytes: sizeBytes, toBytes: sizeBytes };
    if (sizeBytes === toBytes) continue;
    const remedy =
      sizeBytes === fromBytes
        ? "make the device, or its server's disk, that large first"
        : `give --grow ${name}=${sizeBytes}`;
    throw new ConfigError(
      "disk-size",
      `--grow: disk ${name}: ${path} has ${sizeBytes} bytes, not ${toBytes}: ${remedy}`,
    );
  }
  const disks = announced.disks.map((disk) => ({
    ...disk,
    sizeBytes: growing.get(disk.name)?.toBytes ?? disk.sizeBytes,
  }));
  await writeMetadata(directory, { ...announced, disks });
  for (const [disk, { fromBytes, toBytes }] of growing) log.info({ disk, fromBytes, toBytes }, "disk grown");
}
