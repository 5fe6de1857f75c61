/**
 * The spare log: the log of an epoch that is over, kept to become the log of a later one. Space that was written before is written
 * again much faster (docs/performance.md).
 *
 * Invariants:
 * - What it holds counts for nothing: a log that is made of it has an identity of its own, and is empty.
 * - It takes the name of a log when that log's header is durable in it: no crash leaves a log with another one's header.
 * - It is in nobody's way: cut to MAXIMUM_BYTES, and removed when it can't be written or the file system is full.
 * - One operation on it at a time.
 */
import type { Logger } from "pino";
import { asError } from "../../errors.js";
import type { SpareFile } from "../../meta/overlay-log.js";
import type { StateDirectory, StateFile } from "../../meta/state-directory.js";
import { Serial } from "../serial.js";

const NAME = "spare.log";
/** It is there to be fast, not to fill the file system. */
const MAXIMUM_BYTES = 512 * 1024 * 1024;

export class SpareLog implements SpareFile {
  readonly #directory: StateDirectory;
  readonly #log: Logger;
  readonly #serial = new Serial();

  /** @param directory not that of makingRoom(), whose writes wait for makeRoom() here */
  constructor(directory: StateDirectory, log: Logger) {
    this.#directory = directory;
    this.#log = log;
  }

  /** A closed file that is over becomes the spare log, or is removed if there is one. */
  keep(file: string): Promise<void> {
    const directory = this.#directory;
    return this.#serial.run(async () => {
      if (await this.#exists()) {
        await directory.remove(file);
        return;
      }
      await directory.rename(file, NAME);
      await directory.truncate(NAME, MAXIMUM_BYTES);
    });
  }

  /** As SpareFile: one that can't be written, which might fail every checkpoint, is removed. */
  become(name: string, begin: (file: StateFile) => Promise<void>): Promise<boolean> {
    const directory = this.#directory;
    return this.#serial.run(async () => {
      if (!(await this.#exists())) return false;
      try {
        await begin(await directory.open(NAME));
      } catch (error) {
        // Whether it is this file alone, or the whole directory, shows when a log is made anew.
        const reason = asError(error).message;
        this.#log.warn({ error: reason }, "spare log removed: it can't be written; a log is made anew");
        await directory.remove(NAME);
        return false;
      }
      await directory.rename(NAME, name);
      return true;
    });
  }

  async remove(): Promise<void> {
    await this.#serial.run(() => this.#directory.remove(NAME));
  }

  /** The file system is full. @returns whether there is more room now */
  makeRoom(): Promise<boolean> {
    return this.#serial.run(async () => {
      if (!(await this.#exists())) return false;
      await this.#directory.remove(NAME);
      this.#log.info("spare log removed: the file system of the state directory is full");
      return true;
    });
  }

  async #exists(): Promise<boolean> {
    return (await this.#directory.list()).includes(NAME);
  }
}
