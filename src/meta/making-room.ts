/**
 * A state directory that tries a write once more that found the file system full, after something has been let go of that can be
 * done without: the spare log, or the reserve.
 */
import { DeviceError } from "../errors.js";
import type { StateDirectory, StateFile } from "./state-directory.js";

/** @param makeRoom resolves with false if there was nothing to let go of */
export function makingRoom(directory: StateDirectory, makeRoom: () => Promise<boolean>): StateDirectory {
  let timesMade = 0;
  let making: Promise<boolean> | null = null;
  const make = async (): Promise<boolean> => {
    try {
      const isMade = await makeRoom();
      if (isMade) timesMade++;
      return isMade;
    } finally {
      making = null;
    }
  };
  const retrying = async <T>(write: () => Promise<T>): Promise<T> => {
    const timesBefore = timesMade;
    try {
      return await write();
    } catch (error) {
      if (!(error instanceof DeviceError && error.errno === "ENOSPC")) throw error;
      // Another write that failed beside this one may have seen to it already.
      const isMade = timesMade > timesBefore || (await (making ??= make()));
      if (!isMade) throw error;
      return await write();
    }
  };
  const wrapped = (file: StateFile): StateFile => ({
    path: file.path,
    get sizeBytes() {
      return file.sizeBytes;
    },
    read: (position, into) => file.read(position, into),
    write: (position, buffers) => retrying(() => file.write(position, buffers)),
    punch: (position, lengthBytes) => file.punch(position, lengthBytes),
    writeDurably: (position, buffers) => retrying(() => file.writeDurably(position, buffers)),
    sync: () => file.sync(),
    close: () => file.close(),
  });
  return {
    path: directory.path,
    create: async (name) => wrapped(await retrying(() => directory.create(name))),
    open: async (name) => wrapped(await directory.open(name)),
    replaceText: (name, text) => retrying(() => directory.replaceText(name, text)),
    readText: (name) => directory.readText(name),
    remove: (name) => directory.remove(name),
    rename: (name, newName) => directory.rename(name, newName),
    truncate: (name, lengthBytes) => directory.truncate(name, lengthBytes),
    list: () => directory.list(),
    freeBytes: () => directory.freeBytes(),
  };
}
