/** A device whose changes begin, and end, when something lets them. */
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../device.js";

/** What lets changes begin and end: a Hold, or OnRecord. */
export interface Passage {
  /** Makes a change when it may begin; resolves when it may be acknowledged. */
  change(apply: () => Promise<void>): Promise<void>;
  /** As change(), for a flush, which may begin at any time. */
  finish(apply: () => Promise<void>): Promise<void>;
}

export function held(next: BlockDevice, hold: Passage): BlockDevice {
  return new HeldDevice(next, hold);
}

class HeldDevice implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #next: BlockDevice;
  readonly #hold: Passage;

  constructor(next: BlockDevice, hold: Passage) {
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
