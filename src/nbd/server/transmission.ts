/**
 * The transmission phase of one connection: requests in, device calls, replies out in the order they finish.
 *
 * Invariants:
 * - `#open` requests have had their header parsed and their answer not yet taken by the kernel; each is
 *   answered exactly once, unless the connection breaks.
 * - `#deviceRequests` of them are with the device; it never gets a request that refusalOf() refuses.
 * - While there is no room (`hasRoom`) no further header is parsed, so that what a client can pile up is bounded.
 */
import { Arena, Loan, SMALLEST_BYTES, type SharedBuffer } from "../../block/buffer-pool.js";
import { describeError, errnoOf } from "../../errors.js";
import type { RequestSink } from "../receiver.js";
import { Command } from "../wire/constants.js";
import type { RequestHeader } from "../wire/request.js";
import { EXTENDED_DESCRIPTOR_BYTES } from "../wire/structured-reply.js";
import { blockSizeOf, transmissionFlagsOf } from "./advertise.js";
import type { Agreement } from "./agreement.js";
import { BusyPoll } from "./busy-poll.js";
import type { ClientLog } from "./client-log.js";
import { deviceDepthOf, DevicePlace } from "./device-depth.js";
import { type DeviceRequestSink, DeviceRequests } from "./device-requests.js";
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
import { errorReply } from "./replies.js";
import type { ReplyWriter } from "./reply-writer.js";
import type { MemoryAccount } from "./memory-pool.js";
import type { Refusal, RequestRules } from "./request-rules.js";
import { SHUTTING_DOWN, errnoForWire, isWriteLike, offsetWithin, refusalOf } from "./request-rules.js";
import type { Share, Soon } from "./turns.js";

export interface TransmissionOptions {
  readonly agreement: Agreement;
  /** The export's, of this connection. */
  readonly observer: ConnectionObserver;
  readonly writer: ReplyWriter<OpenRequest>;
  /** For payloads; closed with the transmission. */
  readonly memory: MemoryAccount;
  readonly share: Share;
  /** Calls back when it is the client's turn. */
  readonly later: Soon;
  readonly peer: string;
  /** Null: a unix socket. */
  readonly host: string | null;
  readonly clientLog: ClientLog;
  /** The client disconnected, the kernel took answers, or the device went idle. */
  readonly onProgress: () => void;
}

