/**
 * The client that behaves of `npm run bench:hostile`, in a process of its own: nothing but the server may make it wait.
 *
 * Arguments: the path of the server's socket, and how many bytes to read at a time. Reads one after the other with pauses,
 * until SIGTERM; then it prints its WitnessReport and ends.
 */
import { setTimeout as sleep } from "node:timers/promises";

import { connectNbd } from "../src/nbd/client/connect.js";
import { DISK_BYTES, MEASURED_EXPORT } from "./attacks.js";

export interface WitnessReport {
  /** When each read began: milliseconds since the epoch. */
  readonly beganMs: readonly number[];
  /** How long it took. */
  readonly tookMs: readonly number[];
}

/** Of one hour; arrays that grow would make it wait for the garbage collector. */
const MAXIMUM_READS = 3600 * 1000;

const [path = "", length = ""] = process.argv.slice(2);
const lengthBytes = Number(length);
const beganMs = new Float64Array(MAXIMUM_READS);
const tookMs = new Float64Array(MAXIMUM_READS);
let count = 0;
let isOver = false;
process.once("SIGTERM", () => (isOver = true));

const client = await connectNbd({ address: { kind: "unix", path }, exportName: MEASURED_EXPORT });
const into = Buffer.alloc(lengthBytes);
// Asked each time: the signal comes between two reads.
const goesOn = (): boolean => !isOver && count < MAXIMUM_READS;
while (goesOn()) {
  const startMs = performance.now();
  await client.read(((count * 7919) % (DISK_BYTES / lengthBytes)) * lengthBytes, into);
  beganMs[count] = performance.timeOrigin + startMs;
  tookMs[count] = performance.now() - startMs;
  count++;
  // With pauses: a busy loop would measure this process.
  await sleep(1);
}
await client.close();
const report: WitnessReport = {
  beganMs: [...beganMs.subarray(0, count)],
  tookMs: [...tookMs.subarray(0, count)],
};
process.stdout.write(JSON.stringify(report));
