/**
 * A node's metadata in memory and on disk.
 *
 * Invariant: at most one write is under way and one waits, with all that has changed meanwhile, however many ask.
 */
import type { Logger } from "pino";
import { describeError } from "../errors.js";
import { type NodeMetadata, writeMetadata } from "../meta/metadata.js";
import type { StateDirectory } from "../meta/state-directory.js";
import { Serial } from "./serial.js";

export class MetadataKeeper<T extends NodeMetadata> {
  readonly #directory: StateDirectory;
  readonly #log: Logger;
  readonly #serial = new Serial();
  #current: T;
  #recorded: T;
  /** The write that has not begun; null: there is none. */
  #next: Promise<void> | null = null;
  /** The last failure that was logged, and what was on record then. */
  #logged: { readonly reason: string; readonly recorded: T } | null = null;

  /** @param initial what the file says, or as little as it says if there is none */
  constructor(directory: StateDirectory, initial: T, log: Logger) {
    this.#directory = directory;
    this.#log = log;
    this.#current = initial;
    this.#recorded = initial;
  }

  /** What the node goes by; on disk as soon as the save() that brought it has resolved. */
  get current(): T {
    return this.#current;
  }

  /** What was last on disk for certain. After a write that failed the file holds either this or what was to be written. */
  get recorded(): T {
    return this.#recorded;
  }

  /** Changes take effect in memory at once, and are durable when this resolves. */
  save(change: Partial<T>): Promise<void> {
    this.#current = { ...this.#current, ...change };
    return (this.#next ??= this.#serial.run(async () => {
      this.#next = null;
      const written = this.#current;
      await writeMetadata(this.#directory, written);
      this.#recorded = written;
    }));
  }

  /** As save(), for callers that need not wait: a failure is logged. */
  saveSoon(change: Partial<T>): Promise<void> {
    const saved = this.save(change);
    saved.catch(this.#failed);
    return saved;
  }

  /** One line, however many have asked for the write and however often it fails in the same way, until one succeeds. */
  readonly #failed = (error: unknown): void => {
    const reason = describeError(error);
    if (this.#logged?.reason === reason && this.#logged.recorded === this.#recorded) return;
    this.#logged = { reason, recorded: this.#recorded };
    this.#log.error({ error: reason }, "metadata could not be written");
  };
}
