/**
 * The server's parser of what a client sends: bytes are pushed in as they arrive, messages come out.
 *
 * A message is a header and a body (an option's data, a WRITE's payload; often empty). The sink sees the
 * header first and decides whether the body is kept or swallowed, so that nothing is allocated for a body
 * that is refused. A body that lies whole in one chunk is passed as a part of it; one that spans chunks is
 * assembled in one buffer of its size.
 *
 * Invariants:
 * - Before the first byte of each header, and of each payload, the sink is asked whether it is ready; while it is not, the rest of
 *   the chunk stays here, unparsed, and nothing else may be pushed.
 * - At most one chunk, one scratch header and one body are held.
 * - After a ProtocolError the receiver is not used again.
 */
import { ProtocolError } from "../errors.js";
import { Command, CommandFlag, PAYLOAD_MAXIMUM_BYTES } from "./wire/constants.js";
import { CLIENT_FLAGS_BYTES, decodeClientFlags } from "./wire/handshake.js";
import type { OptionHeader } from "./wire/option.js";
import { OPTION_HEADER_BYTES, decodeOptionHeader } from "./wire/option.js";
import type { RequestHeader } from "./wire/request.js";
import {
  EXTENDED_REQUEST_HEADER_BYTES,
  REQUEST_HEADER_BYTES,
  readExtendedRequestHeader,
  readRequestHeader,
} from "./wire/request.js";

/** Takes the messages of the handshake. */
export interface OptionSink {
  /** Whether to go on with the next option. */
  ready(): boolean;
  clientFlags(flags: number): void;
  /** Whether to keep the data of this option; asked also where there is none. */
  optionHeader(option: OptionHeader): boolean;
  /** The option is complete; null: its data were swallowed. */
  option(option: OptionHeader, data: Buffer | null): void;
}

/** Takes the messages of the transmission phase. */
export interface RequestSink {
  /** Whether to go on with the next request. */
  ready(): boolean;
  /** Whether to keep the payload of this request; asked also where there is none. */
  requestHeader(request: RequestHeader): boolean;
  /** Where to put a payload that comes in pieces: a buffer of this length, the receiver's until request(). */
  payloadBuffer(lengthBytes: number): Buffer;
  /** Whether there is memory for the payload that is to be kept; asked before its first byte is. */
  readyForPayload(): boolean;
  /** The request is complete; null: its payload was swallowed. */
  request(request: RequestHeader, payload: Buffer | null): void;
}

/** Less is received together with what follows. */
const DIRECT_MINIMUM_BYTES = 16 * 1024;

const EMPTY: Buffer = Buffer.alloc(0);

/** What is expected next. */
type Phase = "client-flags" | "option-header" | "option-data" | "request-header" | "payload";

export class RequestReceiver {
  readonly #options: OptionSink;
  #requests: RequestSink | null = null;
  #phase: Phase = "client-flags";
  /** NBD_OPT_EXTENDED_HEADERS was granted. */
  #extended = false;
  #requestHeaderBytes = REQUEST_HEADER_BYTES;
  /** The messages whose bodies are arriving. */
  #option: OptionHeader | null = null;
  #request: RequestHeader | null = null;
  #chunk = EMPTY;
  #at = 0;
  /** For a header that spans chunks; null: none has. */
  #scratch: Buffer | null = null;
  #scratchFilled = 0;
  /** A body that spans chunks; null while it is swallowed or lies in one chunk. */
  #body: Buffer | null = null;
  #bodyMissing = 0;
  #keepBody = false;
  /** No byte of the body was taken yet. */
  #atBodyStart = false;

  constructor(options: OptionSink) {
    this.#options = options;
  }

  /** From the next byte on the client sends requests, compact or extended. To be called by the sink, from option(). */
  enterTransmission(requests: RequestSink, extended = false): void {
    this.#extended = extended;
    this.#requestHeaderBytes = extended ? EXTENDED_REQUEST_HEADER_BYTES : REQUEST_HEADER_BYTES;
    this.#requests = requests;
    this.#phase = "request-header";
  }

  /**
   * Takes the next bytes of the stream; they are lent until all are parsed and the bodies cut from them are done with.
   * Returns false when the sink was not ready for all of it: call resume() before the next push().
   * @throws ProtocolError for a wrong magic, and what the sink throws
   */
  push(chunk: Buffer): boolean {
    this.#chunk = chunk;
    this.#at = 0;
    return this.resume();
  }

