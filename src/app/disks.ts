/** Opens the disks of a node: raw files and block devices, or exports of an NBD server for any other format. */
import { stat } from "node:fs/promises";
import type { Logger } from "pino";
import { checked } from "../block/checked.js";
import type { BlockDevice } from "../block/device.js";
import { openFileDevice } from "../block/file/file-device.js";
import { unsafeCache } from "../block/filters/unsafe-cache.js";
import { ConfigError } from "../errors.js";
import { connectNbd } from "../nbd/client/connect.js";
import type { FileIdentity } from "../meta/disk-identity.js";
import { parseNbdUri } from "../nbd/uri.js";
import type { DiskConfig } from "../config/fields.js";
import type { CacheMode } from "../status.js";
import type { NamedDisk } from "../replication/secondary-disk.js";
import type { Lifecycle } from "./lifecycle.js";

/**
 * @param options afterCrash: whether the node did not end in order the last time
 * @throws ConfigError or StateError that names the disk and what would be right
 */
export async function openDisks(
  disks: readonly DiskConfig[],
  createSizeBytes: number | null,
  log: Logger,
  lifecycle: Lifecycle,
  { cache, afterCrash }: { readonly cache: CacheMode; readonly afterCrash: boolean },
): Promise<NamedDisk[]> {
  const opened: NamedDisk[] = [];
  for (const { name, path } of disks) {
    const disk = await openDisk(path, createSizeBytes, afterCrash, log);
    const device = checked(cache === "unsafe" ? unsafeCache(disk) : disk);
    lifecycle.add(() => device.close());
    opened.push({ name, path, device, identify: () => identifyFile(path) });
  }
  return opened;
}

/** Files are told by inode and time of change; devices and other servers' exports have neither. */
async function identifyFile(path: string): Promise<FileIdentity | null> {
  if (path.startsWith("nbd")) return null;
  const file = await stat(path, { bigint: true });
  return file.isFile() ? { inode: String(file.ino), modifiedNs: String(file.mtimeNs) } : null;
}

async function openDisk(
  path: string,
  createSizeBytes: number | null,
  afterCrash: boolean,
  log: Logger,
): Promise<BlockDevice> {
  if (path.startsWith("nbd")) {
    const device = await connectNbd(parseNbdUri(path));
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
    warn: (line) => {
      log.warn({ path }, line);
    },
  });
}
