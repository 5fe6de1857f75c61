/**
 * One client, from accept to the last byte: joins the socket, the receiver, the handshake and the transmission.
 *
 * Invariants:
 * - Input stops for good (`#inputOver`) at NBD_CMD_DISC, NBD_OPT_ABORT, the client's FIN or a violation; what
 *   arrives later is dropped.
 * - The socket is paused exactly while the receiver keeps an unparsed rest (`#stalled`).
 * - `ended` resolves once, when no device request is in flight and no further reply can be sent.
 */
import type { Duplex } from "node:stream";

import type { Logger } from "pino";

import { ProtocolError, describeError } from "../../errors.js";
import type { OptionSink } from "../receiver.js";
import { RequestReceiver } from "../receiver.js";
import type { OptionHeader } from "../wire/option.js";
import type { Agreement } from "./agreement.js";
import type { ExportTable } from "./exports.js";
import { LINGER_TIMEOUT_MS, QUEUED_REPLY_BYTES } from "./limits.js";
import type { Outcome } from "./negotiation.js";
import { Negotiation } from "./negotiation.js";
import { ReplyWriter } from "./reply-writer.js";
import type { OpenRequest } from "./transmission.js";
import { Transmission } from "./transmission.js";

/** The byte stream of a connection, as accepted; TLS would put another stream over it. */
export interface Transport {
  readonly stream: Duplex;
  /** For people: the address, or the listener's path and a number. */
  readonly peer: string;
}

export interface ConnectionOptions {
  readonly exports: ExportTable;
  readonly log: Logger;
  readonly handshakeTimeoutMs: number;
  readonly stallTimeoutMs: number;
  readonly isStopping: () => boolean;
  /** Its socket is closed and `ended` has resolved. */
  readonly onClosed: (connection: Connection) => void;
}

/** For `status`. */
export interface ConnectionInfo {
  readonly peer: string;
  /** Null during the handshake. */
  readonly exportName: string | null;
  readonly requestsInFlight: number;
  /** Payload of successful reads and writes. */
  readonly bytesRead: number;
  readonly bytesWritten: number;
}

export class Connection implements OptionSink {
  readonly peer: string;
  /** Resolves when nothing of this connection can reach a device or the client any more. */
  readonly ended: Promise<void>;
  readonly #stream: Duplex;
  readonly #options: ConnectionOptions;
  readonly #receiver = new RequestReceiver(this);
  readonly #negotiation: Negotiation;
  readonly #writer: ReplyWriter<OpenRequest>;
  readonly #handshakeTimer: NodeJS.Timeout;
  #lingerTimer: NodeJS.Timeout | null = null;
  #transmission: Transmission | null = null;
  #resolveEnded: (() => void) | null = null;
  #stalled = false;
  #inputOver = false;
  #shuttingDown = false;
  #finished = false;
  #streamClosed = false;

