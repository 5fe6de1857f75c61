/**
 * A state directory whose files never wait for stable storage (QEMU: cache=unsafe): before-images and dirty maps are
 * as they were written for a process that crashes, and worth nothing after a power loss. What is replaced as a whole, the
 * metadata, stays durable.
 */
import type { StateDirectory, StateFile } from "./state-directory.js";

export function unsafeDirectory(directory: StateDirectory): StateDirectory {
  return {
    ...directory,
    create: async (name) => unsafeFile(await directory.create(name)),
    open: async (name) => unsafeFile(await directory.open(name)),
  };
}

function unsafeFile(file: StateFile): StateFile {
  return {
    path: file.path,
    get sizeBytes() {
      return file.sizeBytes;
    },
    read: (position, into) => file.read(position, into),
    write: (position, buffers) => file.write(position, buffers),
    punch: (position, lengthBytes) => file.punch(position, lengthBytes),
    writeDurably: (position, buffers) => file.write(position, buffers),
    sync: () => Promise.resolve(),
    close: () => file.close(),
  };
}
