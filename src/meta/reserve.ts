/**
 * Room in the file system of a state directory that is held while it is there, for what has to be written when there is none
 * left: a failover is not to fail for want of it, nor the start before it.
 *
 * Invariant: the file counts for nothing, whatever is in it.
 */
import type { StateDirectory } from "./state-directory.js";

const NAME = "reserve";
const PIECE_BYTES = 1024 * 1024;

/** @throws DeviceError if there is no room, or the directory can't be written: nothing is held then */
export async function holdReserve(directory: StateDirectory, sizeBytes: number): Promise<void> {
  // Whatever has the name is not to be written to, a link to something else least of all.
  await releaseReserve(directory);
  try {
    await write(directory, sizeBytes);
  } catch (error) {
    // A part of it would only be in the way; why it is no more than that is what is to be told.
    await releaseReserve(directory).catch(() => undefined);
    throw error;
  }
}

/** No error if it is not held. @throws DeviceError if it can't be removed: nothing has changed then */
export function releaseReserve(directory: StateDirectory): Promise<void> {
  return directory.remove(NAME);
}

async function write(directory: StateDirectory, sizeBytes: number): Promise<void> {
  const file = await directory.create(NAME);
  try {
    // A hole would hold nothing.
    const piece = Buffer.alloc(Math.min(PIECE_BYTES, sizeBytes));
    for (let at = 0; at < sizeBytes; at += piece.length)
      await file.write(at, [piece.subarray(0, sizeBytes - at)]);
    await file.sync();
  } finally {
    await file.close();
  }
}
