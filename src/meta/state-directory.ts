/**
 * The files of a node's state directory, as the rest of the node sees them: a seam, so that the simulation can put
 * a storage under it that tears, loses and fails writes. `openStateDirectory()` is the real one.
 */
import * as fs from "node:fs";
import { mkdir, readFile, readdir, rename, rm, stat, statfs, truncate } from "node:fs/promises";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { asError, describeError, DeviceError, type Errno, isErrno, MetadataError } from "../errors.js";
import { isUnsupported } from "../os/errno.js";
import { FallocateMode, libc } from "../os/libc.js";
import { syncDirectory } from "../os/sync-directory.js";
import { writeFileAtomic } from "./atomic-file.js";

/** A file with positioned, unordered I/O; nothing written is durable before sync() resolves. */
export interface StateFile {
  readonly path: string;
  readonly sizeBytes: number;
  /** Fills `into`; a read past the end is an EIO DeviceError. */
  read(position: number, into: Buffer): Promise<void>;
  /** Writes the buffers one after the other from `position` on, as one request. */
  write(position: number, buffers: readonly Buffer[]): Promise<void>;
  /**
   * Gives the space of whole blocks of the file system back: they read as zeroes then.
   * @returns false, having changed nothing, where the system can't
   */
  punch(position: number, lengthBytes: number): Promise<boolean>;
  /**
   * As write() and then sync(), in one. A failure is final, too, but for ENOSPC: the same may be written again, whole. For
   * a file that is only written to in this way: what write() wrote is not made durable. Whole pages, in the file and in
   * memory, are written past the page cache where that can be.
   */
  writeDurably(position: number, buffers: readonly Buffer[]): Promise<void>;
  /** Makes durable what was written before (fdatasync); a failure is final for everything written since the last one. */
  sync(): Promise<void>;
  close(): Promise<void>;
}

/** What changes something throws a DeviceError, ENOSPC where there is no room; the change may have been made or not. */
export interface StateDirectory {
  readonly path: string;
  /** Creates the file, emptying one that exists; its name is durable when this resolves. */
  create(name: string): Promise<StateFile>;
  /** @throws MetadataError "missing" */
  open(name: string): Promise<StateFile>;
  /** Replaces the file's content in one step: after a crash it holds the old or the new text. */
  replaceText(name: string, text: string): Promise<void>;
  /** null if there is no such file. */
  readText(name: string): Promise<string | null>;
  /** The name is gone for good when this resolves; no error if there is none. */
  remove(name: string): Promise<void>;
  /** Gives a file another name, durably, in one step; one that has it is gone. */
  rename(name: string, newName: string): Promise<void>;
  /** Shortens a closed file that is longer to this length. */
  truncate(name: string, lengthBytes: number): Promise<void>;
  list(): Promise<string[]>;
  /** Bytes that the file system has left for this user. @throws DeviceError */
  freeBytes(): Promise<number>;
}

const open = promisify(fs.open);
const close = promisify(fs.close);
const fdatasync = promisify(fs.fdatasync);

/** @throws MetadataError if the directory can't be made or used */
export async function openStateDirectory(path: string): Promise<StateDirectory> {
  try {
    await makeDirectory(path);
    await readdir(path);
  } catch (error) {
    const reason = `state directory ${path} can't be used: ${describeError(error)}: mend that, or give another with --state-dir`;
    throw new MetadataError("unusable", reason, { cause: error });
  }
  return {
    path,
    create: async (name) => {
      const file = await openFile(join(path, name), "w+");
      try {
        await changing(path, "sync", () => syncDirectory(path));
      } catch (error) {
        await file.close();
        throw error;
      }
      return file;
    },
    open: (name) => openFile(join(path, name), "r+"),
    replaceText: (name, text) => {
      const file = join(path, name);
      return changing(file, "replacement", () => writeFileAtomic(file, text));
    },
    readText: async (name) => {
      try {
        return await readFile(join(path, name), "utf8");
      } catch (error) {
        if (isErrno(error, "ENOENT")) return null;
        throw unreadable(join(path, name), error);
      }
    },
    remove: (name) =>
      changing(join(path, name), "removal", async () => {
        await rm(join(path, name), { force: true });
        await syncDirectory(path);
      }),
    rename: (name, newName) =>
      changing(join(path, name), `renaming to ${newName}`, async () => {
        await rename(join(path, name), join(path, newName));
        await syncDirectory(path);
      }),
    truncate: (name, lengthBytes) =>
      changing(join(path, name), "truncation", async () => {
        const { size } = await stat(join(path, name));
        if (size > lengthBytes) await truncate(join(path, name), lengthBytes);
      }),
    list: () => readdir(path),
    freeBytes: async () => {
      try {
        const { bavail, bsize } = await statfs(path);
        return bavail * bsize;
      } catch (error) {
        throw changeFailed("statfs", path, error);
      }
    },
  };
}

