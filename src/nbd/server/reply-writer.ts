/**
 * The write side of a connection: gathers replies and hands them to the kernel, many in one writev.
 *
 * Invariants:
 * - At most one handover (HANDOVER_BYTES or less) is on its way; what comes meanwhile waits in the queue, in order.
 * - `queuedBytes` counts all bytes that the kernel has not taken.
 * - Each answer is reported once, as handed over or as dropped. After close() nothing is handed over any more.
 */
import type { Writable } from "node:stream";

import { afterRunning, type Cancel, delayOf, backgroundClock } from "../../clock.js";
import { writeGathered } from "../../net/gather.js";
import { HANDOVER_BYTES, LONG_HANDOVER_BYTES } from "./limits.js";

interface QueuedReply<Answered> {
  readonly bytes: Buffer;
  /** What these bytes finish answering; null before the last part of an answer. */
  readonly answered: Answered | null;
}

export interface ReplyWriterOptions<Answered> {
  /** How long the kernel may take none of a handover. */
  readonly stallTimeoutMs: number;
  /** Whether handovers wait for turnCame(), and not only for the end of this turn of the event loop. */
  readonly isPatient: () => boolean;
  /** Has turnCame() called. */
  readonly awaitTurn: () => void;
  /** The kernel has taken these answers, and maybe parts of others. */
  readonly onHandedOver: (answered: readonly Answered[]) => void;
  /** The connection is over: these answers are used by nobody any more, and were not handed over. */
  readonly onDropped: (answered: readonly Answered[]) => void;
  /** A handover of LONG_HANDOVER_BYTES or more comes for the first time. */
  readonly onLongHandover: () => void;
  /** The client does not read. */
  readonly onStalled: () => void;
}

export class ReplyWriter<Answered> {
  readonly #stream: Writable;
  readonly #options: ReplyWriterOptions<Answered>;
  readonly #queue: QueuedReply<Answered>[] = [];
  #queuedBytes = 0;
  #handedOverBytes = 0;
  #busy = false;
  /** When the next handover is due: at the end of this turn of the event loop, or in the client's turn; null: none is. */
  #due: "soon" | "in its turn" | null = null;
  #hasBeenLong = false;
  #closed = false;
  /** Counts handovers that the kernel has taken. */
  #progress = 0;
  #cancelStallTimer: Cancel | null = null;

  constructor(stream: Writable, options: ReplyWriterOptions<Answered>) {
    this.#stream = stream;
    this.#options = options;
  }

  get queuedBytes(): number {
    return this.#queuedBytes;
  }

  /** What the kernel has taken in all. */
  get handedOverBytes(): number {
    return this.#handedOverBytes;
  }

  /** Queues a reply, or part of one, for a handover soon. `bytes` are lent until handed over. */
  send(bytes: Buffer, answered: Answered | null): void {
    if (this.#closed) {
      if (answered !== null) this.#options.onDropped([answered]);
      return;
    }
    this.#queue.push({ bytes, answered });
    this.#queuedBytes += bytes.length;
    if (!this.#busy) this.#schedule();
  }

  /** Hands over what is queued, at once unless it is patient: for when nothing is likely to join it in this turn. */
  flush(): void {
    if (!this.#options.isPatient()) this.#flush();
  }

  /** The client has its turn: hands over what waits for that. */
  turnCame(): void {
    if (this.#due === "in its turn") this.#onDue();
  }

  #flush(): void {
    if (!this.#busy && !this.#closed && this.#queue.length > 0) this.#handOver();
  }

  /** Drops what is queued; what was handed over is dropped when the stream lets go of it. The stream is closed. */
  close(): void {
    this.#closed = true;
    const dropped = this.#queue.splice(0).flatMap(({ answered }) => answered ?? []);
    this.#queuedBytes = 0;
    this.#options.onDropped(dropped);
    this.#cancelStallTimer?.();
  }

  #schedule(): void {
    if (this.#due !== null) return;
    if (this.#options.isPatient()) {
      this.#due = "in its turn";
      this.#options.awaitTurn();
    } else {
      this.#due = "soon";
      setImmediate(this.#onDue);
    }
  }

  readonly #onDue = (): void => {
    this.#due = null;
    this.#flush();
  };

  #handOver(): void {
    const batch = this.#takeBatch();
    const answered: Answered[] = [];
    let batchBytes = 0;
    this.#busy = true;
    const pieces: Buffer[] = [];
    for (const { bytes, answered: answeredHere } of batch) {
      batchBytes += bytes.length;
      pieces.push(bytes);
      if (answeredHere !== null) answered.push(answeredHere);
    }
    if (!this.#hasBeenLong && batchBytes >= LONG_HANDOVER_BYTES) {
      this.#hasBeenLong = true;
      this.#options.onLongHandover();
    }
    writeGathered(this.#stream, pieces, (error) => {
      this.#handedOver(answered, batchBytes, error);
    });
    this.#cancelStallTimer ??= this.#armStallTimer();
  }

  /** The longest beginning of the queue that fits a handover; a reply that doesn't is cut. */
  #takeBatch(): QueuedReply<Answered>[] {
    let count = 0;
    let room = HANDOVER_BYTES;
    for (const { bytes } of this.#queue) {
      if (bytes.length > room) break;
      room -= bytes.length;
      count++;
    }
    // A copy: the queue is an old object, and what hangs on one outlives it until the next full garbage collection.
    const batch = this.#queue.splice(0, count);
    const next = this.#queue[0];
    if (next !== undefined && room > 0) {
      batch.push({ bytes: next.bytes.subarray(0, room), answered: null });
      this.#queue[0] = { bytes: next.bytes.subarray(room), answered: next.answered };
    }
    return batch;
  }

  #handedOver(answered: readonly Answered[], batchBytes: number, error: Error | null | undefined): void {
    // The stream's own "error" and "close" tell of a failure.
    if (this.#closed || error) {
      this.#options.onDropped(answered);
      return;
    }
    this.#busy = false;
    this.#progress++;
    this.#queuedBytes -= batchBytes;
    this.#handedOverBytes += batchBytes;
    if (this.#queue.length > 0) this.#schedule();
    this.#options.onHandedOver(answered);
  }

  /** One timer for many handovers: it looks whether there was progress since it was armed. */
  #armStallTimer(): Cancel {
    const progressBefore = this.#progress;
    return afterRunning(backgroundClock, delayOf(this.#options.stallTimeoutMs), () => {
      this.#cancelStallTimer = null;
      if (!this.#busy) return;
      if (this.#progress === progressBefore) this.#options.onStalled();
      else this.#cancelStallTimer = this.#armStallTimer();
    });
  }
}
