/**
 * Where the lines of a log go: a file descriptor, whatever becomes of what is behind it.
 *
 * Invariants:
 * - It never waits, but for a moment at the end of the process: a reader that has stopped reading must not stall a guest's requests, nor
 *   keep the process from ending.
 * - A line that can't be written (the file system is full, the terminal or the reader is gone) is lost, and that is all: the
 *   next one is tried again. How many were lost is told when one can be written.
 * - At most MAXIMUM_WAITING_CHARACTERS wait.
 *
 * Not pino.destination(): where a line can't be written, for want of room, that tries again at the end without end, and blocks the process.
 */
import { constants, fstatSync, openSync, write, writeSync } from "node:fs";
import { isatty } from "node:tty";
import { describeError, isErrno } from "./errors.js";

const MAXIMUM_WAITING_CHARACTERS = 4 * 1024 * 1024;

/** Between attempts where the other side of a pipe has no room. */
const RETRY_MS = 100;

const NEWLINE = Buffer.from("\n");

/** For how long a process that ends waits for a reader of its last lines; and between two attempts. */
const LAST_WAIT_MS = 1000;
const LAST_RETRY_MS = 5;

export class LogOutput {
  readonly #fd: number;
  readonly #reportLost: (lines: number, reason: string) => void;
  #waiting: string[] = [];
  #waitingCharacters = 0;
  /** What is being written. */
  #batch = Buffer.alloc(0);
  /** The last byte that was written is inside of a line. */
  #isCut = false;
  #state: "idle" | "writing" | "no-room" = "idle";
  #lost = { lines: 0, reason: "" };

  constructor(fd: number, reportLost: (lines: number, reason: string) => void) {
    this.#fd = withoutWaiting(fd);
    this.#reportLost = reportLost;
    process.on("exit", () => {
      this.#flush();
    });
  }

  write(line: string): void {
    if (this.#waitingCharacters + line.length > MAXIMUM_WAITING_CHARACTERS) {
      this.#lose(1, "nobody reads them");
      return;
    }
    this.#waiting.push(line);
    this.#waitingCharacters += line.length;
    if (this.#state === "idle") this.#writeOn();
  }

  #writeOn(): void {
    if (this.#batch.length === 0) this.#takeWaiting();
    if (this.#batch.length === 0) {
      this.#state = "idle";
      return;
    }
    this.#state = "writing";
    write(this.#fd, this.#batch, (error, writtenBytes) => {
      if (error?.code === "EAGAIN") {
        this.#state = "no-room";
        // A process that has nothing else left ends, whatever nobody reads.
        setTimeout(() => {
          this.#writeOn();
        }, RETRY_MS).unref();
        return;
      }
      if (error === null) this.#wrote(writtenBytes);
      else this.#dropBatch(error);
      if (error === null && this.#lost.lines > 0) this.#tellLost();
      this.#writeOn();
    });
  }

  #takeWaiting(): void {
    this.#batch = Buffer.from(this.#waiting.join(""));
    this.#waiting = [];
    this.#waitingCharacters = 0;
    // The rest of a line was lost: it must not take the next one with it.
    if (this.#isCut && this.#batch.length > 0) this.#batch = Buffer.concat([NEWLINE, this.#batch]);
  }

  #wrote(bytes: number): void {
    if (bytes > 0) this.#isCut = this.#batch[bytes - 1] !== NEWLINE[0];
    this.#batch = this.#batch.subarray(bytes);
  }

  #dropBatch(error: Error): void {
    const lines = this.#batch.reduce((count, byte) => (byte === NEWLINE[0] ? count + 1 : count), 0);
    this.#batch = Buffer.alloc(0);
    this.#lose(lines, describeError(error));
  }

  #lose(lines: number, reason: string): void {
    this.#lost = { lines: this.#lost.lines + lines, reason };
  }

  #tellLost(): void {
    const { lines, reason } = this.#lost;
    this.#lost = { lines: 0, reason: "" };
    this.#reportLost(lines, reason);
  }

  /** At the end of the process: what is being written is written by its thread. */
  #flush(): void {
    let rest = this.#state === "writing" ? Buffer.alloc(0) : this.#batch;
    rest = Buffer.concat([rest, Buffer.from(this.#waiting.join(""))]);
    const untilMs = performance.now() + LAST_WAIT_MS;
    while (rest.length > 0) {
      try {
        rest = rest.subarray(writeSync(this.#fd, rest));
      } catch (error) {
        // The last lines of a process that ends can't be told to anybody else.
        if (!isErrno(error, "EAGAIN") || performance.now() > untilMs) return;
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, LAST_RETRY_MS);
      }
    }
  }
}

/**
 * The same pipe or terminal, opened anew: a write to it never waits for the reader. One that did would keep a thread, and the process from
 * ending. Not by a flag of the descriptor itself, which other processes share.
 */
function withoutWaiting(fd: number): number {
  try {
    if (!fstatSync(fd).isFIFO() && !isatty(fd)) return fd;
    return openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  } catch {
    // It may be another user's, or have no reader any more: a write that can't be done is told of later.
    return fd;
  }
}
