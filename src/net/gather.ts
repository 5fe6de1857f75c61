/**
 * Many small pieces, few writes: short ones that follow each other are copied together before they go to a socket.
 *
 * Measured on Node 20: a piece of its own costs the stream 1-2 µs and the kernel an entry of its vector; copying 4 KiB costs
 * 0.3 µs. From 16 KiB on the copy is dearer.
 */
import type { Writable } from "node:stream";

import { payloadBuffers } from "../block/buffer-pool.js";

/** What is longer than this is sent from where it is. */
const COPIED_MAXIMUM_BYTES = 16 * 1024;
/** One of the pool's sizes. */
const GATHERED_BYTES = 128 * 1024;
/** Less comes from the garbage collector: a thousand clients that don't read their answers must not hold a buffer each. */
const POOLED_MINIMUM_BYTES = 16 * 1024;

/**
 * Writes the pieces to the stream, in order and at once; they are lent until `taken`.
 * @param taken called when the stream has passed everything on, or with why it could not
 */
export function writeGathered(
  stream: Writable,
  pieces: readonly Buffer[],
  taken: (error?: Error | null) => void,
): void {
  const borrowed: Buffer[] = [];
  const runs = pieces.length === 1 ? pieces : runsOf(pieces);
  const chunks = runs.length === 1 ? runs : gather(runs, borrowed);
  stream.cork();
  const last = chunks.length - 1;
  for (const [index, chunk] of chunks.entries()) {
    if (index < last) stream.write(chunk);
    else
      stream.write(chunk, (error) => {
        for (const buffer of borrowed) payloadBuffers.give(buffer);
        taken(error);
      });
  }
  stream.uncork();
}

/** Pieces that lie one behind the other in memory, as answers that were made together do, are one. */
function runsOf(pieces: readonly Buffer[]): Buffer[] {
  const runs: Buffer[] = [];
  let first: Buffer | null = null;
  let lengthBytes = 0;
  const pass = (): void => {
    if (first === null) return;
    const isOne = first.length === lengthBytes;
    runs.push(isOne ? first : Buffer.from(first.buffer, first.byteOffset, lengthBytes));
  };
  for (const piece of pieces) {
    if (first?.buffer === piece.buffer && first.byteOffset + lengthBytes === piece.byteOffset) {
      lengthBytes += piece.length;
      continue;
    }
    pass();
    first = piece;
    lengthBytes = piece.length;
  }
  pass();
  return runs;
}

/** @param borrowed gets what the pool has to be given back */
function gather(pieces: readonly Buffer[], borrowed: Buffer[]): Buffer[] {
  const chunks: Buffer[] = [];
  let gathered: Buffer | null = null;
  let filledBytes = 0;
  let missingBytes = 0;
  for (const { length } of pieces) if (length <= COPIED_MAXIMUM_BYTES) missingBytes += length;
  const pass = (): void => {
    if (gathered !== null) chunks.push(gathered.subarray(0, filledBytes));
    gathered = null;
    filledBytes = 0;
  };
  for (const piece of pieces) {
    if (piece.length > COPIED_MAXIMUM_BYTES) {
      pass();
      chunks.push(piece);
      continue;
    }
    if (gathered !== null && filledBytes + piece.length > gathered.length) pass();
    if (gathered === null) {
      const isPooled = missingBytes >= POOLED_MINIMUM_BYTES;
      gathered = isPooled
        ? payloadBuffers.take(Math.min(missingBytes, GATHERED_BYTES))
        : Buffer.allocUnsafe(missingBytes);
      if (isPooled) borrowed.push(gathered);
    }
    missingBytes -= piece.length;
    piece.copy(gathered, filledBytes);
    filledBytes += piece.length;
  }
  pass();
  return chunks;
}
