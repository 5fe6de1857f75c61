/**
 * The transmission phase of one connection: many requests in flight, each settled by its reply or by the end.
 *
 * Invariants:
 * - Requests wait only while every slot is used, and get slots in the order of their arrival.
 * - #refusal is null while requests are taken. Once it is set, nothing waits any more.
 * - After gone() every request has been settled, and no request is ever sent again.
 */
import assert from "node:assert";

import { LinkError, asError } from "../../errors.js";
import { Command } from "../wire/constants.js";
import {
  EXTENDED_REQUEST_HEADER_BYTES,
  REQUEST_HEADER_BYTES,
  writeExtendedRequestHeader,
  writeRequestHeader,
} from "../wire/request.js";
import { withPeer } from "./peer-error.js";
import { ReplyReceiver } from "./reply-receiver.js";
import type { ReplyFormat, RequestTable } from "./reply-receiver.js";
import { RequestSlots } from "./request-slots.js";
import type { Slot } from "./request-slots.js";
import { type Request, rangeError } from "./request.js";
import type { Transport, TransportUser } from "./transport.js";

/** How long a connection that is being closed waits for answers still due; callers of close() have awaited theirs. */
const DRAIN_TIMEOUT_MS = 2000;

export class NbdConnection implements TransportUser, RequestTable {
  /** Resolves (never rejects) with the reason when the connection has ended, null after close(). */
  readonly ended: Promise<Error | null>;
  readonly #transport: Transport;
  readonly #receiver: ReplyReceiver;
  readonly #slots: RequestSlots;
  readonly #extended: boolean;
  /** What the header of a request can tell. */
  readonly #lengthMaximumBytes: number;
  /** A FIFO, linked by Request.next. */
  #firstWaiting: Request | null = null;
  #lastWaiting: Request | null = null;
  /** What requests are rejected with from now on. */
  #refusal: LinkError | null = null;
  /** What `ended` is to tell; undefined: what the transport tells. */
  #outcome: Error | null | undefined = undefined;
  #drainTimer: NodeJS.Timeout | null = null;
  #goodbyeSaid = false;
  #tellEnded: (outcome: Error | null) => void = () => undefined;

