/**
 * Where the lines of a log go: a file descriptor, whatever becomes of what is behind it.
 *
 * Invariants:
 * - It never waits, but at the end of the process: a reader that has stopped reading must not stall a guest's requests.
 * - A line that can't be written (the file system is full, the terminal or the reader is gone) is lost, and that is all: the
 *   next one is tried again. How many were lost is told when one can be written.
 * - At most MAXIMUM_WAITING_CHARACTERS wait.
 *
 * Not pino.destination(): where a line can't be written, for want of room, that tries again at the end without end, and blocks the process.
 */
import { write, writeSync } from "node:fs";
import { describeError } from "./errors.js";

const MAXIMUM_WAITING_CHARACTERS = 4 * 1024 * 1024;

/** Between attempts where the other side of a pipe has no room. */
const RETRY_MS = 100;

export class LogOutput {
  readonly #fd: number;
  readonly #reportLost: (lines: number, reason: string) => void;
  #waiting: string[] = [];
  #waitingCharacters = 0;
  /** What is being written, and of how many lines it was made. */
  #batch = Buffer.alloc(0);
  #batchLines = 0;
  #state: "idle" | "writing" | "no-room" = "idle";
  #lost = { lines: 0, reason: "" };

  constructor(fd: number, reportLost: (lines: number, reason: string) => void) {
    this.#fd = fd;
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
        setTimeout(() => {
          this.#writeOn();
        }, RETRY_MS);
        return;
      }
      if (error === null) this.#batch = this.#batch.subarray(writtenBytes);
      else this.#dropBatch(error);
      if (error === null && this.#lost.lines > 0) this.#tellLost();
      this.#writeOn();
    });
  }

  #takeWaiting(): void {
    this.#batch = Buffer.from(this.#waiting.join(""));
    this.#batchLines = this.#waiting.length;
    this.#waiting = [];
    this.#waitingCharacters = 0;
  }

  #dropBatch(error: Error): void {
    this.#batch = Buffer.alloc(0);
    this.#lose(this.#batchLines, describeError(error));
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
    try {
      while (rest.length > 0) rest = rest.subarray(writeSync(this.#fd, rest));
    } catch {
      // The last lines of a process that ends can't be told to anybody else.
    }
  }
}