  /** Goes on where push() stopped; the same result and errors. */
  resume(): boolean {
    while (this.#at < this.#chunk.length) {
      if (!this.#step()) return false;
    }
    this.#chunk = EMPTY;
    this.#at = 0;
    return true;
  }

  /**
   * The rest of a long payload, for whoever can receive right into it; null: push() what comes next. Nothing that was
   * pushed may be unparsed.
   */
  bodyTarget(): Buffer | null {
    if (this.#phase !== "payload" || !this.#keepBody || this.#bodyMissing < DIRECT_MINIMUM_BYTES) return null;
    if (this.#atBodyStart && this.#requests?.readyForPayload() !== true) return null;
    this.#body ??= this.#newBody(this.#bodyMissing);
    return this.#body.subarray(this.#body.length - this.#bodyMissing);
  }

  /** So many bytes are in what bodyTarget() gave. */
  bodyReceived(lengthBytes: number): void {
    this.#atBodyStart = false;
    this.#bodyMissing -= lengthBytes;
    if (this.#bodyMissing > 0) return;
    const body = this.#body;
    this.#body = null;
    this.#deliver(body);
  }

  /** Parses up to the next boundary or the chunk's end; false when the sink is not ready. */
  #step(): boolean {
    switch (this.#phase) {
      case "client-flags":
        this.#clientFlags();
        return true;
      case "option-header":
        if (this.#scratchFilled === 0 && !this.#options.ready()) return false;
        this.#optionHeader();
        return true;
      case "request-header":
        if (this.#scratchFilled === 0 && this.#requests?.ready() !== true) return false;
        this.#requestHeader();
        return true;
      case "payload":
        if (this.#atBodyStart && this.#keepBody && this.#requests?.readyForPayload() !== true) return false;
        this.#bodyBytes();
        return true;
      case "option-data":
        this.#bodyBytes();
        return true;
    }
  }

  #clientFlags(): void {
    const bytes = this.#wholeHeader(CLIENT_FLAGS_BYTES);
    if (bytes === null) return;
    this.#phase = "option-header";
    this.#options.clientFlags(decodeClientFlags(bytes));
  }

  #optionHeader(): void {
    const bytes = this.#wholeHeader(OPTION_HEADER_BYTES);
    if (bytes === null) return;
    const option = decodeOptionHeader(bytes);
    this.#option = option;
    this.#phase = "option-data";
    this.#startBody(option.lengthBytes, this.#options.optionHeader(option));
  }

  #requestHeader(): void {
    // Read in place: a view of the header would be the dearest part of a small request.
    if (this.#scratchFilled === 0 && this.#chunk.length - this.#at >= this.#requestHeaderBytes) {
      const at = this.#at;
      this.#at += this.#requestHeaderBytes;
      this.#startRequest(this.#chunk, at);
      return;
    }
    const bytes = this.#wholeHeader(this.#requestHeaderBytes);
    if (bytes !== null) this.#startRequest(bytes, 0);
  }

  #startRequest(from: Buffer, at: number): void {
    const request = this.#extended ? readExtendedRequestHeader(from, at) : readRequestHeader(from, at);
    this.#request = request;
    this.#phase = "payload";
    const hasPayload = this.#extended
      ? (request.flags & CommandFlag.PayloadLen) !== 0
      : request.type === Command.Write;
    const payloadBytes = hasPayload ? request.lengthBytes : 0;
    // The document wants this of extended headers; whatever longer payload a compact one announces is swallowed.
    if (this.#extended && payloadBytes > PAYLOAD_MAXIMUM_BYTES) {
      throw new ProtocolError(
        "payload-too-long",
        `a request announces a payload of ${payloadBytes} bytes, at most ${PAYLOAD_MAXIMUM_BYTES} are taken`,
      );
    }
    this.#startBody(payloadBytes, this.#requests?.requestHeader(request) === true);
  }

  /** A header of this size, from the chunk or put together; null when bytes of it are still to come. */
  #wholeHeader(sizeBytes: number): Buffer | null {
    const available = this.#chunk.length - this.#at;
    if (this.#scratchFilled === 0 && available >= sizeBytes) {
      this.#at += sizeBytes;
      return this.#chunk.subarray(this.#at - sizeBytes, this.#at);
    }
    const count = Math.min(sizeBytes - this.#scratchFilled, available);
    const scratch = (this.#scratch ??= Buffer.alloc(EXTENDED_REQUEST_HEADER_BYTES));
    this.#chunk.copy(scratch, this.#scratchFilled, this.#at, this.#at + count);
    this.#at += count;
    this.#scratchFilled += count;
    if (this.#scratchFilled < sizeBytes) return null;
    this.#scratchFilled = 0;
    return scratch;
  }

  #startBody(lengthBytes: number, keep: boolean): void {
    this.#bodyMissing = lengthBytes;
    this.#keepBody = keep;
    this.#atBodyStart = true;
    if (lengthBytes === 0) this.#deliver(keep ? EMPTY : null);
  }

  #bodyBytes(): void {
    const count = Math.min(this.#bodyMissing, this.#chunk.length - this.#at);
    const start = this.#at;
    this.#at += count;
    this.#atBodyStart = false;
    if (!this.#keepBody) {
      this.#bodyMissing -= count;
      if (this.#bodyMissing === 0) this.#deliver(null);
      return;
    }
    if (this.#body === null && count === this.#bodyMissing) {
      this.#bodyMissing = 0;
      this.#deliver(this.#chunk.subarray(start, start + count));
      return;
    }
    this.#body ??= this.#newBody(this.#bodyMissing);
    this.#chunk.copy(this.#body, this.#body.length - this.#bodyMissing, start, start + count);
    this.#bodyMissing -= count;
    if (this.#bodyMissing > 0) return;
    const body = this.#body;
    this.#body = null;
    this.#deliver(body);
  }

  #newBody(lengthBytes: number): Buffer {
    return this.#requests?.payloadBuffer(lengthBytes) ?? Buffer.allocUnsafeSlow(lengthBytes);
  }

  #deliver(body: Buffer | null): void {
    const request = this.#request;
    if (request !== null) {
      this.#request = null;
      this.#phase = "request-header";
      this.#requests?.request(request, body);
      return;
    }
    const option = this.#option;
    if (option === null) return;
    this.#option = null;
    this.#phase = "option-header";
    this.#options.option(option, body);
  }
}
