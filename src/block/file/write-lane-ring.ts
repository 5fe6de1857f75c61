/**
 * The memory that a write lane shares with its thread: a ring of requests and a ring of bytes, each used by one side at a time.
 *
 * Invariants: requests are numbered without end; those from `completed` to `submitted` are the thread's, with their bytes.
 * The numbers are changed with Atomics after everything that they hand over was written.
 */

/** Requests in the ring. */
export const RING_REQUESTS = 256;
/** A longer write goes its own way: copying it would cost more than the lane saves. */
export const LANE_MAXIMUM_BYTES = 64 * 1024;
const RING_BYTES = 4 * 1024 * 1024;
const CONTROL_WORDS = 16;

/** Index of a word in `control`. */
export const Control = { submitted: 0, completed: 1, closing: 2 } as const;

export interface LaneRing {
  readonly shared: SharedArrayBuffer;
  readonly control: Int32Array;
  /** By slot: where on the disk. */
  readonly offsets: Float64Array;
  /** By slot: where in `bytes`. */
  readonly starts: Int32Array;
  readonly lengths: Int32Array;
  /** By slot: 0, or the errno of the failed write. */
  readonly errors: Int32Array;
  /** By slot: how much of a failed write was done before. */
  readonly doneBytes: Int32Array;
  readonly bytes: Buffer;
}

/** A new ring, or the other thread's view of one. */
export function laneRing(shared = new SharedArrayBuffer(sharedBytes())): LaneRing {
  let at = 0;
  const take = (lengthBytes: number): number => {
    at += lengthBytes;
    return at - lengthBytes;
  };
  return {
    shared,
    control: new Int32Array(shared, take(CONTROL_WORDS * 4), CONTROL_WORDS),
    offsets: new Float64Array(shared, take(RING_REQUESTS * 8), RING_REQUESTS),
    starts: new Int32Array(shared, take(RING_REQUESTS * 4), RING_REQUESTS),
    lengths: new Int32Array(shared, take(RING_REQUESTS * 4), RING_REQUESTS),
    errors: new Int32Array(shared, take(RING_REQUESTS * 4), RING_REQUESTS),
    doneBytes: new Int32Array(shared, take(RING_REQUESTS * 4), RING_REQUESTS),
    bytes: Buffer.from(shared, take(RING_BYTES), RING_BYTES),
  };
}

function sharedBytes(): number {
  return CONTROL_WORDS * 4 + RING_REQUESTS * (8 + 4 * 4) + RING_BYTES;
}