export class Transmission implements RequestSink, DeviceRequestSink {
  readonly export: NbdExport;
  /** The slab in which the payloads lie that are being parsed; null: they have memory of their own. */
  source: SharedBuffer | null = null;
  /** Whether they may stay there; if not they are copied. */
  mayStay = true;
  /** What is parsed next has just come, and has not waited for the client's turn. */
  hasJustCome = true;
  readonly #options: TransmissionOptions;
  readonly #poll = new BusyPoll();
  readonly #rules: RequestRules;
  readonly #device: DeviceRequests;
  readonly #place: DevicePlace;
  /** For replies to short reads; nothing is kept while no request is open. */
  readonly #arena = new Arena(SMALLEST_BYTES);
  #current: OpenRequest | null = null;
  /** The last request whose header came has no memory yet; nothing is parsed meanwhile. */
  #awaitsMemory = false;
  /** That request has been granted its memory by now, and waits for the client's turn. */
  #isGranted = false;
  /** That request, once it is complete: it is answered when it has its memory. */
  #deferred: OpenRequest | null = null;
  #open = 0;
  #memoryBytes = 0;
  #deviceRequests = 0;
  #disconnected = false;
  /** Nothing more comes: it disconnected, or its side of the connection ended. */
  #inputOver = false;
  #isClosed = false;
  #shuttingDown = false;
  #writes = 0;
  #unansweredWrites = 0;
  #failedWrites = 0;
  /** Why this client may not write; undefined: it has not tried to. */
  #writeRefusal: Refusal | null | undefined = undefined;
  #failureLogged = false;
  #bytesRead = 0;
  #bytesWritten = 0;

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
    this.#device = new DeviceRequests(
      options.agreement,
      this.#rules,
      this,
      () => !this.#inputOver && !this.#shuttingDown,
    );
  }

  /** Requests whose answer the kernel has not taken. */
  get openRequests(): number {
    return this.#open;
  }

  get deviceRequests(): number {
    return this.#deviceRequests;
  }

  /** It is for the client to send the rest of a payload. */
  get isMidRequest(): boolean {
    return this.#current !== null && !this.#awaitsMemory;
  }

  /** NBD_CMD_DISC was seen. */
  get disconnected(): boolean {
    return this.#disconnected;
  }

  /** Payload of successful reads and writes. */
  get bytesMoved(): { read: number; written: number } {
    return { read: this.#bytesRead, written: this.#bytesWritten };
  }

  /** From now on requests are answered with ESHUTDOWN; those in flight finish. */
  shutDown(): void {
    this.#shuttingDown = true;
  }

  /** The client sends no more; a WRITE whose payload is incomplete will never be one. */
  inputEnded(): void {
    this.#inputOver = true;
    const partial = this.#current;
    if (partial === null) return;
    this.#current = null;
    this.#open--;
    this.#memoryBytes -= partial.memoryBytes;
    if (!this.#awaitsMemory || this.#isGranted) this.#options.memory.give(partial.memoryBytes);
    partial.loan.release();
  }

  /** To be called once, when nothing of the connection is left. */
  closed(): void {
    const summary: ConnectionSummary = {
      peer: this.#options.peer,
      clean: this.#disconnected && this.#open === 0,
      unansweredWrites: this.#unansweredWrites,
      writes: this.#writes,
      failedWrites: this.#failedWrites,
    };
    this.#isClosed = true;
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
      this.#open--;
      this.#memoryBytes -= open.memoryBytes;
      this.#options.memory.give(open.memoryBytes);
      if (open.isWrite) this.#unansweredWrites--;
      open.loan.release();
    }
    if (this.#open === 0) this.#arena.letGo();
    this.#options.onProgress();
  }

  ready(): boolean {
    if (!this.hasRoom || this.#options.share.isSpent) return false;
    return this.#place.mayBegin(this.#open === 0, this.hasJustCome);
  }

  /** Whether the rest of a request, or another one, may be taken up, in its turn. */
  get hasRoom(): boolean {
    if (this.#disconnected || this.#awaitsMemory || this.#place.isAwaited) return false;
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
    this.#options.share.spend(bytesMovedAtOnce(header));
    let refusal = this.#shuttingDown ? SHUTTING_DOWN : refusalOf(this.#rules, header);
    if (isWrite && refusal === null && header.lengthBytes > 0) refusal = this.#refusalToWrite();
    const memoryBytes = refusal === null ? this.#memoryFor(header) : REQUEST_MEMORY_BYTES;
    this.#current = { header, refusal, isWrite, memoryBytes, loan: new Loan(this.#arena) };
    this.#open++;
    this.#memoryBytes += memoryBytes;
    this.#awaitsMemory = !this.#options.memory.take(memoryBytes, this.#onMemory);
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
    return !this.#awaitsMemory;
  }

  request(_header: RequestHeader, payload: Buffer | null): void {
    this.#poll.arrived();
    const open = this.#current;
    this.#current = null;
    if (open === null) {
      this.#disconnected = true;
      this.#options.onProgress();
    } else if (this.#awaitsMemory) {
      this.#deferred = open;
    } else {
      this.#answer(open, payload);
    }
  }

  #answer(open: OpenRequest, payload: Buffer | null): void {
    if (open.refusal === null) {
      this.#device.perform(open, payload === null ? null : this.#kept(open, payload));
      return;
    }
    if (open.isWrite) this.#failedWrites++;
    this.#send(open, this.#errorReply(open, open.refusal));
  }

  /** The payload, where nothing is received over it until the request releases its loan. */
  #kept({ loan }: OpenRequest, payload: Buffer): Buffer {
    const isInPlace = payload.length > 0 && loan.isEmpty;
    if (!isInPlace || this.source === null) return payload;
    if (this.mayStay) {
      loan.share(this.source);
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
    this.#isGranted = true;
    this.#options.later(this.#useMemory);
  };

  readonly #useMemory = (): void => {
    if (this.#isClosed) return;
    this.#awaitsMemory = false;
    this.#isGranted = false;
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

  /** As DeviceRequestSink. */
  answered(open: OpenRequest, reply: Buffer): void {
    this.#send(open, reply);
  }

  /** As DeviceRequestSink. */
  refused(open: OpenRequest, refusal: Refusal): void {
    this.#send(open, this.#errorReply(open, refusal));
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
    const errno = errnoForWire(open.header, errnoOf(error));
    const failedAt = offsetWithin(open.header, error);
    if (open.isWrite) this.#failedWrites++;
    // FAST_ZERO asks for this answer, and each client would ask a thousand times.
    if (errno !== "ENOTSUP" && !this.#failureLogged) {
      this.#failureLogged = true;
      const { peer, host, clientLog } = this.#options;
      const { type, offset, lengthBytes } = open.header;
      const details = () => ({
        peer,
        export: this.export.name,
        errno,
        type,
        offset,
        lengthBytes,
        failedAt,
        err: error,
      });
      clientLog.warn(
        { host, code: "request-failed" },
        details,
        `request failed: ${describeError(error)}; further failures on this connection are not logged`,
      );
    }
    this.#settled(open, this.#errorReply(open, { errno, message: describeError(error) }, failedAt));
  }

  #settled(open: OpenRequest, reply: Buffer): void {
    if (open.isWrite) open.loan.release();
    this.#deviceRequests--;
    if (isAtDevice(open)) this.#place.settled();
    this.#send(open, reply);
    if (this.#deviceRequests > 0) return;
    // Nobody is left to share the writev with.
    this.#options.writer.flush();
    if (open.header.type === Command.Read) this.#poll.expect();
    this.#options.onProgress();
  }

  #errorReply({ header }: OpenRequest, refusal: Refusal, offset: number | null = null): Buffer {
    return errorReply(this.#rules.structuredReplies, header, refusal.errno, refusal.message, offset);
  }

  #send(open: OpenRequest, reply: Buffer): void {
    this.#options.writer.send(reply, open);
  }
}

/** Of CACHE requests a client has one at the device, however many wait for that. */
function isAtDevice({ header }: OpenRequest): boolean {
  return header.type !== Command.Cache;
}

/** By the event loop itself: longer reads are others' work, longer writes have still to be received. */
function bytesMovedAtOnce({ type, lengthBytes }: RequestHeader): number {
  const movesBytes = type === Command.Read || type === Command.Write;
  return movesBytes && lengthBytes <= MOVED_AT_ONCE_BYTES ? lengthBytes : 0;
}
