/** Opens the disks of a node: raw files and block devices, or exports of an NBD server for any other format. */
import { stat, unlink } from "node:fs/promises";
import type { Logger } from "pino";
import { checked } from "../block/checked.js";
import type { BlockDevice } from "../block/device.js";
import { openFileDevice } from "../block/file/file-device.js";
import { unsafeCache } from "../block/filters/unsafe-cache.js";
import { ConfigError, MetadataError, ReplError, describeError, isErrno } from "../errors.js";
import { connectNbd } from "../nbd/client/connect.js";
import type { FileIdentity } from "../meta/disk-identity.js";
import { metadataPath, readMetadata } from "../meta/metadata.js";
import type { StateDirectory } from "../meta/state-directory.js";
import { parseNbdUri } from "../nbd/uri.js";
import type { DiskConfig, GrowthConfig } from "../config/fields.js";
import type { CacheMode } from "../status.js";
import type { NamedDisk } from "../replication/named-disk.js";
import { DiskGrowth, type Growing } from "./growth.js";
import type { Lifecycle } from "./lifecycle.js";

export interface DiskOptions {
  /** As NodeConfig has these. */
  readonly createSizeBytes: number | null;
  readonly growth: readonly GrowthConfig[];
  readonly cache: CacheMode;
  /** The node's: its record tells whether the disks are to be made, how large they were, and whether it ended in order. */
  readonly directory: StateDirectory;
}

/**
 * @throws ConfigError, StateError or MetadataError that names the disk and what would be right
 */
export async function openDisks(
  disks: readonly DiskConfig[],
  { createSizeBytes, growth, cache, directory }: DiskOptions,
  log: Logger,
  lifecycle: Lifecycle,
): Promise<NamedDisk[]> {
  const known = await readMetadata(directory);
  const afterCrash = cache !== "unsafe" && known?.cleanShutdown === false;
  const missing = new Set<string>();
  for (const { name, path } of disks) {
    if (!(await isMissing(path))) continue;
    // The disks that a node has were there once: an empty one in place of one that is not mounted would be replicated.
    if (known !== null) {
      throw new MetadataError(
        "disk-missing",
        `disk ${name}: ${path} does not exist, but ${metadataPath(directory)} is of a node that has its disks: put it back; to begin with a new disk, use another --state-dir`,
      );
    }
    missing.add(path);
  }
  await refuseTwins(disks);
  const growing = new DiskGrowth({ directory, known, disks, growth, identify: identifyFile });
  // A disk that the node has is as large as it is on record, whatever `--size` was when it was made.
  const newSizeBytes = known === null ? createSizeBytes : null;
  const opened: NamedDisk[] = [];
  try {
    await growing.announce();
    for (const { name, path } of disks) {
      const grow = growing.of(name);
      const disk = await openDisk(name, path, { createSizeBytes: newSizeBytes, grow, afterCrash }, log);
      const device = checked(cache === "unsafe" ? unsafeCache(disk) : disk);
      lifecycle.add(() => device.close());
      if (missing.has(path)) lifecycle.add(() => removeUnused(path, directory));
      opened.push({ name, path, device, identify: () => identifyFile(path) });
    }
    await growing.record(opened, log);
  } catch (error) {
    await growing.retract(opened).catch((failure: unknown) => {
      log.error({ error: describeError(failure) }, "what --grow has begun is still on record");
    });
    throw error;
  }
  return opened;
}

/** Of an export; the paths of files are absolute (config/fields.ts). */
function isUri(path: string): boolean {
  return path.startsWith("nbd");
}

async function isMissing(path: string): Promise<boolean> {
  if (isUri(path)) return false;
  return stat(path).then(
    () => false,
    (error: unknown) => isErrno(error, "ENOENT"),
  );
}

/** One file or device by two paths: to each disk it would be in use by another process, which is this one. */
async function refuseTwins(disks: readonly DiskConfig[]): Promise<void> {
  const pathOf = new Map<string, string>();
  for (const { path } of disks) {
    // What is wrong with one that can't be looked at, openDisk() says.
    const file = isUri(path) ? null : await stat(path, { bigint: true }).catch(() => null);
    if (file === null) continue;
    const key = file.isBlockDevice() ? `device ${file.rdev}` : `${file.dev}:${file.ino}`;
    const twin = pathOf.get(key);
    if (twin !== undefined)
      throw new ConfigError(
        "same-disk",
        `--disk: ${path} is the same as ${twin}: name another file or device`,
      );
    pathOf.set(key, path);
  }
}

/** Takes back a file that was made for a start that was refused: nothing was written to it, and no node has it. */
async function removeUnused(path: string, directory: StateDirectory): Promise<void> {
  if ((await readMetadata(directory)) !== null) return;
  const { blocks } = await stat(path);
  if (blocks === 0) await unlink(path);
}

/** Files are told by inode and time of change; devices and other servers' exports have neither. */
async function identifyFile(path: string): Promise<FileIdentity | null> {
  if (isUri(path)) return null;
  const file = await stat(path, { bigint: true });
  return file.isFile() ? { inode: String(file.ino), modifiedNs: String(file.mtimeNs) } : null;
}

interface OpenOptions {
  readonly createSizeBytes: number | null;
  /** Undefined: it stays as large as it is. */
  readonly grow: Growing | undefined;
  readonly afterCrash: boolean;
}

async function openDisk(
  name: string,
  path: string,
  { createSizeBytes, grow, afterCrash }: OpenOptions,
  log: Logger,
): Promise<BlockDevice> {
  if (isUri(path)) {
    const device = await connectNbd(parseNbdUri(path)).catch((error: unknown) => {
      // Not a LinkError: it is not the node that can't be reached.
      throw new ReplError("disk-unusable", `disk ${name}: ${describeError(error)}`, { cause: error });
    });
    const { sizeBytes, writable } = device.info;
    const isOfSize = createSizeBytes === null || createSizeBytes === sizeBytes;
    if (writable && isOfSize) return device;
    await device.close();
    throw isOfSize
      ? new ConfigError(
          "disk-forbidden",
          `--disk: "${path}" is read-only: its server must export it writable`,
        )
      : new ConfigError(
          "disk-size",
          `--disk: "${path}" has ${sizeBytes} bytes, not the ${createSizeBytes} of --size: leave --size out to use it`,
        );
  }
  return openFileDevice(path, {
    writable: true,
    afterCrash,
    ...(createSizeBytes !== null && { createSizeBytes }),
    ...(grow !== undefined && { grow }),
    warn: (line) => {
      log.warn({ path }, line);
    },
  });
}
