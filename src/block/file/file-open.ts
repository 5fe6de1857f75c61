/** Opening what the operator named as a disk, and telling what is wrong with it in one line. */
import type { BigIntStats } from "node:fs";
import { constants, close as closeCallback, open as openCallback, fstat, fsync, ftruncate } from "node:fs";
import { lstat, readFile, stat, unlink } from "node:fs/promises";
import { constants as osConstants } from "node:os";
import { dirname } from "node:path";
import { promisify } from "node:util";

import { errnoNumber } from "../../os/errno.js";
import { ConfigError, StateError, describeError } from "../../errors.js";
import { lockImage } from "../../os/image-lock.js";
import type { Libc } from "../../os/libc.js";
import { libc } from "../../os/libc.js";
import { syncDirectory } from "../../os/sync-directory.js";

const openFile = promisify(openCallback);
export const closeFile = promisify(closeCallback);

/** The unit of /sys/dev/block/*\/size, whatever the device's own sectors. */
const SYSFS_SECTOR_BYTES = 512;

/** The largest logical sector in use; assumed where the system doesn't tell. */
const SECTOR_MAXIMUM_BYTES = 4096;

export interface FileOptions {
  readonly writable: boolean;
  /** Create the file, sparse, of this size if it is missing; refuse one of another size. */
  readonly createSizeBytes?: number;
  /** Make it larger, sparse, if it is a file of the size `fromBytes`. */
  readonly grow?: { readonly fromBytes: number; readonly toBytes: number };
  /** Whoever had it as a disk before did not end in order: see forgetCached(). */
  readonly afterCrash?: boolean;
  /** What the machine can do beside Node's own file calls; default: libc(). */
  readonly system?: Libc | null;
  /** Is told, in one line, what this system can't protect against. */
  readonly warn?: (message: string) => void;
}

/** An open file that is locked (see image-lock.ts) until it is closed. */
export interface OpenFile {
  readonly fd: number;
  readonly path: string;
  readonly sizeBytes: number;
  readonly writable: boolean;
  readonly isBlockDevice: boolean;
  /** fallocate() takes multiples of this only; 1 for regular files. */
  readonly sectorBytes: number;
  /** As the kernel tells of a block device; of what lies under a file system nothing is known. */
  readonly rotational: boolean;
}

/**
 * @throws ConfigError when the path can't serve as a disk, naming path and remedy
 * @throws StateError "disk-locked" while another process has it as a disk
 */
export async function openDiskFile(path: string, options: FileOptions): Promise<OpenFile> {
  const { createSizeBytes } = options;
  const found = await statIfThere(path);
  if (found !== null) return openExisting(path, options, found);
  if (createSizeBytes === undefined || !options.writable) {
    throw new ConfigError("disk-missing", `disk ${path} does not exist: give --size to create it`);
  }
  return createDisk(path, createSizeBytes, options);
}

async function openExisting(path: string, options: FileOptions, found: BigIntStats): Promise<OpenFile> {
  if (!found.isFile() && !found.isBlockDevice()) {
    const kind = found.isDirectory() ? "a directory" : "no disk";
    throw new ConfigError("disk-unusable", `${path} is ${kind}: name a raw image file or a block device`);
  }
  // Exclusive for a block device means: refuse it while it is mounted or part of another one.
  const exclusive = found.isBlockDevice() && options.writable ? constants.O_EXCL : 0;
  const access = options.writable ? constants.O_RDWR : constants.O_RDONLY;
  const fd = await openFile(path, access | exclusive).catch((error: unknown) => {
    throw openFailure(path, options.writable, error);
  });
  try {
    lockOrWarn(fd, path, options);
    const file = await grown(await describeFile(fd, path, options.writable), options.grow);
    checkSize(file, options.createSizeBytes);
    return file;
  } catch (error) {
    await closeFile(fd);
    throw error;
  }
}

async function createDisk(path: string, sizeBytes: number, options: FileOptions): Promise<OpenFile> {
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0) {
    throw new ConfigError(
      "bad-size",
      `${sizeBytes} is no size for disk ${path}: give a positive number of bytes`,
    );
  }
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL;
  const fd = await openFile(path, flags, 0o600).catch((error: unknown) => {
    throw new ConfigError("disk-uncreatable", `disk ${path} can't be created: ${describeError(error)}`, {
      cause: error,
    });
  });
  try {
    lockOrWarn(fd, path, options);
    await promisify(ftruncate)(fd, sizeBytes);
    await promisify(fsync)(fd);
    await syncDirectory(dirname(path));
    return await describeFile(fd, path, true);
  } catch (error) {
    await closeFile(fd);
    // Locked by someone who found it the moment it was there: theirs now.
    if (error instanceof StateError) throw error;
    await unlink(path);
    throw new ConfigError(
      "disk-uncreatable",
      `disk ${path} of ${sizeBytes} bytes can't be created: ${describeError(error)}`,
      { cause: error },
    );
  }
}

export function systemOf(options: FileOptions): Libc | null {
  return options.system === undefined ? libc() : options.system;
}

function lockOrWarn(fd: number, path: string, options: FileOptions): void {
  if (lockImage(systemOf(options), fd, path, options)) return;
  options.warn?.(
    `disk ${path} can't be locked on this system: nothing keeps another process from writing it`,
  );
}

