/**
 * The replication filter in both modes: which I/O is let through in which stage (QEMU: replication_get_io_status()).
 *
 * - PrimaryFilter only forwards writes to the replica. Reads fail: the mirror above reads the primary disk. An error of
 *   the replica is swallowed and reported aside: the guest must not see it.
 * - SecondaryFilter is the view: it fails before the start and then serves what the node's stage puts under it.
 */
import { asError, DeviceError } from "../../errors.js";
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../device.js";
import type { RequestFailure } from "../failure.js";

export class PrimaryFilter implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #onFailure: (failure: RequestFailure) => Promise<void>;
  #isStarted = false;
  #replica: BlockDevice | null = null;
  #forwardedWrites = 0;
  #forwardedBytes = 0;

  /** @param onFailure told what the replica did not get, or may not have got; a failed request resolves after it */
  constructor(info: DeviceInfo, onFailure: (failure: RequestFailure) => Promise<void>) {
    this.info = info;
    this.#onFailure = onFailure;
  }

  /** Whether changes are forwarded to anybody. */
  get isReachable(): boolean {
    return this.#replica !== null;
  }

  /** Changes and bytes that the replica has acknowledged. */
  get forwarded(): { readonly writes: number; readonly bytes: number } {
    return { writes: this.#forwardedWrites, bytes: this.#forwardedBytes };
  }

  /** Stage running: writes are forwarded. Not running: they fail, as nobody should send any. */
  setStarted(isStarted: boolean): void {
    this.#isStarted = isStarted;
  }

  /** Where to forward to; null while the replica can't be reached, when each write is reported as a failure at once. */
  setReplica(replica: BlockDevice | null): void {
    this.#replica = replica;
  }

  read(): Promise<void> {
    return Promise.reject(new DeviceError("EIO", "the replication filter of a primary only forwards writes"));
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    return this.#forward("write", offset, from.length, (replica) => replica.write(offset, from, flags));
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#forward("zero", offset, lengthBytes, (replica) => replica.zero(offset, lengthBytes, flags));
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#forward("trim", offset, lengthBytes, (replica) => replica.trim(offset, lengthBytes, flags));
  }

  flush(): Promise<void> {
    return this.#forward("flush", 0, 0, (replica) => replica.flush());
  }

  extents(): Promise<Extent[]> {
    return Promise.reject(new DeviceError("EIO", "the replication filter of a primary only forwards writes"));
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  #forward(
    operation: string,
    offset: number,
    lengthBytes: number,
    request: (replica: BlockDevice) => Promise<void>,
  ): Promise<void> {
    if (!this.#isStarted) return Promise.reject(new DeviceError("EIO", "replication is not started"));
    const fail = (error: unknown): Promise<void> =>
      this.#onFailure({ operation, offset, lengthBytes, error: asError(error) });
    if (this.#replica === null) return fail(new DeviceError("EIO", "the replica is not connected"));
    return request(this.#replica).then(() => {
      this.#forwardedWrites++;
      this.#forwardedBytes += lengthBytes;
    }, fail);
  }
}

export class SecondaryFilter implements BlockDevice {
  readonly info: DeviceInfo;
  #target: BlockDevice | null = null;

  /** @param info what clients of the view are told, whatever is put under it later */
  constructor(info: DeviceInfo) {
    this.info = info;
  }

  /** Swaps what the view shows; the caller has shut the gate above. null: every request fails with EIO. */
  setTarget(target: BlockDevice | null): void {
    this.#target = target;
  }

  read(offset: number, into: Buffer): Promise<void> {
    return this.#target?.read(offset, into) ?? notStarted();
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    return this.#target?.write(offset, from, flags) ?? notStarted();
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#target?.zero(offset, lengthBytes, flags) ?? notStarted();
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    return this.#target?.trim(offset, lengthBytes, flags) ?? notStarted();
  }

  flush(): Promise<void> {
    return this.#target?.flush() ?? notStarted();
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    return this.#target?.extents(offset, lengthBytes, maxExtents) ?? notStarted();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

function notStarted(): Promise<never> {
  return Promise.reject(new DeviceError("EIO", "replication is not started: there is no checkpoint to show"));
}
