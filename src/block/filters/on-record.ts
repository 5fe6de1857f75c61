/**
 * A device whose changes wait for something to be on record that has to be so before them.
 *
 * Invariant: changes go on in their order of arrival; none does behind a record that failed, until another one is awaited.
 */
import { describeError, DeviceError } from "../../errors.js";
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../device.js";

export class OnRecord implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #next: BlockDevice;
  #record: Promise<void> | null = null;

  constructor(next: BlockDevice) {
    this.info = next.info;
    this.#next = next;
  }

  /** Changes that come from now on wait for `record`, and are refused if it rejects. */
  awaitRecord(record: Promise<void>): void {
    const awaited = record.catch((cause: unknown) => {
      throw new DeviceError("EIO", `it can't be recorded who writes: ${describeError(cause)}`, { cause });
    });
    this.#record = awaited;
    awaited.then(
      () => {
        if (this.#record === awaited) this.#record = null;
      },
      // Whoever changes something is told.
      () => undefined,
    );
  }

  read(offset: number, into: Buffer): Promise<void> {
    return this.#next.read(offset, into);
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    return this.#recorded(() => this.#next.write(offset, from, flags));
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#recorded(() => this.#next.zero(offset, lengthBytes, flags));
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#recorded(() => this.#next.trim(offset, lengthBytes, flags));
  }

  flush(): Promise<void> {
    return this.#next.flush();
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#next.extents(offset, lengthBytes, maxExtents);
  }

  close(): Promise<void> {
    return this.#next.close();
  }

  #recorded(change: () => Promise<void>): Promise<void> {
    return this.#record === null ? change() : this.#record.then(change);
  }
}
