/**
 * One client, from accept to the last byte: joins the socket, its input, the handshake and the transmission.
 *
 * Invariants:
 * - Its phase only goes forward (see Phase).
 * - In its turn (turns.ts) it goes on with what has waited for that: the replies of a client whose input is stalled
 *   (client-input.ts), then the input. A handshake waits for its turn always.
 */
import type { Socket } from "node:net";

import type { Logger } from "pino";

import { afterRunning, type Cancel, delayOf, systemClock } from "../../clock.js";
import { Deferred } from "../../deferred.js";
import { describeError } from "../../errors.js";
import type { Address } from "../../net/address.js";
import type { ClientLog } from "../../net/client-log.js";
import type { SendRoom } from "../../net/send-room.js";
import type { TlsSession } from "../../net/tls/acceptor.js";
import type { OptionSink } from "../receiver.js";
import { RequestReceiver } from "../receiver.js";
import type { OptionHeader } from "../wire/option.js";
import type { Agreement } from "./agreement.js";
import { ClientInput } from "./client-input.js";
import type { ExportTable } from "./exports.js";
import { LINGER_TIMEOUT_MS, QUEUED_OPTION_REPLY_BYTES } from "./limits.js";
import type { MemoryPool } from "./memory-pool.js";
import type { Outcome } from "./negotiation.js";
import { Negotiation } from "./negotiation.js";
import type { OpenRequest } from "./open-request.js";
import { ReplyWriter } from "./reply-writer.js";
import { type ServerTls, StartTls } from "./starttls.js";
import { type Farewell, Transmission } from "./transmission.js";
import type { Turns } from "./turns.js";
import { ClientTurn } from "./turns.js";

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

/**
 * How far it has come; phases may be left out.
 * - serving: what the client sends is taken up, options first, then requests.
 * - refusing: requests are refused with ESHUTDOWN, or ignored; once all others are answered it leaves.
 * - answering: nothing that the client sends counts any more, after NBD_CMD_DISC, NBD_OPT_ABORT or its FIN; once all is answered it
 *   leaves.
 * - leaving: FIN is sent, the client's is awaited. With both the socket closes itself.
 * - broken: the socket is closed, and the device is still at work for this client.
 * - gone: the socket is closed, and nothing is at work.
 *
 * `ended` resolves when it begins to leave, or is gone without having left.
 */
type Phase = "serving" | "refusing" | "answering" | "leaving" | "broken" | "gone";

export class Connection implements OptionSink {
  readonly peer: string;
  readonly host: string | null;
  readonly listenedOn: Address;
  #phase: Phase = "serving";
  readonly #ended = new Deferred<void>();
  /** The TLS session once there is one. */
  #stream: Socket;
  readonly #options: ConnectionOptions;
  readonly #receiver = new RequestReceiver(this);
  readonly #turn: ClientTurn;
  readonly #input: ClientInput;
  readonly #negotiation: Negotiation;
  readonly #upgrade: StartTls;
  #writer: ReplyWriter<OpenRequest>;
  /** Null during the handshake. */
  #transmission: Transmission | null = null;
  readonly #cancelHandshakeTimer: Cancel;
  #lingerTimer: NodeJS.Timeout | null = null;

