/**
 * Reports a disk's failed requests to an observer as well as to their caller, and remembers the first failed flush: what was
 * written before it may be lost, whatever reads still show, and no later flush can bring it back (group-flush.ts).
 */
import { asError, errnoOf } from "../../errors.js";
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../device.js";
import type { RequestFailure } from "../failure.js";

export interface WatchedDeviceEvents {
  /** A request failed. What the disk only refuses, because it can't do it (ENOTSUP), is none. */
  failed(failure: RequestFailure): void;
  /** A flush failed, for the first time. */
  flushFailed(error: Error): void;
}

export class WatchedDevice implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #next: BlockDevice;
  readonly #events: WatchedDeviceEvents;
  #failure: Error | null = null;

  constructor(next: BlockDevice, events: WatchedDeviceEvents) {
    this.info = next.info;
    this.#next = next;
    this.#events = events;
  }

  /** Why what was written may be lost, or null. */
  get failure(): Error | null {
    return this.#failure;
  }

  read(offset: number, into: Buffer): Promise<void> {
    return this.#next.read(offset, into).catch(this.#telling("read", offset, into.length));
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    return this.#next.write(offset, from, flags).catch(this.#telling("write", offset, from.length));
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#next.zero(offset, lengthBytes, flags).catch(this.#telling("zero", offset, lengthBytes));
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#next.trim(offset, lengthBytes, flags).catch(this.#telling("trim", offset, lengthBytes));
  }

  async flush(): Promise<void> {
    try {
      await this.#next.flush().catch(this.#telling("flush", 0, 0));
    } catch (error) {
      if (this.#failure === null) {
        this.#failure = asError(error);
        this.#events.flushFailed(this.#failure);
      }
      throw error;
    }
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#next
      .extents(offset, lengthBytes, maxExtents)
      .catch(this.#telling("extents", offset, lengthBytes));
  }

  close(): Promise<void> {
    return this.#next.close();
  }

  /** For catch(): tells of the failure and passes it on. */
  #telling(operation: string, offset: number, lengthBytes: number): (error: unknown) => never {
    return (error) => {
      if (errnoOf(error) !== "ENOTSUP") {
        this.#events.failed({ operation, offset, lengthBytes, error: asError(error) });
      }
      throw error;
    };
  }
}
