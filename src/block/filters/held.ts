/** A device whose changes begin, and end, when a hold lets them. */
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../device.js";
import type { Hold } from "../hold.js";

export function held(next: BlockDevice, hold: Hold): BlockDevice {
  return new HeldDevice(next, hold);
}

class HeldDevice implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #next: BlockDevice;
  readonly #hold: Hold;

  constructor(next: BlockDevice, hold: Hold) {
    this.info = next.info;
    this.#next = next;
    this.#hold = hold;
  }

  read(offset: number, into: Buffer): Promise<void> {
    return this.#next.read(offset, into);
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    return this.#hold.change(() => this.#next.write(offset, from, flags));
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#hold.change(() => this.#next.zero(offset, lengthBytes, flags));
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#hold.change(() => this.#next.trim(offset, lengthBytes, flags));
  }

  /** Changes nothing, so it need not wait to begin. */
  flush(): Promise<void> {
    return this.#hold.finish(() => this.#next.flush());
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#next.extents(offset, lengthBytes, maxExtents);
  }

  close(): Promise<void> {
    return this.#next.close();
  }
}
