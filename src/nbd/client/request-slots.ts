/**
 * The places of the requests in flight: a fixed number, so that a server's silence bounds what is sent to it.
 *
 * Invariants:
 * - A slot is used from the moment its request is handed to the socket until the request is answered *and* wholly
 *   sent: only then do its header and the caller's buffer have no other reader.
 * - A cookie is a slot's number (low half) and the count of requests (high half), so that a late second answer
 *   never hits the slot's next request.
 */
import assert from "node:assert";

import {
  EXTENDED_REQUEST_HEADER_BYTES,
  REQUEST_HEADER_BYTES,
  writeExtendedRequestHeader,
  writeRequestHeader,
} from "../wire/request.js";
import type { Request } from "./request.js";

export interface Slot {
  /** The request's bytes on the wire. */
  readonly header: Buffer;
  /** To be called when the socket has passed on all bytes of the request. */
  readonly onSent: () => void;
  request: Request | null;
  sent: boolean;
  answered: boolean;
}

const COOKIE_HALF_LIMIT = 2 ** 32;

export class RequestSlots {
  readonly #slots: Slot[] = [];
  readonly #free: number[] = [];
  readonly #writeHeader: typeof writeRequestHeader;
  #requestCount = 0;

  /** `extended`: with extended headers. `onSent` is called for a used slot. */
  constructor(count: number, extended: boolean, onSent: (slot: Slot) => void) {
    assert(Number.isSafeInteger(count) && count > 0, "there must be at least one slot");
    const headerBytes = extended ? EXTENDED_REQUEST_HEADER_BYTES : REQUEST_HEADER_BYTES;
    this.#writeHeader = extended ? writeExtendedRequestHeader : writeRequestHeader;
    const headers = Buffer.alloc(count * headerBytes);
    for (let i = 0; i < count; i++) {
      const slot: Slot = {
        header: headers.subarray(i * headerBytes, (i + 1) * headerBytes),
        onSent: () => {
          if (slot.request !== null) onSent(slot);
        },
        request: null,
        sent: false,
        answered: false,
      };
      this.#slots.push(slot);
      this.#free.push(count - 1 - i);
    }
  }

  get usedCount(): number {
    return this.#slots.length - this.#free.length;
  }

  get isFull(): boolean {
    return this.#free.length === 0;
  }

  /** Names the request and writes its header. */
  use(request: Request, nowMs: number): Slot {
    const index = this.#free.pop();
    const slot = index === undefined ? undefined : this.#slots[index];
    assert(index !== undefined && slot !== undefined, "no slot is free");
    this.#requestCount = (this.#requestCount + 1) % COOKIE_HALF_LIMIT;
    request.cookieHigh = this.#requestCount;
    request.cookieLow = index;
    request.sentAtMs = nowMs;
    this.#writeHeader(slot.header, 0, request);
    slot.request = request;
    slot.sent = false;
    slot.answered = false;
    return slot;
  }

  /** The slot of the unanswered request with this cookie. */
  find(cookieHigh: number, cookieLow: number): Slot | undefined {
    const slot = this.#slots[cookieLow];
    return slot?.request?.cookieHigh === cookieHigh && !slot.answered ? slot : undefined;
  }

  release(slot: Slot): void {
    assert(slot.request !== null && slot.sent && slot.answered);
    this.#free.push(slot.request.cookieLow);
    slot.request = null;
  }

  /** Empties all slots for good; returns the requests they held. */
  abandonAll(): Request[] {
    const requests: Request[] = [];
    for (const slot of this.#slots) {
      if (slot.request !== null) requests.push(slot.request);
      slot.request = null;
    }
    this.#free.length = 0;
    for (let i = 0; i < this.#slots.length; i++) this.#free.push(i);
    return requests;
  }

  /** The oldest unanswered request; null: there is none. */
  oldest(): Request | null {
    let oldest: Request | null = null;
    for (const { request, answered } of this.#slots) {
      if (request === null || answered) continue;
      if (oldest === null || request.sentAtMs < oldest.sentAtMs) oldest = request;
    }
    return oldest;
  }
}
