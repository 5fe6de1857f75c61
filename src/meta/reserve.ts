/**
 * Room in the file system of a state directory that is held while it is there, for what has to be written when there is none
 * left: a failover is not to fail for want of it, nor the start before it.
 *
 * Invariant: the file counts for nothing, whatever is in it.
 */
import type { StateDirectory } from "./state-directory.js";

const NAME = "reserve";
const PIECE_BYTES = 1024 * 1024;

export class Reserve {
  readonly #directory: StateDirectory;
  readonly #sizeBytes: number;
  /** By this life of the node. */
  #isHeld = false;

  constructor(directory: StateDirectory, sizeBytes: number) {
    this.#directory = directory;
    this.#sizeBytes = sizeBytes;
  }

  /** @throws DeviceError if there is no room, or the directory can't be written: nothing is held then */
  async hold(): Promise<void> {
    // Whatever has the name is not to be written to, a link to something else least of all.
    await this.release();
    try {
      await this.#write();
    } catch (error) {
      // A part of it would only be in the way; why it is no more than that is what is to be told.
      await this.release().catch(() => undefined);
      throw error;
    }
    this.#isHeld = true;
  }

  /** No error if it is not held. @throws DeviceError if it can't be removed: nothing has changed then */
  async release(): Promise<void> {
    await this.#directory.remove(NAME);
    this.#isHeld = false;
  }

  /** Before hold(): lets go of what the life before has held. @returns whether there is more room now */
  async lend(): Promise<boolean> {
    if (this.#isHeld || !(await this.#directory.list()).includes(NAME)) return false;
    await this.release();
    return true;
  }

  async #write(): Promise<void> {
    const file = await this.#directory.create(NAME);
    try {
      // A hole would hold nothing.
      const piece = Buffer.alloc(Math.min(PIECE_BYTES, this.#sizeBytes));
      for (let at = 0; at < this.#sizeBytes; at += piece.length)
        await file.write(at, [piece.subarray(0, this.#sizeBytes - at)]);
      await file.sync();
    } finally {
      await file.close();
    }
  }
}
