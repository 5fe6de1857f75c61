/**
 * The transmission phase of one connection: requests in, as there is room for them, and on to the device. answers.ts sends the
 * replies, in the order in which the requests finish.
 *
 * Invariants:
 * - `#open` requests have had their header parsed and their answer not yet taken by the kernel; each is
 *   answered exactly once, unless the connection breaks.
 * - The device never gets a request that refusalOf() refuses.
 * - While there is no room (`hasRoom`) no further header is parsed, so that what a client can pile up is bounded.
 */
import { Arena, Loan, SMALLEST_BYTES } from "../../block/buffer-pool.js";
import { describeError } from "../../errors.js";
import type { ClientLog } from "../../net/client-log.js";
import type { RequestSink } from "../receiver.js";
import { Command } from "../wire/constants.js";
import type { RequestHeader } from "../wire/request.js";
import { EXTENDED_DESCRIPTOR_BYTES } from "../wire/structured-reply.js";
import { blockSizeOf, transmissionFlagsOf } from "./advertise.js";
import type { Agreement } from "./agreement.js";
import { Answers } from "./answers.js";
import type { Incoming } from "./client-input.js";
import { deviceDepthOf, DevicePlace } from "./device-depth.js";
import { DeviceRequests } from "./device-requests.js";
import type { ConnectionObserver, ConnectionSummary, NbdExport } from "./exports.js";
import {
  BLOCK_STATUS_DESCRIPTORS,
  MOVED_AT_ONCE_BYTES,
  PAYLOAD_IN_FLIGHT_BYTES,
  QUEUED_REPLY_BYTES,
  REQUESTS_IN_FLIGHT,
  REQUEST_MEMORY_BYTES,
} from "./limits.js";
import type { OpenRequest } from "./open-request.js";
import type { ReplyWriter } from "./reply-writer.js";
import type { MemoryAccount } from "./memory-pool.js";
import type { Refusal, RequestRules } from "./request-rules.js";
import { SHUTTING_DOWN, isWriteLike, refusalOf } from "./request-rules.js";
import type { ClientTurn, Soon } from "./turns.js";

export interface TransmissionOptions {
  readonly agreement: Agreement;
  /** The export's, of this connection. */
  readonly observer: ConnectionObserver;
  readonly input: Incoming;
  readonly writer: ReplyWriter<OpenRequest>;
  /** For payloads; closed with the transmission. */
  readonly memory: MemoryAccount;
  readonly turn: ClientTurn;
  /** Calls back when it is the client's turn. */
  readonly later: Soon;
  readonly peer: string;
  /** Null: a unix socket. */
  readonly host: string | null;
  readonly clientLog: ClientLog;
  /** The client disconnected, the kernel took answers, or the device went idle. */
  readonly onProgress: () => void;
  /** The device does not do requests any more, but for those that are under way. */
  readonly onDeviceLeft: () => void;
}

/**
 * What becomes of requests that come to a server that is about to leave: they get ESHUTDOWN, or no answer. A client that connects again
 * (QEMU's with reconnect-delay) hands an error to its guest, and asks again for what was not answered; others get an error either way.
 */
export type Farewell = "refuse" | "ignore";

/**
 * - serving: requests are performed.
 * - refusing: new ones are answered with ESHUTDOWN.
 * - ignoring: new ones are not answered.
 * - over: none comes any more.
 * - closed: nothing of the connection is left.
 */
type Phase = "serving" | "refusing" | "ignoring" | "over" | "closed";

export class Transmission implements RequestSink {
  readonly export: NbdExport;
  readonly #options: TransmissionOptions;
  readonly #rules: RequestRules;
  readonly #place: DevicePlace;
  readonly #answers: Answers;
  readonly #device: DeviceRequests;
  /** For replies to short reads; nothing is kept while no request is open. */
  readonly #arena = new Arena(SMALLEST_BYTES);
  #phase: Phase = "serving";
  #disconnected = false;
  #current: OpenRequest | null = null;
  /**
   * The memory of the last request whose header came: nothing is parsed while it is awaited, nor when it has been granted and waits
   * for the client's turn.
   */
  #memory: "held" | "awaited" | "granted" = "held";
  /** That request, once it is complete: it is answered when it has its memory. */
  #deferred: OpenRequest | null = null;
  #open = 0;
  #memoryBytes = 0;
  #reads = 0;
  #writes = 0;
  #unansweredWrites = 0;
  /** Why this client may not write; undefined: it has not tried to. */
  #writeRefusal: Refusal | null | undefined = undefined;

