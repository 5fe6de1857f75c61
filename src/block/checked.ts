/**
 * The one wrapper that makes a device safe to hand to callers that can't be trusted, and complete.
 *
 * It checks each request (range, writable), splits what is too long, rounds what is not aligned, and
 * emulates what the layer lacks, so that the layers themselves stay small. What needs none of this goes
 * through with the next layer's own promise.
 */
import { AlignedDevice } from "./aligned.js";
import { blockSizeMistake } from "./block-size.js";
import type { BlockDevice, Capability, DeviceInfo, Extent, Flags } from "./device.js";
import { Flag } from "./device.js";
import type { Errno } from "../errors.js";
import { ConfigError, DeviceError, failedAt } from "../errors.js";
import { ZEROES } from "./zeroes.js";

/** What it takes at least, split where the layer takes less: what NBD clients may send without asking. */
const PAYLOAD_MAXIMUM_BYTES = 32 * 1024 * 1024;

const DONE = Promise.resolve();

/**
 * A device over `device` that takes requests of any offset and length and does all that the interface has.
 * A range outside the device is refused with EINVAL, for write and zero with ENOSPC; a change of a read-only
 * device with EPERM; Flag.FastZero with ENOTSUP where zeroes would be written. Closing it closes `device`.
 * @throws ConfigError bad-block-size: no request could be made to fit such sizes
 */
export function checked(device: BlockDevice): BlockDevice {
  const mistake = blockSizeMistake(device.info.blockSize);
  if (mistake !== null) throw new ConfigError("bad-block-size", `a device can't be used: ${mistake}`);
  return new CheckedDevice(device.info.blockSize.minimumBytes === 1 ? device : new AlignedDevice(device));
}

