/**
 * Room in the file system of a state directory that is held while it is there, for what has to be written when there is none
 * left: a failover is not to fail for want of it.
 *
 * Invariant: the file counts for nothing, whatever is in it.
 */
import type { StateDirectory } from "./state-directory.js";

const NAME = "reserve";
/** What a failover puts on record: some files of a few KiB each. */
const RESERVE_BYTES = 256 * 1024;

export class Reserve {
  readonly #directory: StateDirectory;

  constructor(directory: StateDirectory) {
    this.#directory = directory;
  }

  /** @throws DeviceError if there is no room, or the directory can't be written */
  async hold(): Promise<void> {
    try {
      const file = await this.#directory.create(NAME);
      try {
        // A hole would hold nothing.
        await file.writeDurably(0, [Buffer.alloc(RESERVE_BYTES)]);
      } finally {
        await file.close();
      }
    } catch (error) {
      // A part of it would only be in the way.
      await this.release();
      throw error;
    }
  }

  /** No error if it is not held. @throws DeviceError if it can't be removed: nothing has changed then */
  release(): Promise<void> {
    return this.#directory.remove(NAME);
  }
}