  constructor(options: TransmissionOptions) {
    const { export: e, structuredReplies, extendedHeaders, contexts } = options.agreement;
    const { minimumBytes, maximumBytes } = blockSizeOf(e);
    this.#options = options;
    this.export = e;
    this.#rules = {
      sizeBytes: e.device.info.sizeBytes,
      minimumBytes,
      maximumPayloadBytes: maximumBytes,
      transmissionFlags: transmissionFlagsOf(options.agreement),
      structuredReplies,
      extendedHeaders,
      hasContexts: contexts.length > 0,
    };
    this.#place = new DevicePlace(deviceDepthOf(e), options.onProgress);
    const unanswered = (open: OpenRequest): void => {
      this.#forget(open);
      options.onDeviceLeft();
    };
    this.#answers = new Answers({ ...options, unanswered }, this.#place);
    const isWanted = (): boolean => this.#phase === "serving";
    this.#device = new DeviceRequests(options.agreement, this.#rules, this.#answers, isWanted);
  }

  /** Requests whose answer the kernel has not taken. */
  get openRequests(): number {
    return this.#open;
  }

  get deviceRequests(): number {
    return this.#answers.deviceRequests;
  }

  /** It is for the client to send the rest of a payload. */
  get isMidRequest(): boolean {
    return this.#current !== null && this.#memory === "held";
  }

  /** NBD_CMD_DISC was seen. */
  get disconnected(): boolean {
    return this.#disconnected;
  }

  /** Payload of successful reads and writes. */
  get bytesMoved(): { read: number; written: number } {
    return this.#answers.bytesMoved;
  }

  /** From now on requests are refused, or not answered; those in flight finish. */
  shutDown(farewell: Farewell): void {
    if (this.#phase !== "serving" && this.#phase !== "refusing") return;
    this.#phase = farewell === "refuse" ? "refusing" : "ignoring";
  }

  /** The client sends no more; a WRITE whose payload is incomplete will never be one. */
  inputEnded(): void {
    this.#phase = "over";
    const partial = this.#current;
    if (partial === null) return;
    this.#current = null;
    this.#forget(partial, this.#memory !== "awaited");
  }

  /** It is not answered. @param hasMemory whether it was given what it counts for */
  #forget(open: OpenRequest, hasMemory = true): void {
    this.#open--;
    this.#memoryBytes -= open.memoryBytes;
    if (hasMemory) this.#options.memory.give(open.memoryBytes);
    open.loan.release();
  }

  /** To be called once, when nothing of the connection is left. */
  closed(): void {
    const summary: ConnectionSummary = {
      peer: this.#options.peer,
      clean: this.#disconnected && this.#open === 0,
      unansweredWrites: this.#unansweredWrites,
      reads: this.#reads,
      writes: this.#writes,
      failedWrites: this.#answers.failedWrites,
    };
    this.#phase = "closed";
    this.#place.close();
    this.#arena.letGo();
    this.#options.memory.close();
    this.#tell(summary);
  }

  #tell(summary: ConnectionSummary): void {
    const { observer, peer, host, clientLog } = this.#options;
    const failed = (error: unknown): void => {
      const details = () => ({ peer, export: this.export.name, err: error });
      clientLog.warn({ host, code: "internal-error" }, details, `internal error: ${describeError(error)}`);
    };
    // Others' code: it may throw, or return a promise that nobody else awaits.
    const tell = async (): Promise<void> => {
      await observer.closed?.(summary);
    };
    tell().catch(failed);
  }

  /** The kernel has taken the answers to these requests. */
  handedOver(answered: readonly OpenRequest[]): void {
    for (const open of answered) {
      if (open.isWrite) this.#unansweredWrites--;
      this.#forget(open);
    }
    if (this.#open === 0) this.#arena.letGo();
    this.#options.onProgress();
  }

  ready(): boolean {
    if (!this.hasRoom || this.#options.turn.isSpent) return false;
    return this.#place.mayBegin(this.#open === 0, this.#options.input.hasJustCome);
  }

  /** Whether the rest of a request, or another one, may be taken up, in its turn. */
  get hasRoom(): boolean {
    if (this.#disconnected || this.#memory !== "held" || this.#place.isAwaited) return false;
    // The request at hand is counted already; it may be as long as all that is allowed.
    if (this.#current !== null) return true;
    return (
      this.#open < REQUESTS_IN_FLIGHT &&
      this.#memoryBytes < PAYLOAD_IN_FLIGHT_BYTES &&
      this.#options.writer.queuedBytes < QUEUED_REPLY_BYTES
    );
  }

  requestHeader(header: RequestHeader): boolean {
    if (header.type === Command.Disconnect) return false;
    const isWrite = isWriteLike(header.type);
    this.#options.turn.spend(bytesMovedAtOnce(header));
    let refusal = this.#phase === "serving" ? refusalOf(this.#rules, header) : SHUTTING_DOWN;
    if (isWrite && refusal === null && header.lengthBytes > 0) refusal = this.#refusalToWrite();
    const memoryBytes = refusal === null ? this.#memoryFor(header) : REQUEST_MEMORY_BYTES;
    this.#current = { header, refusal, isWrite, memoryBytes, loan: new Loan(this.#arena) };
    this.#open++;
    this.#memoryBytes += memoryBytes;
    const isRead = header.type === Command.Read;
    this.#memory = this.#options.memory.take(memoryBytes, this.#onMemory, isRead) ? "held" : "awaited";
    if (isRead) this.#reads++;
    if (isWrite) {
      this.#writes++;
      this.#unansweredWrites++;
    }
    return refusal === null;
  }

  payloadBuffer(lengthBytes: number): Buffer {
    return this.#current?.loan.takeApart(lengthBytes) ?? Buffer.allocUnsafeSlow(lengthBytes);
  }

  readyForPayload(): boolean {
    return this.#memory === "held";
  }

  request(_header: RequestHeader, payload: Buffer | null): void {
    this.#answers.requestCame();
    const open = this.#current;
    this.#current = null;
    if (open === null) {
      this.#disconnected = true;
      this.#options.onProgress();
    } else if (this.#memory !== "held") {
      this.#deferred = open;
    } else {
      this.#answer(open, payload);
    }
  }

  #answer(open: OpenRequest, payload: Buffer | null): void {
    if (open.refusal === SHUTTING_DOWN && this.#phase === "ignoring") {
      this.#forget(open);
      this.#options.onProgress();
    } else if (open.refusal !== null) this.#answers.refused(open, open.refusal);
    else this.#device.perform(open, payload === null ? null : this.#kept(open, payload));
  }

  /** The payload, where nothing is received over it until the request releases its loan. */
  #kept({ loan }: OpenRequest, payload: Buffer): Buffer {
    const isInPlace = payload.length > 0 && loan.isEmpty;
    const { source, mayStay } = this.#options.input;
    if (!isInPlace || source === null) return payload;
    if (mayStay) {
      loan.share(source);
      return payload;
    }
    const copy = loan.takeApart(payload.length);
    payload.copy(copy);
    return copy;
  }

  /** Of its payload and of its answer. */
  #memoryFor({ type, lengthBytes }: RequestHeader): number {
    if (type === Command.Read || type === Command.Write) return Math.max(lengthBytes, REQUEST_MEMORY_BYTES);
    if (type !== Command.BlockStatus) return REQUEST_MEMORY_BYTES;
    return this.#options.agreement.contexts.length * BLOCK_STATUS_DESCRIPTORS * EXTENDED_DESCRIPTOR_BYTES;
  }

  /** One large request that is done may make way for a thousand small ones: each in its turn. */
  readonly #onMemory = (): void => {
    this.#memory = "granted";
    this.#options.later(this.#useMemory);
  };

  readonly #useMemory = (): void => {
    if (this.#phase === "closed") return;
    this.#memory = "held";
    const deferred = this.#deferred;
    this.#deferred = null;
    if (deferred !== null) this.#answer(deferred, null);
    this.#options.onProgress();
  };

  #refusalToWrite(): Refusal | null {
    if (this.#writeRefusal === undefined) {
      const message = this.#options.observer.firstWrite?.() ?? null;
      this.#writeRefusal = message === null ? null : { errno: "EPERM", message };
      if (message !== null) {
        const { peer, host, clientLog } = this.#options;
        const details = () => ({ peer, export: this.export.name, reason: message });
        clientLog.warn({ host, code: "writer-refused" }, details, "writer refused");
      }
    }
    return this.#writeRefusal;
  }
}

/** By the event loop itself: longer reads are others' work, longer writes have still to be received. */
function bytesMovedAtOnce({ type, lengthBytes }: RequestHeader): number {
  const movesBytes = type === Command.Read || type === Command.Write;
  return movesBytes && lengthBytes <= MOVED_AT_ONCE_BYTES ? lengthBytes : 0;
}
