/**
 * One client, from accept to the last byte: joins the socket, the receiver, the handshake and the transmission.
 *
 * Invariants:
 * - Input stops for good (`#inputOver`) at NBD_CMD_DISC, NBD_OPT_ABORT, the client's FIN or a violation; what
 *   arrives later is dropped.
 * - The socket is paused while `#stalled`: the receiver keeps an unparsed rest, or has had its share of this turn. Parsing
 *   goes on when there is room for what comes next, in this client's turn (turns.ts). A handshake waits for its turn
 *   always. The replies of a client that is stalled wait for its turn too, and go with those that the turn brings.
 * - While `#upgrade` is under way nothing is parsed (starttls.ts).
 * - `ended` resolves once, when no device request is in flight and no further reply can be sent.
 */
import type { Socket } from "node:net";

import type { Logger } from "pino";

import { delayOf } from "../../clock.js";
import { ProtocolError, asError, describeError } from "../../errors.js";
import type { Address } from "../../net/address.js";
import { readInto, type Reader } from "../../net/read-into.js";
import type { SendRoom } from "../../net/send-room.js";
import type { SharedBuffer } from "../../block/buffer-pool.js";
import type { TlsSession } from "../../net/tls/acceptor.js";
import type { OptionSink } from "../receiver.js";
import { RequestReceiver } from "../receiver.js";
import type { OptionHeader } from "../wire/option.js";
import type { Agreement } from "./agreement.js";
import type { ClientLog } from "./client-log.js";
import type { ExportTable } from "./exports.js";
import { DIRECT_READ_BYTES, LINGER_TIMEOUT_MS, QUEUED_OPTION_REPLY_BYTES } from "./limits.js";
import type { MemoryPool } from "./memory-pool.js";
import type { Outcome } from "./negotiation.js";
import { Negotiation } from "./negotiation.js";
import type { OpenRequest } from "./open-request.js";
import { ReceiveBuffer } from "./receive-buffer.js";
import { ReplyWriter } from "./reply-writer.js";
import { type ServerTls, StartTls } from "./starttls.js";
import { Transmission } from "./transmission.js";
import type { Turns } from "./turns.js";
import { Share } from "./turns.js";

/** A client as it was accepted; TLS puts another stream over its own. */
interface AcceptedClient {
  readonly stream: Socket;
  /** The peer's address; null: it came by a unix socket. */
  readonly host: string | null;
  /** For people: the address, or the listener's path and a number. */
  readonly peer: string;
  /** Of the listener. */
  readonly listenedOn: Address;
}

export interface ConnectionOptions {
  readonly exports: ExportTable;
  readonly log: Logger;
  readonly tls: ServerTls | null;
  // Shared by all connections of the server.
  readonly clientLog: ClientLog;
  readonly memory: MemoryPool;
  readonly turns: Turns;
  readonly sendRoom: SendRoom;
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
  /** Null: none. */
  readonly tls: TlsSession | null;
  readonly requestsInFlight: number;
  /** Payload of successful reads and writes. */
  readonly bytesRead: number;
  readonly bytesWritten: number;
}

export class Connection implements OptionSink, Reader {
  readonly peer: string;
  readonly host: string | null;
  readonly listenedOn: Address;
  /** Resolves when nothing of this connection can reach a device or the client any more. */
  readonly ended: Promise<void>;
  /** The TLS session once there is one. */
  #stream: Socket;
  readonly #options: ConnectionOptions;
  readonly #receiver = new RequestReceiver(this);
  readonly #negotiation: Negotiation;
  #writer: ReplyWriter<OpenRequest>;
  readonly #handshakeTimer: NodeJS.Timeout;
  #lingerTimer: NodeJS.Timeout | null = null;
  #transmission: Transmission | null = null;
  #resolveEnded: (() => void) | null = null;
  #stalled = false;
  readonly #share: Share;
  #awaitsTurn = false;
  /** When its turn came last; as Turns.number. */
  #lastTurn = -1;
  /** Replies wait for its turn. */
  #handOver: (() => void) | null = null;
  #inputOver = false;
  #shuttingDown = false;
  #finished = false;
  #streamClosed = false;
  readonly #upgrade: StartTls;
  /** This side ended the connection, and said why if there was anything to say. */
  #isGivenUp = false;

  readonly #buffer = new ReceiveBuffer();
  /** Where the next bytes go: into the rest of a payload, or into #buffer. */
  #isDirect = false;
  /** What is being parsed, or waits to be. */
  #source: SharedBuffer | null = null;

