/**
 * The files of an epoch's active overlays: one log of allocations, and a data file for each disk.
 *
 * Invariants: a file is made when the first write to a view needs it, and not before the epoch is in force. The log is made
 * once; after a failure the next write tries again.
 */
import { type LogOptions, OverlayLog } from "../meta/overlay-log.js";
import type { StateDirectory, StateFile } from "../meta/state-directory.js";
import { activeName, dataName, epochOf, isHidden } from "./epoch-files.js";

export class ActiveFiles {
  readonly #directory: StateDirectory;
  readonly #options: LogOptions;
  readonly #inForce: () => Promise<void>;
  readonly #recovered: boolean;
  #log: Promise<OverlayLog> | null;

  /**
   * @param inForce resolves when the epoch is on record, rejects when it can't be
   * @param recovered the log that a restart found, or null
   */
  constructor(
    directory: StateDirectory,
    options: LogOptions,
    inForce: () => Promise<void>,
    recovered: OverlayLog | null,
  ) {
    this.#directory = directory;
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