/**
 * With its parents. Not by mkdir's `recursive`: it never ends where mkdir(2) says ENOENT although the parent is there, as /proc does.
 * @throws what the file system says
 */
async function makeDirectory(path: string, hasParent = false): Promise<void> {
  try {
    await mkdir(path, { mode: 0o700 });
  } catch (error) {
    if (await isDirectory(path)) return;
    const parent = dirname(path);
    if (hasParent || parent === path || !isErrno(error, "ENOENT")) throw error;
    await makeDirectory(parent);
    await makeDirectory(path, true);
  }
}

/** One that can't be asked is none: whoever wanted to make it has the error. */
async function isDirectory(path: string): Promise<boolean> {
  const found = await stat(path).catch(() => null);
  return found?.isDirectory() === true;
}

/** @throws DeviceError that names the path and what was done to it */
async function changing(path: string, change: string, action: () => Promise<void>): Promise<void> {
  try {
    await action();
  } catch (error) {
    throw changeFailed(change, path, error);
  }
}

function changeFailed(change: string, path: string, error: unknown): DeviceError {
  const reason = `${change} of ${path} failed: ${describeError(error)}`;
  return new DeviceError(errnoOfSystem(error), reason, { cause: error });
}

async function openFile(path: string, flags: "w+" | "r+"): Promise<StateFile> {
  let fd: number;
  try {
    fd = await open(path, flags, 0o600);
  } catch (error) {
    if (flags === "w+") throw changeFailed("creation", path, error);
    if (isErrno(error, "ENOENT")) throw new MetadataError("missing", `${path} is missing`, { cause: error });
    throw unreadable(path, error);
  }
  let sizeBytes = fs.fstatSync(fd).size;
  let syncFailure: Error | null = null;
  let isClosed = false;
  /** Once it is closed its number may be another file's. */
  const descriptor = (): number => {
    if (isClosed) throw new DeviceError("EIO", `${path} is closed`);
    return fd;
  };
  const durable = new DurableWriter(path);
  const grow = (position: number, buffers: readonly Buffer[]): void => {
    let end = position;
    for (const buffer of buffers) end += buffer.length;
    sizeBytes = Math.max(sizeBytes, end);
  };
  return {
    path,
    get sizeBytes() {
      return sizeBytes;
    },
    read: async (position, into) => readFully(descriptor(), path, position, into),
    write: async (position, buffers) => {
      await writeFully(descriptor(), path, position, buffers);
      grow(position, buffers);
    },
    punch: async (position, lengthBytes) => {
      const system = libc();
      if (system === null) return false;
      try {
        await system.fallocate(descriptor(), FallocateMode.PunchHole, position, lengthBytes);
        return true;
      } catch (error) {
        if (isUnsupported(error)) return false;
        throw changeFailed("hole punch", path, error);
      }
    },
    writeDurably: async (position, buffers) => {
      // Its writer's own descriptors are closed with this one.
      descriptor();
      if (syncFailure !== null) throw syncFailure;
      try {
        await durable.write(position, buffers);
        grow(position, buffers);
      } catch (error) {
        // Where there was no room nothing was given up: written again, all of it is dirty, or past the page cache, again.
        if (!(error instanceof DeviceError && error.errno === "ENOSPC")) syncFailure = asError(error);
        throw error;
      }
    },
    sync: async () => {
      // After a failed fsync the kernel has dropped the dirty pages: a later one would succeed over the loss.
      if (syncFailure !== null) throw syncFailure;
      const own = descriptor();
      try {
        await fdatasync(own);
      } catch (error) {
        syncFailure = new DeviceError("EIO", `fdatasync of ${path} failed: ${String(error)}`, {
          cause: error,
        });
        throw syncFailure;
      }
    },
    close: async () => {
      const own = descriptor();
      isClosed = true;
      await durable.close();
      await close(own);
    },
  };
}

/**
 * Writes that are on stable storage when they are done: the kernel syncs before it returns, one turn of the thread pool
 * instead of two. Whole pages go past the page cache (O_DIRECT), which saves the copy and, above all, fresh pages for it.
 */