  constructor({ stream, peer }: Transport, options: ConnectionOptions) {
    this.peer = peer;
    this.#stream = stream;
    this.#options = options;
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
    this.#writer = new ReplyWriter<OpenRequest>(stream, {
      stallTimeoutMs: options.stallTimeoutMs,
      onHandedOver: (answered) => {
        if (this.#transmission === null) this.#progress();
        else this.#transmission.handedOver(answered);
      },
      onStalled: () => {
        this.#violation("reply-stalled", `the client read nothing for ${options.stallTimeoutMs} ms`);
      },
    });
    this.#negotiation = new Negotiation({
      exports: options.exports,
      isStopping: options.isStopping,
      send: (bytes) => {
        this.#writer.send(bytes, null);
      },
    });
    this.#handshakeTimer = setTimeout(() => {
      this.#violation("handshake-timeout", `no export chosen within ${options.handshakeTimeoutMs} ms`);
    }, options.handshakeTimeoutMs);
    this.#listen();
    this.#negotiation.greet();
  }

  /** Null during the handshake. */
  get exportName(): string | null {
    return this.#transmission?.export.name ?? null;
  }

  info(): ConnectionInfo {
    const { read, written } = this.#transmission?.bytesMoved ?? { read: 0, written: 0 };
    return {
      peer: this.peer,
      exportName: this.exportName,
      requestsInFlight: this.#transmission?.openRequests ?? 0,
      bytesRead: read,
      bytesWritten: written,
    };
  }

  /** New requests get ESHUTDOWN; those in flight are answered, then the connection is closed. See `ended`. */
  shutDown(): void {
    this.#shuttingDown = true;
    this.#transmission?.shutDown();
    this.#progress();
  }

  /** Closes the socket at once; device requests in flight go on until they settle. See `ended`. */
  destroy(): void {
    this.#stream.destroy();
  }

  ready(): boolean {
    return !this.#inputOver && this.#writer.queuedBytes < QUEUED_REPLY_BYTES;
  }

  clientFlags(flags: number): void {
    this.#negotiation.clientFlags(flags);
  }

  optionHeader(option: OptionHeader): boolean {
    return this.#negotiation.wantsData(option);
  }

  option(option: OptionHeader, data: Buffer | null): void {
    const outcome: Outcome = this.#negotiation.option(option, data);
    switch (outcome.kind) {
      case "continue":
        return;
      case "finish":
        this.#endInput();
        return;
      case "transmission":
        this.#enterTransmission(outcome.agreement);
        return;
    }
  }

  #enterTransmission(agreement: Agreement): void {
    clearTimeout(this.#handshakeTimer);
    this.#transmission = new Transmission({
      agreement,
      writer: this.#writer,
      peer: this.peer,
      log: this.#options.log,
      onProgress: () => {
        this.#progress();
      },
    });
    this.#receiver.enterTransmission(this.#transmission, agreement.extendedHeaders);
    const { peer, exportName } = this;
    this.#options.log.debug({ peer, export: exportName }, "client entered transmission");
  }

  #listen(): void {
    const stream = this.#stream;
    stream.on("data", (chunk: Buffer) => {
      if (!this.#inputOver && !this.#parse(() => this.#receiver.push(chunk))) stream.pause();
    });
    stream.on("end", () => {
      this.#endInput();
    });
    stream.on("error", (error) => {
      this.#options.log.debug({ peer: this.peer, err: error }, `connection broke: ${describeError(error)}`);
    });
    stream.on("close", () => {
      clearTimeout(this.#handshakeTimer);
      if (this.#lingerTimer !== null) clearTimeout(this.#lingerTimer);
      this.#writer.close();
      this.#streamClosed = true;
      this.#inputOver = true;
      this.#transmission?.inputEnded();
      this.#progress();
    });
  }

  /**
   * Runs the receiver over what there is; false when it kept a rest.
   * A violation ends this connection and nothing else.
   */
  #parse(run: () => boolean): boolean {
    this.#stalled = false;
    try {
      this.#stalled = !run();
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#violation(error.code, error.message);
    }
    return !this.#stalled;
  }

  #violation(code: string, message: string): void {
    if (this.#stream.destroyed) return;
    const { peer, exportName } = this;
    this.#options.log.warn({ peer, export: exportName, code }, `connection closed: ${message}`);
    this.#stream.destroy();
  }

  #endInput(): void {
    if (this.#inputOver) return;
    this.#inputOver = true;
    this.#transmission?.inputEnded();
    this.#progress();
  }

  /** Something was answered, taken or ended: looks what can go on, and whether this was the last of it. */
  #progress(): void {
    if (this.#transmission?.disconnected === true) this.#endInput();
    if (this.#streamClosed) {
      this.#end();
      return;
    }
    const isLast = this.#inputOver || (this.#shuttingDown && this.#transmission !== null);
    if (isLast && this.#isAnswered()) {
      this.#finish();
    } else if (this.#stalled && this.#sink().ready()) {
      if (this.#parse(() => this.#receiver.resume())) this.#stream.resume();
    }
  }

  #sink(): { ready(): boolean } {
    return this.#transmission ?? this;
  }

  #isAnswered(): boolean {
    return this.#writer.queuedBytes === 0 && (this.#transmission?.openRequests ?? 0) === 0;
  }

  /** All is said: FIN, then wait for the client's; with both the socket closes itself. */
  #finish(): void {
    if (this.#finished) return;
    this.#finished = true;
    this.#inputOver = true;
    this.#stream.end();
    this.#end();
    this.#stream.resume();
    this.#lingerTimer = setTimeout(() => {
      this.#stream.destroy();
    }, LINGER_TIMEOUT_MS);
  }

  #end(): void {
    if ((this.#transmission?.deviceRequests ?? 0) > 0) return;
    if (this.#resolveEnded !== null) {
      this.#resolveEnded();
      this.#resolveEnded = null;
      this.#transmission?.closed();
    }
    if (this.#streamClosed) this.#options.onClosed(this);
  }
}
