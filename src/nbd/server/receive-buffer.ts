/**
 * What a connection receives into: the payloads of small requests stay where they arrived until the device is done.
 *
 * Invariants:
 * - A slab is in use by the connection that fills it, while it parses what lies there, and by each request whose payload
 *   does; the last one gives it back. Bytes that somebody uses are never received over.
 * - A connection that only waits has one slab, the smallest unless it was busy; busy ones have GROWN_MAXIMUM_BYTES more
 *   together. So what a thousand of them cost is bounded.
 * - What requests keep of slabs that their connections have left is LEFT_MAXIMUM_BYTES, and a slab for each connection, at
 *   most: a payload of one byte keeps a whole slab, and no account of the memory of requests knows of that.
 */
import { payloadBuffers, type SharedBuffer, shareBuffer } from "../../block/buffer-pool.js";

const SMALLEST_SLAB_BYTES = 32 * 1024;
const LARGEST_SLAB_BYTES = 256 * 1024;
/** A read into less than this is not worth its system call. */
const LEAST_ROOM_BYTES = 16 * 1024;
/** Of all connections of the process. */
const LEFT_MAXIMUM_BYTES = 4 * 1024 * 1024;

/** What slabs may have beyond the smallest; of all connections of the process. */
const GROWN_MAXIMUM_BYTES = 4 * 1024 * 1024;

let grownBytes = 0;
/** Of slabs that are only used by requests. */
let leftBytes = 0;

/** Bytes of slabs that connections have left and requests still use. */
export function leftSlabBytes(): number {
  return leftBytes;
}

export class ReceiveBuffer {
  #slabBytes = SMALLEST_SLAB_BYTES;
  #slab: SharedBuffer | null = null;
  #filledBytes = 0;

  /** The slab of what was received last. */
  get slab(): SharedBuffer | null {
    return this.#slab;
  }

  /** Whether payloads may stay where they arrived: if not they are to be copied. */
  get mayStay(): boolean {
    return leftBytes < LEFT_MAXIMUM_BYTES;
  }

  /** Where the next bytes are to go. */
  room(): Buffer {
    const slab = this.#slab;
    if (slab?.users === 1) {
      this.#filledBytes = 0;
      return slab.bytes;
    }
    if (slab !== null && slab.bytes.length - this.#filledBytes >= LEAST_ROOM_BYTES) {
      return slab.bytes.subarray(this.#filledBytes);
    }
    this.close();
    if (grownBytes + this.#slabBytes > GROWN_MAXIMUM_BYTES) this.#slabBytes = SMALLEST_SLAB_BYTES;
    this.#slab = shareBuffer(payloadBuffers.take(this.#slabBytes));
    grownBytes += grownPartOf(this.#slab);
    this.#filledBytes = 0;
    return this.#slab.bytes;
  }

  /** So many bytes were received into the room. */
  received(lengthBytes: number): Buffer {
    const slab = this.#slab;
    if (slab === null) throw new RangeError("received into no buffer");
    const start = this.#filledBytes;
    this.#filledBytes += lengthBytes;
    // A client that fills it is one that gains from fewer, longer reads.
    if (this.#filledBytes === slab.bytes.length && this.#slabBytes < LARGEST_SLAB_BYTES) this.#slabBytes *= 2;
    return slab.bytes.subarray(start, this.#filledBytes);
  }

  /** Nothing is received any more; requests may still use what was. */
  close(): void {
    const slab = this.#slab;
    this.#slab = null;
    if (slab === null) return;
    grownBytes -= grownPartOf(slab);
    if (slab.users > 1) {
      const { length } = slab.bytes;
      leftBytes += length;
      slab.whenFree(() => {
        leftBytes -= length;
      });
    }
    slab.release();
  }
}

/** What it has beyond the smallest. */
function grownPartOf(slab: SharedBuffer): number {
  return slab.bytes.length - SMALLEST_SLAB_BYTES;
}
