/**
 * What a connection receives into: the payloads of small requests stay where they arrived until the device is done.
 *
 * Invariants:
 * - A slab is used by the connection that fills it, by the parser while it is at bytes in it, and by each request whose payload
 *   lies in it; the last of them gives it back. Bytes that somebody uses are never overwritten by new ones.
 * - An idle connection has one slab, of the smallest size unless it was busy before; larger slabs have GROWN_MAXIMUM_BYTES more
 *   than the smallest in all. So what a thousand connections cost is bounded.
 * - Slabs that their connections have left and requests still use have LEFT_MAXIMUM_BYTES at most, and one slab for each
 *   connection: a payload of one byte keeps a whole slab, which the account of the requests' memory does not know of.
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