class DurableWriter {
  readonly #path: string;
  /**
   * One for each write that is under way: the kernel reports a failed write-back once to each open file, so that of two writes
   * through one of them the wrong one might hear of it.
   */
  readonly #buffered: number[] = [];
  /** Null: not tried yet, or the file system can't. */
  #direct: Promise<number> | null = null;
  #canBeDirect = true;

  constructor(path: string) {
    this.#path = path;
  }

  async write(position: number, buffers: readonly Buffer[]): Promise<void> {
    if (this.#canBeDirect && isWholePages(position, buffers)) {
      try {
        this.#direct ??= openDurable(this.#path, fs.constants.O_DIRECT);
        await writeFully(await this.#direct, this.#path, position, buffers);
        return;
      } catch (error) {
        if (!isRefusedDirect(error)) throw error;
        this.#canBeDirect = false;
      }
    }
    const fd = this.#buffered.pop() ?? (await openDurable(this.#path, 0));
    try {
      await writeFully(fd, this.#path, position, buffers);
    } finally {
      this.#buffered.push(fd);
    }
  }

  /** Nothing is under way any more. */
  async close(): Promise<void> {
    for (const fd of this.#buffered.splice(0)) await close(fd);
    // One that could not be had was the failure of the write that wanted it.
    const direct = await this.#direct?.catch(() => null);
    if (typeof direct === "number") await close(direct);
  }
}

const PAGE_BYTES = 4096;

async function openDurable(path: string, flags: number): Promise<number> {
  try {
    return await open(path, fs.constants.O_WRONLY | fs.constants.O_DSYNC | flags);
  } catch (error) {
    throw new DeviceError("EIO", `${path} can't be opened again: ${String(error)}`, { cause: error });
  }
}

function isWholePages(position: number, buffers: readonly Buffer[]): boolean {
  return position % PAGE_BYTES === 0 && buffers.every((buffer) => buffer.length % PAGE_BYTES === 0);
}

/** open(2) and write(2) say so where there is no O_DIRECT, or where it wants another alignment. */
function isRefusedDirect(error: unknown): boolean {
  if (!(error instanceof DeviceError)) return false;
  return isErrno(error.cause, "EINVAL") || isErrno(error.cause, "EOPNOTSUPP");
}

/** fs.read as a promise, without a FileHandle, whose interface costs twice as much as callbacks. */
function readFully(fd: number, path: string, position: number, into: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    const step = (done: number): void => {
      fs.read(fd, into, done, into.length - done, position + done, (error, count) => {
        if (error !== null) reject(ioError("read", path, position, error));
        else if (count === 0) reject(new DeviceError("EIO", `${path} ends before ${position + into.length}`));
        else if (done + count === into.length) resolve();
        else step(done + count);
      });
    };
    if (into.length === 0) resolve();
    else step(0);
  });
}

function writeFully(fd: number, path: string, position: number, buffers: readonly Buffer[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const step = (rest: readonly Buffer[], at: number): void => {
      // writev takes at most IOV_MAX buffers; a short write goes on where it stopped.
      const some = rest.slice(0, IOV_MAX);
      fs.writev(fd, some, at, (error, written) => {
        if (error !== null) {
          reject(ioError("write", path, position, error));
          return;
        }
        const left = dropBytes(rest, written);
        if (left.length === 0) resolve();
        else step(left, at + written);
      });
    };
    step(buffers, position);
  });
}

const IOV_MAX = 1024;

function dropBytes(buffers: readonly Buffer[], count: number): readonly Buffer[] {
  let index = 0;
  let left = count;
  for (;;) {
    const buffer = buffers[index];
    if (buffer === undefined) return [];
    if (left < buffer.length) return [buffer.subarray(left), ...buffers.slice(index + 1)];
    left -= buffer.length;
    index++;
  }
}

function ioError(
  operation: string,
  path: string,
  position: number,
  error: NodeJS.ErrnoException,
): DeviceError {
  return new DeviceError(
    errnoOfSystem(error),
    `${operation} of ${path} at ${position} failed: ${error.message}`,
    {
      cause: error,
    },
  );
}

function errnoOfSystem(error: unknown): Errno {
  return isErrno(error, "ENOSPC") || isErrno(error, "EDQUOT") ? "ENOSPC" : "EIO";
}

function unreadable(path: string, error: unknown): MetadataError {
  return new MetadataError("unreadable", `${path} can't be read: ${String(error)}`, { cause: error });
}
