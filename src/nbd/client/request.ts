/** A request of the transmission phase, from the caller's wish to the server's answer. */
import { DeviceError, ProtocolError } from "../../errors.js";
import { Command, CommandFlag } from "../wire/constants.js";
import { errnoOfNumber } from "../wire/error-number.js";
import type { RequestHeader } from "../wire/request.js";
import { ReadCoverage } from "./read-coverage.js";
import { printable } from "./server-text.js";
import type { StatusQuery } from "./status-query.js";

const COMMAND_NAMES = new Map<number, string>([
  [Command.Read, "read"],
  [Command.Write, "write"],
  [Command.Flush, "flush"],
  [Command.Trim, "trim"],
  [Command.WriteZeroes, "zero"],
  [Command.BlockStatus, "block status"],
  [Command.Cache, "cache"],
]);

export class Request implements RequestHeader {
  readonly type: number;
  readonly flags: number;
  readonly offset: number;
  /** What the header tells. */
  readonly lengthBytes: number;
  /** Where the content of a READ goes, or where that of a WRITE comes from; the caller's, lent. */
  readonly buffer: Buffer | null;
  /** Of a BLOCK_STATUS, otherwise null. */
  readonly status: StatusQuery | null;
  /** Settles with the server's answer, or with the end of the connection. */
  readonly settled: Promise<void>;

  /** The one behind it, while it waits for a slot. */
  next: Request | null = null;

  // Set when it is sent.
  cookieHigh = 0;
  cookieLow = 0;
  sentAtMs = 0;

  // The answer, as far as it has come.
  error: DeviceError | null = null;
  coverage: ReadCoverage | null = null;

  #resolve: () => void = never;
  #reject: (error: Error) => void = never;

  constructor(
    type: number,
    flags: number,
    offset: number,
    lengthBytes: number,
    buffer: Uint8Array | null,
    status: StatusQuery | null = null,
  ) {
    this.type = type;
    this.flags = flags;
    this.offset = offset;
    this.lengthBytes = lengthBytes;
    // Callers in JavaScript have plain arrays of bytes, too, which lack what is needed further on.
    this.buffer = buffer === null || Buffer.isBuffer(buffer) ? buffer : bufferOver(buffer);
    this.status = status;
    this.settled = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  /** What follows the header; null: nothing does. */
  get payload(): Buffer | null {
    return this.type === Command.Write ? this.buffer : (this.status?.payload ?? null);
  }

  /** Of the range that the request is about; `lengthBytes` may be that of a payload. */
  get rangeBytes(): number {
    return this.status?.lengthBytes ?? this.lengthBytes;
  }

  /** Claims a part of a READ for a chunk; errors as ReadCoverage.add(), and ProtocolError fragmented-read. */
  cover(offset: number, lengthBytes: number): void {
    if (this.coverage !== null && (this.flags & CommandFlag.Df) !== 0) {
      throw new ProtocolError("fragmented-read", `${this.describe()} was to come in one piece`);
    }
    this.coverage ??= new ReadCoverage(this.offset, this.lengthBytes);
    this.coverage.add(offset, lengthBytes);
  }

  /**
   * The server answers with an error; of several the first one counts.
   * @param text its own words, perhaps none
   * @param offset at which it failed, if the server tells
   */
  fail(errorNumber: number, text: string, offset: number | null = null): void {
    const errno = errnoOfNumber(errorNumber);
    const reason = text === "" ? errno : `${errno}, ${printable(text)}`;
    this.error ??= new DeviceError(errno, `the NBD server fails a ${this.describe()}: ${reason}`, { offset });
  }

  /** Hands the answer to the caller. */
  settle(): void {
    if (this.error === null) this.#resolve();
    else this.#reject(this.error);
  }

  /** There will be no answer. */
  abandon(reason: Error): void {
    this.#reject(reason);
  }

  /** For messages. */
  describe(): string {
    const name = COMMAND_NAMES.get(this.type) ?? `command ${this.type}`;
    return this.rangeBytes === 0 ? name : `${name} of ${this.rangeBytes} bytes at ${this.offset}`;
  }
}

function bufferOver(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * Why no request can be about this range; null: one can. Callers in JavaScript may give anything.
 * @param maximumBytes what the header has room for
 */
export function rangeError(
  offset: number,
  lengthBytes: number,
  maximumBytes = Number.MAX_SAFE_INTEGER,
): DeviceError | null {
  const areIntegers = Number.isSafeInteger(offset) && Number.isSafeInteger(lengthBytes);
  if (areIntegers && offset >= 0 && lengthBytes >= 0 && lengthBytes <= maximumBytes) return null;
  return new DeviceError("EINVAL", `there is no range of ${lengthBytes} bytes at ${offset}`);
}

function never(): void {
  throw new Error("a request settles after its promise was made");
}
