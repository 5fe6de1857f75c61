/** The thread of a write lane: does what is in the ring, in order, and sleeps when there is nothing. */
import { writeSync } from "node:fs";
import { constants } from "node:os";
import { workerData } from "node:worker_threads";

import { errnoNumber } from "../../os/errno.js";
import { Control, laneRing, RING_REQUESTS } from "./write-lane-ring.js";
import { PIECE_BYTES } from "./write-piece.js";

export interface LaneThreadData {
  readonly shared: SharedArrayBuffer;
  readonly fd: number;
}

const { shared, fd } = workerData as LaneThreadData;
const { control, offsets, starts, lengths, errors, doneBytes, bytes } = laneRing(shared);

/** From this slot on, so many bytes. Returns 0 or an errno. */
function write(slot: number, lengthBytes: number): number {
  const start = starts[slot] ?? 0;
  const offset = offsets[slot] ?? 0;
  let done = 0;
  try {
    while (done < lengthBytes) {
      const pieceBytes = Math.min(lengthBytes - done, PIECE_BYTES);
      done += writeSync(fd, bytes, start + done, pieceBytes, offset + done);
    }
    return 0;
  } catch (error) {
    doneBytes[slot] = done;
    // An error that has no errno is one all the same.
    return errnoNumber(error) || constants.errno.EIO;
  }
}

/** How many requests from this one on are one run of bytes, on the disk and in the ring. */
function runLength(first: number, submitted: number): number {
  let count = 1;
  let slot = first & (RING_REQUESTS - 1);
  for (let next = (first + 1) | 0; next !== submitted; next = (next + 1) | 0, count++) {
    const nextSlot = next & (RING_REQUESTS - 1);
    const lengthBytes = lengths[slot] ?? 0;
    if (starts[nextSlot] !== (starts[slot] ?? 0) + lengthBytes) break;
    if (offsets[nextSlot] !== (offsets[slot] ?? 0) + lengthBytes) break;
    slot = nextSlot;
  }
  return count;
}

function writeRun(first: number, count: number): void {
  const firstSlot = first & (RING_REQUESTS - 1);
  let lengthBytes = 0;
  for (let i = 0; i < count; i++) lengthBytes += lengths[(first + i) & (RING_REQUESTS - 1)] ?? 0;
  const error = write(firstSlot, lengthBytes);
  for (let i = 0; i < count; i++) {
    const slot = (first + i) & (RING_REQUESTS - 1);
    // Each gets an error of its own: one bad sector is not its neighbours' fault.
    const isAlone = error === 0 || count === 1;
    errors[slot] = isAlone ? error : write(slot, lengths[slot] ?? 0);
  }
}

let completed = 0;
while (Atomics.load(control, Control.closing) === 0) {
  const submitted = Atomics.load(control, Control.submitted);
  if (submitted === completed) {
    Atomics.wait(control, Control.submitted, completed);
    continue;
  }
  while (completed !== submitted) {
    const count = runLength(completed, submitted);
    writeRun(completed, count);
    completed = (completed + count) | 0;
  }
  Atomics.store(control, Control.completed, completed);
  Atomics.notify(control, Control.completed);
}