  /** Takes over the transport; `unread` came behind the handshake. */
  constructor(transport: Transport, unread: Buffer, format: ReplyFormat, maxInFlight: number) {
    this.#transport = transport;
    this.#receiver = new ReplyReceiver(this, format);
    this.#extended = format.extendedHeaders;
    this.#lengthMaximumBytes = format.extendedHeaders ? Number.MAX_SAFE_INTEGER : 0xffff_ffff;
    this.#slots = new RequestSlots(maxInFlight, format.extendedHeaders, (slot) => {
      slot.sent = true;
      if (slot.answered) this.#complete(slot);
    });
    this.ended = new Promise((resolve) => {
      this.#tellEnded = resolve;
    });
    transport.serve(this);
    if (unread.length > 0) this.received(unread);
  }

  get inFlight(): number {
    return this.#slots.usedCount;
  }

  /** Sends the request as soon as a slot is free; the caller awaits `request.settled`. */
  submit(request: Request): Promise<void> {
    const refusal: Error | null =
      this.#refusal ?? rangeError(request.offset, request.rangeBytes, this.#lengthMaximumBytes);
    if (refusal !== null) request.abandon(refusal);
    else if (this.#slots.isFull) this.#wait(request);
    else this.#send(request);
    return request.settled;
  }

  /** The oldest request in flight that waits for its answer; null: there is none. */
  get oldestPending(): Request | null {
    return this.#slots.oldest();
  }

  /** Ends the connection at once. */
  destroy(reason: Error): void {
    if (this.#outcome === undefined) this.#outcome = reason;
    const message = `the connection to ${this.#transport.peer} is given up: ${reason.message}`;
    this.#transport.drop(new LinkError("link-lost", message, { cause: reason }));
  }

  /** Takes no more requests, awaits the answers still due, says goodbye and waits for the server to hang up. */
  async close(): Promise<void> {
    this.#outcome = null;
    this.#drain(new LinkError("closed", `the connection to ${this.#transport.peer} was closed`));
    await this.ended;
  }

  received(chunk: Buffer): void {
    try {
      this.#receiver.push(chunk);
    } catch (error) {
      this.destroy(withPeer(asError(error), this.#transport.peer));
    }
  }

  gone(reason: LinkError): void {
    if (this.#drainTimer !== null) clearTimeout(this.#drainTimer);
    this.#refusal ??= reason;
    for (const request of this.#slots.abandonAll()) request.abandon(reason);
    this.#abandonWaiting(reason);
    this.#tellEnded(this.#outcome === undefined ? reason : this.#outcome);
  }

  find(cookieHigh: number, cookieLow: number): Request | undefined {
    return this.#slots.find(cookieHigh, cookieLow)?.request ?? undefined;
  }

  answered(request: Request): void {
    const slot = this.#slots.find(request.cookieHigh, request.cookieLow);
    assert(slot !== undefined, "a request is answered once");
    slot.answered = true;
    // A server may refuse a WRITE before it has read all of it: the caller's buffer is then still being sent.
    if (slot.sent) this.#complete(slot);
  }

  #complete(slot: Slot): void {
    const request = slot.request;
    this.#slots.release(slot);
    request?.settle();
    if (request?.error?.errno === "ESHUTDOWN") {
      // "If the client receives an NBD_ESHUTDOWN error it MUST initiate a soft disconnect."
      const shutdown = new LinkError("server-shutdown", `${this.#transport.peer} is shutting down`);
      if (this.#outcome === undefined) this.#outcome = shutdown;
      this.#drain(shutdown);
    }
    const next = this.#firstWaiting;
    if (next !== null) {
      this.#firstWaiting = next.next;
      if (this.#firstWaiting === null) this.#lastWaiting = null;
      this.#send(next);
    }
    if (this.#refusal !== null && this.#slots.usedCount === 0) this.#sayGoodbye();
  }

  #wait(request: Request): void {
    if (this.#lastWaiting === null) this.#firstWaiting = request;
    else this.#lastWaiting.next = request;
    this.#lastWaiting = request;
  }

  #send(request: Request): void {
    const slot = this.#slots.use(request, performance.now());
    const { payload } = request;
    if (payload === null) {
      this.#transport.write(slot.header, slot.onSent);
    } else {
      this.#transport.write(slot.header);
      this.#transport.write(payload, slot.onSent);
    }
  }

  #drain(refusal: LinkError): void {
    if (this.#refusal !== null) return;
    this.#refusal = refusal;
    this.#abandonWaiting(refusal);
    if (this.#slots.usedCount === 0) {
      this.#sayGoodbye();
      return;
    }
    this.#drainTimer = setTimeout(() => {
      this.destroy(
        new LinkError("link-lost", `requests are unanswered after ${DRAIN_TIMEOUT_MS} ms of closing`),
      );
    }, DRAIN_TIMEOUT_MS);
  }

  #sayGoodbye(): void {
    if (this.#goodbyeSaid) return;
    this.#goodbyeSaid = true;
    const header = Buffer.alloc(this.#extended ? EXTENDED_REQUEST_HEADER_BYTES : REQUEST_HEADER_BYTES);
    const write = this.#extended ? writeExtendedRequestHeader : writeRequestHeader;
    write(header, 0, {
      type: Command.Disconnect,
      flags: 0,
      cookieHigh: 0,
      cookieLow: 0,
      offset: 0,
      lengthBytes: 0,
    });
    this.#transport.end(header);
  }

  #abandonWaiting(reason: LinkError): void {
    for (let request = this.#firstWaiting; request !== null; request = request.next) request.abandon(reason);
    this.#firstWaiting = null;
    this.#lastWaiting = null;
  }
}
