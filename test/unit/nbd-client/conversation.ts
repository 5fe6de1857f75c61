/** Replies without a socket: requests in flight, and a receiver to push bytes into. */
import { ReplyReceiver } from "../../../src/nbd/client/reply-receiver.js";
import type { ReplyFormat } from "../../../src/nbd/client/reply-receiver.js";
import { Request } from "../../../src/nbd/client/request.js";
import { StatusQuery } from "../../../src/nbd/client/status-query.js";
import { Command } from "../../../src/nbd/wire/constants.js";
import type { ReplyTarget } from "../../../src/nbd/wire/request.js";

/** The number of base:allocation. */
const CONTEXT_ID = 7;

export const SIMPLE: ReplyFormat = {
  structuredReplies: false,
  extendedHeaders: false,
  contexts: new Map(),
};
export const STRUCTURED: ReplyFormat = {
  structuredReplies: true,
  extendedHeaders: false,
  contexts: new Map([["base:allocation", CONTEXT_ID]]),
};
export const EXTENDED: ReplyFormat = {
  structuredReplies: true,
  extendedHeaders: true,
  contexts: new Map([["base:allocation", CONTEXT_ID]]),
};
export const DONE = 1;

/** A receiver and the requests it may answer. Cookies are 1, 2, ...; `answered` lists them in the order of the answers. */
export class Conversation {
  readonly requests: Request[] = [];
  readonly answered: number[] = [];
  readonly #receiver: ReplyReceiver;

  constructor(format: ReplyFormat) {
    this.#receiver = new ReplyReceiver(
      {
        find: (high, low) =>
          high === 0 && !this.answered.includes(low) ? this.requests[low - 1] : undefined,
        answered: (request) => {
          this.answered.push(request.cookieLow);
        },
      },
      format,
    );
  }

  ask(
    type: number,
    offset: number,
    lengthBytes: number,
    more: { flags?: number; maxExtents?: number; contextIds?: readonly number[]; isFiltered?: boolean } = {},
  ): Request {
    const buffer = type === Command.Read ? Buffer.alloc(lengthBytes, 0xee) : null;
    const { flags = 0, maxExtents = 100, contextIds = [CONTEXT_ID], isFiltered = false } = more;
    const status =
      type === Command.BlockStatus ? new StatusQuery(lengthBytes, maxExtents, contextIds, isFiltered) : null;
    const headerBytes = status?.payload?.length ?? lengthBytes;
    const request = new Request(type, flags, offset, headerBytes, buffer, status);
    this.requests.push(request);
    request.cookieLow = this.requests.length;
    return request;
  }

  push(...parts: readonly Buffer[]): void {
    for (const part of parts) this.#receiver.push(part);
  }
}

export function cookie(low: number): { cookieHigh: number; cookieLow: number } {
  return { cookieHigh: 0, cookieLow: low };
}

/** What an extended reply repeats of its request. */
export function target(low: number, offset: number): ReplyTarget {
  return {
    ...cookie(low),
    extended: true,
    offsetHigh: Math.floor(offset / 2 ** 32),
    offsetLow: offset % 2 ** 32,
  };
}

/** Content that differs from byte to byte. */
export function bytes(lengthBytes: number, seed: number): Buffer {
  return Buffer.from(Array.from({ length: lengthBytes }, (_, i) => (i * 7 + seed) % 251));
}

/** Of an error chunk, right or wrong. */
export function errorPayload(errorNumber: number, messageLength: number, rest: string): Buffer {
  const payload = Buffer.alloc(6 + rest.length);
  payload.writeUInt32BE(errorNumber, 0);
  payload.writeUInt16BE(messageLength, 4);
  payload.write(rest, 6);
  return payload;
}
