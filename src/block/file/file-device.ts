/**
 * A raw image file or block device as a disk.
 *
 * It is opened buffered: any offset and length will do, on block devices too. It holds QEMU's image locks
 * until it is closed.
 *
 * Invariant: once a flush has failed, every later flush and every write with Flag.Fua fails with EIO: the
 * kernel has dropped the pages that it couldn't write, and would report success (see group-flush.ts).
 */
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../device.js";
import { Flag } from "../device.js";
import { GroupFlush } from "../group-flush.js";
import { fileError } from "./file-errors.js";
import { dataSync, readAtOnce, readFully, writeFully } from "./file-io.js";
import { forgetCached } from "./file-cache.js";
import type { FileOptions, OpenFile } from "./file-open.js";
import { closeFile, openDiskFile, systemOf } from "./file-open.js";
import { FileRanges } from "./file-ranges.js";
import { WriteLane } from "./write-lane.js";
import { DeviceError, isErrno } from "../../errors.js";
import type { Libc } from "../../os/libc.js";

const PREFERRED_BYTES = 4096;
const MAXIMUM_BYTES = 32 * 1024 * 1024;

/**
 * Opens a disk, or creates it where `createSizeBytes` says so.
 * @throws ConfigError when the path can't serve as a disk, naming path and remedy
 * @throws StateError "disk-locked" while another process has it as a disk
 */
export async function openFileDevice(path: string, options: FileOptions): Promise<BlockDevice> {
  const file = await openDiskFile(path, options);
  try {
    const system = systemOf(options);
    const unsaved = options.afterCrash === true ? await forgetCached(system, file, options.warn) : null;
    return new FileDevice(file, system, await FileRanges.probe(system, file), unsaved);
  } catch (error) {
    await closeFile(file.fd);
    throw error;
  }
}

class FileDevice implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #file: OpenFile;
  readonly #system: Libc | null;
  readonly #ranges: FileRanges;
  readonly #flushes: GroupFlush;
  /** Made at the first write; null: there can be none, and libuv's pool does all. */
  #lane: WriteLane | null | undefined = undefined;

  /** @param unsaved why what was written before may be lost, or null */
  constructor(file: OpenFile, system: Libc | null, ranges: FileRanges, unsaved: Error | null) {
    this.#file = file;
    this.#system = system;
    this.#ranges = ranges;
    this.#flushes = new GroupFlush(() => dataSync(file), unsaved);
    this.info = Object.freeze({
      sizeBytes: file.sizeBytes,
      blockSize: Object.freeze({
        minimumBytes: 1,
        preferredBytes: Math.max(PREFERRED_BYTES, file.sectorBytes),
        maximumBytes: MAXIMUM_BYTES,
      }),
      writable: file.writable,
      trim: ranges.canPunch ? "native" : "none",
      zero: ranges.canPunch ? "native" : "emulated",
      fua: "emulated",
      extents: ranges.tellsExtents ? "native" : "none",
      rotational: file.rotational,
    });
  }

  read(offset: number, into: Buffer): Promise<void> {
    return readFully(this.#system, this.#file, into, offset);
  }

  tryRead(offset: number, into: Buffer): boolean {
    return readAtOnce(this.#system, this.#file, into, offset) === into.length;
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    if (this.#lane === undefined) this.#lane = laneOf(this.#file.fd);
    return this.#durable(writeFully(this.#file, this.#lane, from, offset), flags);
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    const zeroed = this.#ranges.zero(offset, lengthBytes, flags);
    return this.#durable(this.#described("zero", offset, lengthBytes, zeroed), flags);
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    if (this.info.trim === "none") {
      return Promise.reject(new DeviceError("ENOTSUP", `${this.#file.path} can't give space back`));
    }
    const trimmed = this.#ranges.trim(offset, lengthBytes);
    return this.#durable(this.#described("trim", offset, lengthBytes, trimmed), flags);
  }

  flush(): Promise<void> {
    return this.#flushes.flush();
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    const extents = this.#ranges.extents(offset, lengthBytes, maxExtents);
    return this.#described("extents", offset, lengthBytes, extents);
  }

  async close(): Promise<void> {
    await this.#lane?.close();
    await closeFile(this.#file.fd);
  }

  #durable(request: Promise<void>, flags: Flags): Promise<void> {
    return (flags & Flag.Fua) === 0 ? request : request.then(() => this.#flushes.flush());
  }

  async #described<T>(
    operation: string,
    offset: number,
    lengthBytes: number,
    request: Promise<T>,
  ): Promise<T> {
    try {
      return await request;
    } catch (error) {
      if (error instanceof DeviceError) throw error;
      throw fileError(this.#file.path, `${operation} of ${lengthBytes} bytes at ${offset}`, error);
    }
  }
}

/** Null where the process may have no more threads: a container's limit on them must not cost its disks. */
function laneOf(fd: number): WriteLane | null {
  try {
    return new WriteLane(fd);
  } catch (error) {
    if (isErrno(error, "ERR_WORKER_INIT_FAILED")) return null;
    throw error;
  }
}
