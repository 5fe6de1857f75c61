/**
 * The answers to one client's requests: what the device makes of them, as it is done, in whatever order that is.
 *
 * Invariants:
 * - `deviceRequests` are with the device; each is answered once it is done, and no sooner, unless it is to be asked of another one.
 * - The first failure of a connection is logged, further ones are not: a client could have as many as it likes.
 */
import { AskAgainError, describeError, DeviceError, errnoOf } from "../../errors.js";
import type { ClientLog } from "../../net/client-log.js";
import { Command } from "../wire/constants.js";
import type { RequestHeader } from "../wire/request.js";
import type { Agreement } from "./agreement.js";
import { BusyPoll } from "./busy-poll.js";
import type { DevicePlace } from "./device-depth.js";
import type { DeviceRequestSink } from "./device-requests.js";
import type { OpenRequest } from "./open-request.js";
import { errorReply } from "./replies.js";
import type { ReplyWriter } from "./reply-writer.js";
import type { Refusal } from "./request-rules.js";
import { errnoForWire, offsetWithin } from "./request-rules.js";

export interface AnswersOptions {
  readonly agreement: Agreement;
  readonly writer: ReplyWriter<OpenRequest>;
  readonly peer: string;
  /** Null: a unix socket. */
  readonly host: string | null;
  readonly clientLog: ClientLog;
  /** The device went idle. */
  readonly onProgress: () => void;
  /** The device does not do it any more: there is no answer to it. */
  readonly unanswered: (open: OpenRequest) => void;
}

export class Answers implements DeviceRequestSink {
  readonly #options: AnswersOptions;
  readonly #place: DevicePlace;
  readonly #poll = new BusyPoll();
  #deviceRequests = 0;
  #failedWrites = 0;
  #failureLogged = false;
  #bytesRead = 0;
  #bytesWritten = 0;

  constructor(options: AnswersOptions, place: DevicePlace) {
    this.#options = options;
    this.#place = place;
  }

  get deviceRequests(): number {
    return this.#deviceRequests;
  }

  /** Those too that were refused. */
  get failedWrites(): number {
    return this.#failedWrites;
  }

  /** Payload of successful reads and writes. */
  get bytesMoved(): { read: number; written: number } {
    return { read: this.#bytesRead, written: this.#bytesWritten };
  }

  /** The client has sent another request. */
  requestCame(): void {
    this.#poll.arrived();
  }

  /** As DeviceRequestSink. */
  answered(open: OpenRequest, reply: Buffer): void {
    this.#options.writer.send(reply, open);
  }

  /** As DeviceRequestSink. */
  refused(open: OpenRequest, refusal: Refusal): void {
    if (open.isWrite) this.#failedWrites++;
    this.#options.writer.send(this.#errorReply(open, refusal), open);
  }

  /** As DeviceRequestSink. */
  begun(open: OpenRequest, done: Promise<void>, reply: Buffer): void {
    this.#deviceRequests++;
    if (isAtDevice(open)) this.#place.begun();
    // The very promise that it is; but devices are others' code, and may return something else.
    Promise.resolve(done).then(
      () => {
        this.#succeeded(open, reply);
      },
      (error: unknown) => {
        this.#failed(open, error);
      },
    );
  }

  /** As DeviceRequestSink. */
  begunInPieces(open: OpenRequest, pieces: Promise<Buffer[]>): void {
    this.#deviceRequests++;
    this.#place.begun();
    pieces.then(
      (parts) => {
        const last = parts.pop();
        for (const part of parts) this.#options.writer.send(part, null);
        if (last !== undefined) this.#succeeded(open, last);
      },
      (error: unknown) => {
        this.#failed(open, error);
      },
    );
  }

  #succeeded(open: OpenRequest, reply: Buffer): void {
    if (open.header.type === Command.Read) this.#bytesRead += open.header.lengthBytes;
    if (open.header.type === Command.Write) this.#bytesWritten += open.header.lengthBytes;
    this.#settled(open, reply);
  }

  #failed(open: OpenRequest, error: unknown): void {
    if (error instanceof AskAgainError) {
      this.#settled(open, null);
      return;
    }
    const errno = errnoForWire(open.header, errnoOf(error));
    const failedAt = offsetWithin(open.header, error);
    if (open.isWrite) this.#failedWrites++;
    this.#settled(open, this.#errorReply(open, { errno, message: describeError(error) }, failedAt));
    // FAST_ZERO asks for this answer, and each client would ask a thousand times.
    if (errno === "ENOTSUP" || this.#failureLogged) return;
    this.#failureLogged = true;
    // After the answer, which the client gets whatever becomes of the log, that an embedder may have brought.
    this.#log(open.header, error, errno, failedAt);
  }

  #log(
    { type, offset, lengthBytes }: RequestHeader,
    error: unknown,
    errno: string,
    failedAt: number | null,
  ): void {
    const { agreement, peer, host, clientLog } = this.#options;
    const { name } = agreement.export;
    // Where a device's own error comes from is in its message; any other is a bug of the device's, which a stack is for.
    const stack = error instanceof DeviceError ? {} : { err: error };
    const details = () => ({ peer, export: name, errno, type, offset, lengthBytes, failedAt, ...stack });
    clientLog.warn(
      { host, code: "request-failed" },
      details,
      `request failed: ${describeError(error)}; further failures on this connection are not logged`,
    );
  }

  /** @param reply null: there is none */
  #settled(open: OpenRequest, reply: Buffer | null): void {
    const { writer, unanswered, onProgress } = this.#options;
    if (open.isWrite) open.loan.release();
    this.#deviceRequests--;
    if (isAtDevice(open)) this.#place.settled();
    if (reply === null) unanswered(open);
    else writer.send(reply, open);
    if (this.#deviceRequests > 0) return;
    // Nobody is left to share the writev with.
    writer.flush();
    if (open.header.type === Command.Read) this.#poll.expect();
    onProgress();
  }

  #errorReply({ header }: OpenRequest, { errno, message }: Refusal, offset: number | null = null): Buffer {
    return errorReply(this.#options.agreement.structuredReplies, header, errno, message, offset);
  }
}

/** Of CACHE requests a client has one at the device, however many wait for that. */
function isAtDevice({ header }: OpenRequest): boolean {
  return header.type !== Command.Cache;
}
