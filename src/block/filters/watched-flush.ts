/**
 * A disk whose first failed flush is remembered: what was written before may be lost then, whatever reads still show, and no later
 * flush can bring it back (group-flush.ts).
 */
import { asError } from "../../errors.js";
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../device.js";

export class WatchedFlush implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #next: BlockDevice;
  readonly #onFailure: (error: Error) => void;
  #failure: Error | null = null;

  /** @param onFailure told of the first one */
  constructor(next: BlockDevice, onFailure: (error: Error) => void) {
    this.info = next.info;
    this.#next = next;
    this.#onFailure = onFailure;
  }

  /** Why what was written may be lost, or null. */
  get failure(): Error | null {
    return this.#failure;
  }

  read(offset: number, into: Buffer): Promise<void> {
    return this.#next.read(offset, into);
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    return this.#next.write(offset, from, flags);
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#next.zero(offset, lengthBytes, flags);
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#next.trim(offset, lengthBytes, flags);
  }

  async flush(): Promise<void> {
    try {
      await this.#next.flush();
    } catch (error) {
      if (this.#failure === null) {
        this.#failure = asError(error);
        this.#onFailure(this.#failure);
      }
      throw error;
    }
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#next.extents(offset, lengthBytes, maxExtents);
  }

  close(): Promise<void> {
    return this.#next.close();
  }
}