  /** The stream is paused. */
  constructor({ stream, host, peer, listenedOn }: AcceptedClient, options: ConnectionOptions) {
    this.peer = peer;
    this.host = host;
    this.listenedOn = listenedOn;
    this.#stream = stream;
    this.#options = options;
    this.#turn = new ClientTurn(options.turns, () => {
      this.#takeTurn();
    });
    this.#upgrade = new StartTls({
      tls: options.tls,
      turns: options.turns,
      secured: (secured) => {
        this.#secured(secured);
      },
      failed: (code, message, err) => {
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
    this.#cancelHandshakeTimer = afterRunning(systemClock, delayOf(options.handshakeTimeoutMs), () => {
      this.#violation("handshake-timeout", `no export chosen within ${options.handshakeTimeoutMs} ms`);
    });
    this.#input = new ClientInput(stream, {
      receiver: this.#receiver,
      turn: this.#turn,
      upgrade: this.#upgrade,
      isOver: () => this.#isInputOver,
      hasRoom: () => this.#hasRoom,
      violated: (code, message, err) => {
        this.#violation(code, message, err);
      },
    });
    this.#writer = this.#writerTo(stream);
    this.#listen();
    stream.resume();
    this.#negotiation.greet();
  }

  /** Resolves when nothing of this connection can reach a device or the client any more. */
  get ended(): Promise<void> {
    return this.#ended.promise;
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

  /** Of a client in transmission: new requests are not done; those in flight are answered, then it leaves. See `ended`. */
  shutDown(farewell: Farewell): void {
    if (this.#phase === "serving") this.#phase = "refusing";
    this.#transmission?.shutDown(farewell);
    this.#progress();
  }

  /** Closes the socket at once; device requests in flight go on until they settle. See `ended`. */
  destroy(): void {
    this.#upgrade.abandon();
    this.#stream.destroy();
  }

  /** As OptionSink. */
  ready(): boolean {
    return this.#turn.isNow && !this.#turn.isSpent && this.#hasRoom;
  }

  /** Whether another option or request may be taken up, in its turn. */
  get #hasRoom(): boolean {
    if (this.#isInputOver || this.#upgrade.isUnderWay) return false;
    return this.#transmission?.hasRoom ?? this.#writer.queuedBytes < QUEUED_OPTION_REPLY_BYTES;
  }

  /** Nothing that the client sends counts any more. */
  get #isInputOver(): boolean {
    return this.#phase !== "serving" && this.#phase !== "refusing";
  }

  clientFlags(flags: number): void {
    this.#negotiation.clientFlags(flags);
  }

  optionHeader(option: OptionHeader): boolean {
    this.#turn.spend(option.lengthBytes);
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
    this.#cancelHandshakeTimer();
    // Others' code: if it throws, nothing has been opened yet.
    const observer = agreement.export.connected?.({ peer: this.peer }) ?? {};
    this.#transmission = new Transmission({
      agreement,
      observer,
      input: this.#input,
      writer: this.#writer,
      turn: this.#turn,
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
      onDeviceLeft: () => {
        this.shutDown("ignore");
      },
    });
    this.#receiver.enterTransmission(this.#transmission, agreement.extendedHeaders);
    const { peer, exportName } = this;
    this.#options.log.debug({ peer, export: exportName }, "client entered transmission");
  }

  #writerTo(stream: Socket): ReplyWriter<OpenRequest> {
    const { stallTimeoutMs } = this.#options;
    return new ReplyWriter<OpenRequest>(stream, {
      stallTimeoutMs,
      isPatient: () => this.#input.isStalled && !this.#turn.isNow,
      awaitTurn: () => {
        this.#turn.await();
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
    this.#input.readFrom(secured);
    this.#listen();
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
      if (stream === this.#stream) this.#closed();
    });
  }

  #takeTurn(): void {
    if (this.#phase === "broken" || this.#phase === "gone") return;
    this.#writer.turnCame();
    this.#input.goOn();
    // Answers that are ready would lie until the next turn; with a thousand clients the garbage collector would move them about.
    this.#writer.flush();
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
    if (this.#isInputOver) return;
    this.#phase = "answering";
    this.#transmission?.inputEnded();
    this.#progress();
  }

  /** Something was answered, taken or ended: looks what can go on, and whether this was the last of it. */
  #progress(): void {
    if (this.#transmission?.disconnected === true) this.#endInput();
    switch (this.#phase) {
      case "leaving":
      case "gone":
        return;
      case "broken":
        if ((this.#transmission?.deviceRequests ?? 0) > 0) return;
        this.#phase = "gone";
        this.#end();
        this.#options.onClosed(this);
        return;
      case "refusing":
      case "answering":
        if (this.#isAnswered) this.#leave();
        else this.#goOn();
        return;
      case "serving":
        this.#goOn();
        return;
    }
  }

  #goOn(): void {
    if (this.#upgrade.isGranted) {
      if (this.#writer.queuedBytes > 0) return;
      this.#upgrade.awaitHello();
      this.#stream.resume();
    } else if (this.#input.isStalled && this.#hasRoom) {
      this.#turn.await();
    }
  }

  /** Nothing is at the device either: that is not answered before it is done. */
  get #isAnswered(): boolean {
    return this.#writer.queuedBytes === 0 && (this.#transmission?.openRequests ?? 0) === 0;
  }

  #leave(): void {
    this.#phase = "leaving";
    this.#stream.end();
    this.#end();
    this.#stream.resume();
    this.#lingerTimer = setTimeout(() => {
      this.#stream.destroy();
    }, LINGER_TIMEOUT_MS);
  }

  #closed(): void {
    this.#cancelHandshakeTimer();
    if (this.#lingerTimer !== null) clearTimeout(this.#lingerTimer);
    this.#writer.close();
    this.#input.close();
    if (this.#phase === "leaving") {
      this.#phase = "gone";
      this.#options.onClosed(this);
      return;
    }
    this.#phase = "broken";
    this.#transmission?.inputEnded();
    this.#progress();
  }

  #end(): void {
    this.#ended.resolve();
    this.#transmission?.closed();
  }
}