async function statIfThere(path: string): Promise<BigIntStats | null> {
  try {
    return await stat(path, { bigint: true });
  } catch (error) {
    if (errnoNumber(error) !== osConstants.errno.ENOENT) {
      throw new ConfigError("disk-unusable", `disk ${path} can't be used: ${describeError(error)}`, {
        cause: error,
      });
    }
    // More likely a file system that is not mounted than a disk to be made.
    if (await isLink(path)) {
      throw new ConfigError(
        "disk-unusable",
        `disk ${path} is a symbolic link to a file that does not exist: mount what that is on, or name another file`,
        { cause: error },
      );
    }
    return null;
  }
}

async function isLink(path: string): Promise<boolean> {
  return (await lstat(path).catch(() => null))?.isSymbolicLink() === true;
}

function openFailure(path: string, writable: boolean, error: unknown): Error {
  const { EACCES, EPERM, EROFS, EBUSY } = osConstants.errno;
  const errno = errnoNumber(error);
  if (errno === EBUSY) {
    return new StateError(
      "disk-locked",
      `${path} is in use, mounted, part of another block device or another program's: release it first`,
      {
        cause: error,
      },
    );
  }
  if (errno === EACCES || errno === EPERM || errno === EROFS) {
    const wanted = writable ? "readable and writable" : "readable";
    return new ConfigError("disk-forbidden", `disk ${path} is not ${wanted}: make it so for this user`, {
      cause: error,
    });
  }
  return new ConfigError("disk-unusable", `disk ${path} can't be opened: ${describeError(error)}`, {
    cause: error,
  });
}

async function describeFile(fd: number, path: string, writable: boolean): Promise<OpenFile> {
  const status = await promisify(fstat)(fd, { bigint: true });
  const isBlockDevice = status.isBlockDevice();
  const sizeBytes = isBlockDevice
    ? (await sysfsNumber(status.rdev, ["size"])) * SYSFS_SECTOR_BYTES
    : Number(status.size);
  const sectorBytes = isBlockDevice ? await logicalSectorBytes(status.rdev) : 1;
  const rotational = isBlockDevice && (await isRotational(status.rdev));
  return { fd, path, sizeBytes, writable, isBlockDevice, sectorBytes, rotational };
}

async function grown(file: OpenFile, grow: FileOptions["grow"]): Promise<OpenFile> {
  const isGrown = file.sizeBytes === grow?.toBytes;
  if (grow === undefined || file.isBlockDevice || (file.sizeBytes !== grow.fromBytes && !isGrown))
    return file;
  try {
    if (!isGrown) await promisify(ftruncate)(file.fd, grow.toBytes);
    // A start that was cut off may have made it larger, and not durably.
    await promisify(fsync)(file.fd);
  } catch (error) {
    throw new ConfigError(
      "disk-not-grown",
      `disk ${file.path} can't be made ${grow.toBytes} bytes long: ${describeError(error)}`,
      { cause: error },
    );
  }
  return { ...file, sizeBytes: grow.toBytes };
}

function checkSize(file: OpenFile, wantedBytes: number | undefined): void {
  const { path, sizeBytes } = file;
  if (wantedBytes !== undefined && wantedBytes !== sizeBytes) {
    const message = `disk ${path} has ${sizeBytes} bytes, not the ${wantedBytes} of --size: leave --size out to use it`;
    throw new ConfigError("disk-size", message);
  }
  if (sizeBytes === 0) {
    throw new ConfigError("disk-empty", `disk ${path} has no bytes: remove it and give --size to create it`);
  }
  if (!Number.isSafeInteger(sizeBytes)) {
    throw new ConfigError(
      "disk-size",
      `disk ${path} has ${sizeBytes} bytes: no more than 2^53 - 1 can be used`,
    );
  }
}

/** fallocate() refuses ranges that are not multiples of this. */
function logicalSectorBytes(rdev: bigint): Promise<number> {
  return queueNumber(rdev, "logical_block_size", SECTOR_MAXIMUM_BYTES);
}

async function isRotational(rdev: bigint): Promise<boolean> {
  return (await queueNumber(rdev, "rotational", 0)) !== 0;
}

/** An attribute of a block device's queue; a partition has its disk's. */
async function queueNumber(rdev: bigint, attribute: string, otherwise: number): Promise<number> {
  try {
    return await sysfsNumber(rdev, [`queue/${attribute}`, `../queue/${attribute}`]);
  } catch (error) {
    if (error instanceof ConfigError) return otherwise;
    throw error;
  }
}

/** Reads the first of these attributes that is there; see sysfs(5) and makedev(3) for the numbers. */
async function sysfsNumber(rdev: bigint, attributes: readonly string[]): Promise<number> {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & ~0xffn);
  const directory = `/sys/dev/block/${String(major)}:${String(minor)}`;
  for (const attribute of attributes) {
    const text = await readFile(`${directory}/${attribute}`, "ascii").catch((error: unknown) => {
      if (errnoNumber(error) === osConstants.errno.ENOENT) return null;
      throw error;
    });
    if (text !== null) return Number.parseInt(text, 10);
  }
  throw new ConfigError(
    "sysfs-missing",
    `the size of a block device can't be read: ${directory} is not there`,
  );
}
