/**
 * Space in the file system of a state directory, taken while there is some, for what has to be written when the file system is
 * full: a failover must not fail for lack of it, nor the start before it.
 *
 * Invariant: the file counts for nothing, whatever is in it.
 */
import type { Logger } from "pino";
import { DirtyMap } from "../../block/dirty-map.js";
import { describeError } from "../../errors.js";
import type { StateDirectory } from "../../meta/state-directory.js";
import type { NamedDisk } from "../named-disk.js";

const NAME = "reserve";
const PIECE_BYTES = 1024 * 1024;
/** Metadata, two of them while one replaces the other, and what the file system needs for names. */
const RECORD_BYTES = 64 * 1024;
/** What a file system may add to the size of a dirty map. */
const ROUNDING_BYTES = 8 * 1024;

export class Reserve {
  readonly #directory: StateDirectory;
  readonly #sizeBytes: number;
  readonly #log: Logger;
  /** Whether this life of the node holds it. */
  #isHeld = false;

  /** @param disks whose dirty maps a failover makes */
  constructor(directory: StateDirectory, disks: readonly NamedDisk[], log: Logger) {
    this.#directory = directory;
    this.#sizeBytes = disks.reduce(
      (sum, { device }) => sum + DirtyMap.fileBytes(device.info.sizeBytes) + ROUNDING_BYTES,
      RECORD_BYTES,
    );
    this.#log = log;
  }

  /** Where there is no room for it nothing is held, which is logged. */
  async hold(): Promise<void> {
    try {
      // Whatever has the name is not to be written to, a link to something else least of all.
      await this.#directory.remove(NAME);
      await this.#write();
      this.#isHeld = true;
    } catch (error) {
      this.#log.warn({ error: describeError(error) }, "a failover may find no room in the state directory");
      // A part of it would only be in the way.
      await this.release();
    }
  }

  /** No error if it is not held; if it can't be removed, that is logged. */
  async release(): Promise<void> {
    this.#isHeld = false;
    await this.#directory.remove(NAME).catch((error: unknown) => {
      this.#log.warn(
        { error: describeError(error) },
        "the reserve of the state directory could not be removed",
      );
    });
  }

  /**
   * Before hold(): gives up what an earlier life of the node holds.
   * @returns whether there is more room now
   * @throws DeviceError if it can't be removed
   */
  async lend(): Promise<boolean> {
    if (this.#isHeld || !(await this.#directory.list()).includes(NAME)) return false;
    await this.#directory.remove(NAME);
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
