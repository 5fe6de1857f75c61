/** Opens the disks of a node: raw files and block devices, or exports of an NBD server for any other format. */
import type { Logger } from "pino";
import { checked } from "../block/checked.js";
import type { BlockDevice } from "../block/device.js";
import { openFileDevice } from "../block/file/file-device.js";
import { ConfigError } from "../errors.js";
import { connectNbd } from "../nbd/client/connect.js";
import { parseNbdUri } from "../nbd/uri.js";
import type { DiskConfig } from "../config/fields.js";
import type { NamedDisk } from "../replication/secondary-disk.js";
import type { Lifecycle } from "./lifecycle.js";

/** @throws ConfigError or StateError that names the disk and what would be right */
export async function openDisks(
  disks: readonly DiskConfig[],
  createSizeBytes: number | null,
  log: Logger,
  lifecycle: Lifecycle,
): Promise<NamedDisk[]> {
  const opened: NamedDisk[] = [];
  for (const { name, path } of disks) {
    const device = checked(await openDisk(path, createSizeBytes, log));
    lifecycle.add(() => device.close());
    opened.push({ name, path, device });
  }
  return opened;
}

async function openDisk(path: string, createSizeBytes: number | null, log: Logger): Promise<BlockDevice> {
  if (path.startsWith("nbd")) {
    const { address, exportName, tls } = parseNbdUri(path);
    if (tls)
      throw new ConfigError(
        "bad-disk",
        `--disk: "${path}" asks for TLS, which is not supported: use nbd+unix://`,
      );
    const device = await connectNbd({ address, exportName });
    if (device.info.writable) return device;
    await device.close();
    throw new ConfigError(
      "disk-forbidden",
      `--disk: "${path}" is read-only: its server must export it writable`,
    );
  }
  return openFileDevice(path, {
    writable: true,
    ...(createSizeBytes !== null && { createSizeBytes }),
    warn: (line) => {
      log.warn({ path }, line);
    },
  });
}
