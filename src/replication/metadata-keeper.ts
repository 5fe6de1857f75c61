/** A node's metadata in memory and on disk: changes are written one after the other, each whole. */
import { type NodeMetadata, writeMetadata } from "../meta/metadata.js";
import type { StateDirectory } from "../meta/state-directory.js";
import { Serial } from "./serial.js";

export class MetadataKeeper<T extends NodeMetadata> {
  readonly #directory: StateDirectory;
  readonly #serial = new Serial();
  #current: T;

  constructor(directory: StateDirectory, initial: T) {
    this.#directory = directory;
    this.#current = initial;
  }

  /** What the node goes by; on disk as soon as the save() that brought it has resolved. */
  get current(): T {
    return this.#current;
  }

  /** Changes take effect in memory at once, and are durable when this resolves. */
  save(change: Partial<T>): Promise<void> {
    this.#current = { ...this.#current, ...change };
    const written = this.#current;
    return this.#serial.run(() => writeMetadata(this.#directory, written));
  }

  /** For callers that can't wait. */
  saveSoon(change: Partial<T>, onError: (error: unknown) => void): void {
    this.save(change).catch(onError);
  }
}
