/**
 * The files of an epoch's active overlays: one log of allocations, and a data file for each disk.
 *
 * Invariants: a file is made when the first write to a view needs it, and not before the epoch is in force. The log is made
 * once; after a failure the next write tries again. What clients of the view write leaves ROOM_BYTES of the file system free: the
 * checkpoint that drops it must not fail for want of room.
 */
import { DeviceError } from "../../errors.js";
import { type LogOptions, OverlayLog } from "../../meta/overlay-log.js";
import type { StateDirectory, StateFile } from "../../meta/state-directory.js";
import type { SpareLog } from "./spare-log.js";
import { activeName, dataName, epochOf, isHidden } from "./epoch-files.js";

/**
 * For the next epoch's log, the metadata, the records of what was written (4096 for each disk at most, 64 bytes each), and, for a
 * moment, before-images.
 */
const ROOM_BYTES = 1024 * 1024;
/** What a record takes in a log when it is flushed by itself. */
const RECORD_BYTES = 4096;

export class ActiveFiles {
  readonly #directory: StateDirectory;
  readonly #spare: SpareLog;
  readonly #options: LogOptions;
  readonly #inForce: () => Promise<void>;
  readonly #recovered: boolean;
  #log: Promise<OverlayLog> | null;
  /** What is being written, and may not be in the file system's count yet. */
  #claimedBytes = 0;

  /**
   * @param spare given up before a client goes without room
   * @param inForce resolves when the epoch is on record, rejects when it can't be
   * @param recovered the log that a restart found, or null
   */
  constructor(
    directory: StateDirectory,
    spare: SpareLog,
    options: LogOptions,
    inForce: () => Promise<void>,
    recovered: OverlayLog | null,
  ) {
    this.#directory = directory;
    this.#spare = spare;
    this.#options = options;
    this.#inForce = inForce;
    this.#recovered = recovered !== null;
    this.#log = recovered === null ? null : Promise.resolve(recovered);
  }

  async open(diskIndex: number): Promise<{ readonly file: StateFile; readonly log: OverlayLog }> {
    await this.#inForce();
    const directory = this.#directory;
    const { epoch } = this.#options;
    this.#log ??= OverlayLog.create(directory, activeName(epoch), this.#options).catch((error: unknown) => {
      this.#log = null;
      throw error;
    });
    const log = await this.#log;
    const name = dataName(epoch, diskIndex);
    const exists = this.#recovered && (await directory.list()).includes(name);
    return { log, file: exists ? await directory.open(name) : await directory.create(name) };
  }

  /** As ActiveStorage.extend(). */
  async extend(lengthBytes: number, change: () => Promise<unknown>): Promise<void> {
    const claimBytes = lengthBytes + RECORD_BYTES;
    this.#claimedBytes += claimBytes;
    const neededBytes = this.#claimedBytes + ROOM_BYTES;
    const hasRoom = async (): Promise<boolean> => (await this.#directory.freeBytes()) >= neededBytes;
    try {
      if (!(await hasRoom())) await this.#spare.makeRoom();
      if (!(await hasRoom())) {
        const reason = `${this.#directory.path} has no space left for what clients write to the view: its last MiB is the node's own; make room, or take a checkpoint, which drops what they wrote`;
        throw new DeviceError("ENOSPC", reason);
      }
      await change();
    } finally {
      this.#claimedBytes -= claimBytes;
    }
  }

  /** Null: no client has written to a view. */
  async log(): Promise<OverlayLog | null> {
    return this.#log;
  }

  /** Gives back their space: nothing is written to them any more, and a restart leaves them alone. */
  async letGo(): Promise<void> {
    const { epoch } = this.#options;
    for (const file of await this.#directory.list()) {
      if (epochOf(file) === epoch && !isHidden(file)) await this.#directory.truncate(file, 0);
    }
  }

  async close(): Promise<void> {
    if (this.#log !== null) await (await this.#log).close();
  }
}