class CheckedDevice implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #next: BlockDevice;
  readonly #sizeBytes: number;
  readonly #maximumBytes: number;
  readonly #emulatesFua: boolean;

  constructor(next: BlockDevice) {
    const { info } = next;
    this.#next = next;
    this.#sizeBytes = info.sizeBytes;
    this.#maximumBytes = info.blockSize.maximumBytes;
    this.#emulatesFua = info.fua === "none";
    this.info = Object.freeze({
      ...info,
      blockSize: Object.freeze({
        ...info.blockSize,
        maximumBytes: Math.max(info.blockSize.maximumBytes, PAYLOAD_MAXIMUM_BYTES),
      }),
      trim: emulated(info.trim),
      zero: emulated(info.zero),
      fua: emulated(info.fua),
      extents: emulated(info.extents),
    });
  }

  read(offset: number, into: Buffer): Promise<void> {
    if (!this.#inside(offset, into.length))
      return refused("read", "EINVAL", offset, into.length, this.#sizeBytes);
    if (into.length === 0) return DONE;
    if (into.length <= this.#maximumBytes) return this.#next.read(offset, into);
    return this.#inPieces(offset, into, (at, piece) => this.#next.read(at, piece));
  }

  tryRead(offset: number, into: Buffer): boolean {
    if (!this.#inside(offset, into.length) || into.length > this.#maximumBytes) return false;
    return this.#next.tryRead?.(offset, into) === true;
  }

  write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    if (!this.info.writable) return refused("write", "EPERM", offset, from.length, this.#sizeBytes);
    if (!this.#inside(offset, from.length)) {
      return refused("write", this.#outsideErrno(offset, from.length), offset, from.length, this.#sizeBytes);
    }
    if (from.length === 0) return DONE;
    if (from.length <= this.#maximumBytes) {
      return this.#durable(this.#next.write(offset, from, this.#passed(flags)), flags);
    }
    const pieces = this.#inPieces(offset, from, (at, piece) =>
      this.#next.write(at, piece, this.#passed(flags)),
    );
    return this.#durable(pieces, flags);
  }

  zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    if (!this.info.writable) return refused("zero", "EPERM", offset, lengthBytes, this.#sizeBytes);
    if (!this.#inside(offset, lengthBytes)) {
      return refused("zero", this.#outsideErrno(offset, lengthBytes), offset, lengthBytes, this.#sizeBytes);
    }
    if (this.#next.info.zero !== "none") {
      if (lengthBytes === 0) return DONE;
      return this.#durable(this.#next.zero(offset, lengthBytes, this.#passed(flags)), flags);
    }
    if ((flags & Flag.FastZero) !== 0)
      return refused("fast zero", "ENOTSUP", offset, lengthBytes, this.#sizeBytes);
    if (lengthBytes === 0) return DONE;
    return this.#durable(this.#writeZeroes(offset, lengthBytes, this.#passed(flags) & Flag.Fua), flags);
  }

  trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    if (!this.info.writable) return refused("trim", "EPERM", offset, lengthBytes, this.#sizeBytes);
    if (!this.#inside(offset, lengthBytes))
      return refused("trim", "EINVAL", offset, lengthBytes, this.#sizeBytes);
    if (lengthBytes === 0 || this.#next.info.trim === "none") return DONE;
    return this.#durable(this.#next.trim(offset, lengthBytes, this.#passed(flags)), flags);
  }

  flush(): Promise<void> {
    return this.#next.flush();
  }

  extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    if (!(maxExtents >= 1)) {
      return Promise.reject(
        new DeviceError("EINVAL", `one extent is to be asked for at least, not ${maxExtents}`),
      );
    }
    if (!this.#inside(offset, lengthBytes))
      return refused("extents", "EINVAL", offset, lengthBytes, this.#sizeBytes);
    if (lengthBytes === 0) return Promise.resolve([]);
    if (this.#next.info.extents === "none")
      return Promise.resolve([{ lengthBytes, hole: false, zero: false }]);
    return this.#next.extents(offset, lengthBytes, maxExtents);
  }

  close(): Promise<void> {
    return this.#next.close();
  }

  #inside(offset: number, lengthBytes: number): boolean {
    return isByteCount(offset) && isByteCount(lengthBytes) && offset + lengthBytes <= this.#sizeBytes;
  }

  /** A write past the end is ENOSPC, as on a disk; one with an impossible offset is EINVAL. */
  #outsideErrno(offset: number, lengthBytes: number): Errno {
    return isByteCount(offset) && isByteCount(lengthBytes) ? "ENOSPC" : "EINVAL";
  }

  #passed(flags: Flags): Flags {
    return this.#emulatesFua ? flags & ~Flag.Fua : flags;
  }

  #durable(request: Promise<void>, flags: Flags): Promise<void> {
    if (!this.#emulatesFua || (flags & Flag.Fua) === 0) return request;
    return request.then(() => this.#next.flush());
  }

  async #inPieces(
    offset: number,
    payload: Buffer,
    request: (at: number, piece: Buffer) => Promise<void>,
  ): Promise<void> {
    for (let done = 0; done < payload.length; done += this.#maximumBytes) {
      const at = offset + done;
      await request(at, payload.subarray(done, done + this.#maximumBytes)).catch(failedAt(at));
    }
  }

  async #writeZeroes(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    const end = offset + lengthBytes;
    const pieceBytes = Math.min(ZEROES.length, this.#maximumBytes);
    // Pieces end at multiples of their size, so that only the first and the last can be unaligned.
    for (let at = offset; at < end;) {
      const pieceEnd = Math.min(end, at - (at % pieceBytes) + pieceBytes);
      await this.#next.write(at, ZEROES.subarray(0, pieceEnd - at), flags).catch(failedAt(at));
      at = pieceEnd;
    }
  }
}

function isByteCount(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}

function emulated(capability: Capability): Capability {
  return capability === "none" ? "emulated" : capability;
}

function refused(
  operation: string,
  errno: Errno,
  offset: number,
  lengthBytes: number,
  sizeBytes: number,
): Promise<never> {
  const request = `${operation} of ${lengthBytes} bytes at ${offset}`;
  return Promise.reject(new DeviceError(errno, `${request} refused: ${reason(errno, sizeBytes)}`));
}

function reason(errno: Errno, sizeBytes: number): string {
  if (errno === "EPERM") return "the device is read-only";
  if (errno === "ENOTSUP") return "zeroes would have to be written";
  return `the device has ${sizeBytes} bytes`;
}
