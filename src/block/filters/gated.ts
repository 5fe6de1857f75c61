/** A device whose requests pass through a gate, so that an operation can find an instant without any of them. */
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../device.js";
import type { Gate } from "../gate.js";

/** Which requests have to pass: those that change content, or all. */
export type GatedRequests = "writes" | "all";

/** `flush` always passes freely: it changes no content, and whoever shuts the gate may need one. */
export function gated(next: BlockDevice, gate: Gate, requests: GatedRequests): BlockDevice {
  return new GatedDevice(next, gate, requests === "all");
}

class GatedDevice implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #next: BlockDevice;
  readonly #gate: Gate;
  readonly #gatesReads: boolean;
  readonly #leave: () => void;

  constructor(next: BlockDevice, gate: Gate, gatesReads: boolean) {
    this.info = next.info;
    this.#next = next;
    this.#gate = gate;
    this.#gatesReads = gatesReads;
    this.#leave = (): void => {
      gate.leave();
    };
  }

  read(offset: number, into: Buffer): Promise<void> {
    if (!this.#gatesReads) return this.#next.read(offset, into);
    return this.#pass(() => this.#next.read(offset, into));
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    return this.#pass(() => this.#next.write(offset, from, flags));
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#pass(() => this.#next.zero(offset, lengthBytes, flags));
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#pass(() => this.#next.trim(offset, lengthBytes, flags));
  }

  flush(): Promise<void> {
    return this.#next.flush();
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    if (!this.#gatesReads) return this.#next.extents(offset, lengthBytes, maxExtents);
    return this.#pass(() => this.#next.extents(offset, lengthBytes, maxExtents));
  }

  close(): Promise<void> {
    return this.#next.close();
  }

  #pass<T>(request: () => Promise<T>): Promise<T> {
    if (!this.#gate.tryEnter()) return this.#gate.enter().then(() => this.#inside(request));
    return this.#inside(request);
  }

  #inside<T>(request: () => Promise<T>): Promise<T> {
    const result = request();
    result.then(this.#leave, this.#leave);
    return result;
  }
}