  /** The stream is paused. */
  constructor({ stream, host, peer, listenedOn }: AcceptedClient, options: ConnectionOptions) {
    this.peer = peer;
    this.host = host;
    this.listenedOn = listenedOn;
    this.#stream = stream;
    this.#options = options;
    this.#share = new Share(options.turns);
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
    this.#writer = this.#writerTo(this.#stream);
    this.#upgrade = new StartTls({
      tls: options.tls,
      turns: options.turns,
      secured: (secured) => {
        this.#secured(secured);
      },
      failed: (code, message, err) => {
        if (this.#isGivenUp) return;
        this.#warnOfEnd(code, message, err);
        this.destroy();
      },
    });
    this.#negotiation = new Negotiation({
      exports: options.exports,
      isStopping: options.isStopping,
      tls: options.tls?.mode ?? null,
      onTlsMissing: () => {
        const event = { host, code: "tls-required" };
        options.clientLog.warn(event, () => ({ peer }), "client refused: no TLS, which is required");
      },
      send: (bytes) => {
        this.#writer.send(bytes, null);
      },
    });
    this.#handshakeTimer = setTimeout(() => {
      this.#violation("handshake-timeout", `no export chosen within ${options.handshakeTimeoutMs} ms`);
    }, delayOf(options.handshakeTimeoutMs));
    this.#read();
    this.#listen();
    this.#stream.resume();
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
      tls: this.#upgrade.session,
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
    this.#isGivenUp = true;
    this.#stream.destroy();
  }

  /** As OptionSink. */
  ready(): boolean {
    return this.#isItsTurn && !this.#share.isSpent && this.#hasRoom;
  }

  /** Whether another option or request may be taken up, in its turn. */
  get #hasRoom(): boolean {
    if (this.#inputOver || this.#upgrade.isUnderWay) return false;
    return this.#transmission?.hasRoom ?? this.#writer.queuedBytes < QUEUED_OPTION_REPLY_BYTES;
  }

  clientFlags(flags: number): void {
    this.#negotiation.clientFlags(flags);
  }

  optionHeader(option: OptionHeader): boolean {
    this.#share.spend(option.lengthBytes);
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
      case "tls":
        this.#upgrade.grant();
        return;
      case "transmission":
        this.#enterTransmission(outcome.agreement);
        return;
    }
  }

  #enterTransmission(agreement: Agreement): void {
    clearTimeout(this.#handshakeTimer);
    // Others' code: if it throws, nothing has been opened yet.
    const observer = agreement.export.connected?.({ peer: this.peer }) ?? {};
    this.#transmission = new Transmission({
      agreement,
      observer,
      writer: this.#writer,
      share: this.#share,
      later: this.#options.turns.later,
      memory: this.#options.memory.open({
        movedBytes: () => this.#stream.bytesRead + this.#writer.handedOverBytes,
        waitsForClient: () => this.#writer.queuedBytes > 0 || this.#transmission?.isMidRequest === true,
        cutOff: () => {
          this.#violation("memory-short", "it holds memory that others wait for, and is too slow");
        },
      }),
      peer: this.peer,
      host: this.host,
      clientLog: this.#options.clientLog,
      onProgress: () => {
        this.#progress();
      },
    });
    // Requests may have come in one piece with the option that brought us here.
    this.#transmission.source = this.#source;
    this.#transmission.mayStay = this.#buffer.mayStay;
    this.#receiver.enterTransmission(this.#transmission, agreement.extendedHeaders);
    const { peer, exportName } = this;
    this.#options.log.debug({ peer, export: exportName }, "client entered transmission");
  }

  #writerTo(stream: Socket): ReplyWriter<OpenRequest> {
    const { stallTimeoutMs } = this.#options;
    return new ReplyWriter<OpenRequest>(stream, {
      stallTimeoutMs,
      isPatient: () => this.#stalled && !this.#isItsTurn,
      later: (handOver) => {
        this.#handOver = handOver;
        this.#awaitTurn();
      },
      onHandedOver: (answered) => {
        if (this.#transmission === null) this.#progress();
        else this.#transmission.handedOver(answered);
      },
      onDropped: (answered) => {
        for (const { loan } of answered) loan.release();
      },
      onLongHandover: () => {
        this.#options.sendRoom.widen(stream);
      },
      onStalled: () => {
        this.#violation("reply-stalled", `the client read nothing for ${stallTimeoutMs} ms`);
      },
    });
  }

  #secured(secured: Socket): void {
    this.#stream = secured;
    this.#writer.close();
    this.#writer = this.#writerTo(secured);
    this.#negotiation.secured();
    this.#read();
    this.#listen();
  }

  #read(): void {
    const stream = this.#stream;
    readInto(stream, this);
    stream.on("data", (chunk: Buffer) => {
      if (this.#inputOver) return;
      const goesOn = this.#upgrade.awaitsHello
        ? this.#upgrade.push(stream, chunk)
        : this.#parse(() => this.#receiver.push(chunk));
      if (!goesOn) stream.pause();
    });
  }

  /** As Reader. */
  target(): Buffer {
    const body = this.#stalled || this.#inputOver ? null : this.#receiver.bodyTarget();
    this.#isDirect = body !== null;
    return body?.subarray(0, DIRECT_READ_BYTES) ?? this.#buffer.room();
  }

  /** As Reader. */
  received(lengthBytes: number): boolean {
    if (this.#inputOver) return true;
    if (this.#isDirect) {
      this.#parse(() => {
        this.#receiver.bodyReceived(lengthBytes);
        return true;
      });
      this.#share.spend(lengthBytes);
      if (!this.#share.isSpent) return true;
      this.#awaitTurn();
      return false;
    }
    const chunk = this.#buffer.received(lengthBytes);
    if (this.#upgrade.awaitsHello) return this.#upgrade.push(this.#stream, chunk);
    this.#source = this.#buffer.slab;
    this.#source?.hold();
    return this.#parse(() => this.#receiver.push(chunk));
  }

  #listen(): void {
    const stream = this.#stream;
    stream.on("end", () => {
      if (stream === this.#stream && !this.#upgrade.isHandshaking) this.#endInput();
    });
    stream.on("error", (error) => {
      this.#options.log.debug({ peer: this.peer, err: error }, `connection broke: ${describeError(error)}`);
    });
    stream.on("close", () => {
      if (stream !== this.#stream) return;
      clearTimeout(this.#handshakeTimer);
      if (this.#lingerTimer !== null) clearTimeout(this.#lingerTimer);
      this.#writer.close();
      this.#streamClosed = true;
      this.#inputOver = true;
      this.#releaseSource();
      this.#buffer.close();
      this.#transmission?.inputEnded();
      this.#progress();
    });
  }

  /**
   * Runs the receiver over what there is; false when it kept a rest.
   * A violation ends this connection and nothing else; so does what an export's hooks throw, or a mistake of ours.
   */
  #parse(run: () => boolean, hasJustCome = true): boolean {
    this.#stalled = false;
    if (this.#transmission !== null) {
      this.#transmission.source = this.#source;
      this.#transmission.mayStay = this.#buffer.mayStay;
      this.#transmission.hasJustCome = hasJustCome;
    }
    try {
      this.#stalled = !run();
      if (this.#upgrade.isUnderWay) this.#holdInput();
    } catch (error) {
      if (error instanceof ProtocolError) this.#violation(error.code, error.message);
      else this.#violation("internal-error", `internal error: ${describeError(error)}`, asError(error));
    }
    if (!this.#stalled) this.#releaseSource();
    else if (this.#hasRoom) this.#awaitTurn();
    return !this.#stalled;
  }

  #awaitTurn(): void {
    if (this.#awaitsTurn) return;
    this.#awaitsTurn = true;
    this.#options.turns.later(this.#takeTurn);
  }

  readonly #takeTurn = (): void => {
    this.#awaitsTurn = false;
    if (this.#streamClosed) return;
    this.#lastTurn = this.#options.turns.number;
    const handOver = this.#handOver;
    this.#handOver = null;
    handOver?.();
    const mayRead = !this.#stalled || (this.#hasRoom && this.#parse(() => this.#receiver.resume(), false));
    if (mayRead && !this.#upgrade.isUnderWay) this.#stream.resume();
    // Answers that are ready would lie until the next turn; with a thousand clients the garbage collector would move them about.
    this.#writer.flush();
  };

  get #isItsTurn(): boolean {
    return this.#lastTurn === this.#options.turns.number;
  }

  #releaseSource(): void {
    this.#source?.release();
    this.#source = null;
  }

  /** From the client's STARTTLS to its first TLS message only our reply may pass. */
  #holdInput(): void {
    if (this.#stalled) {
      throw new ProtocolError("plaintext-injection", "plaintext came behind NBD_OPT_STARTTLS");
    }
    this.#stream.pause();
  }

  #violation(code: string, message: string, err?: Error): void {
    if (this.#stream.destroyed) return;
    this.#warnOfEnd(code, message, err);
    this.destroy();
  }

  /** @param err with a stack that is of use */
  #warnOfEnd(code: string, message: string, err?: Error): void {
    const { peer, host, exportName } = this;
    const details = () => ({ peer, export: exportName, err });
    this.#options.clientLog.warn({ host, code }, details, `connection closed: ${message}`);
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
    } else if (this.#upgrade.isGranted) {
      if (this.#writer.queuedBytes > 0) return;
      this.#upgrade.awaitHello();
      this.#stream.resume();
    } else if (this.#stalled && this.#hasRoom) {
      this.#awaitTurn();
    }
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
