/** The parsers without a socket: only ProtocolError may be thrown, and what is made of a stream doesn't depend on its cuts. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";

import { ProtocolError } from "../../src/errors.js";
import { ReplyReceiver } from "../../src/nbd/client/reply-receiver.js";
import { Request } from "../../src/nbd/client/request.js";
import { StatusQuery } from "../../src/nbd/client/status-query.js";
import { RequestReceiver } from "../../src/nbd/receiver.js";
import { Command, Option } from "../../src/nbd/wire/constants.js";
import {
  decodeInfoRequest,
  decodeMetaContextRequest,
  encodeInfoRequest,
  encodeMetaContextRequest,
} from "../../src/nbd/wire/option.js";
import {
  decodeInfoItem,
  decodeMetaContext,
  decodeOptionReplyHeader,
  decodeServerEntry,
  encodeServerEntry,
} from "../../src/nbd/wire/option-reply.js";
import {
  decodeBlockStatus,
  decodeErrorChunk,
  decodeExtendedBlockStatus,
} from "../../src/nbd/wire/structured-reply.js";
import type { Random } from "../tools/seed.js";
import { clientSession } from "./client-streams.js";
import { mutate, pieces } from "./mutate.js";
import { CONTEXT_ID, serverHandshake, serverReplies } from "./server-streams.js";
import type { AnsweredRequest, ReplyStyle } from "./server-streams.js";

const SHAPE = { exportName: "disk0", sizeBytes: 1 << 20, longestBytes: 5000 };
/** What a sink keeps; the receiver must not allocate more for a body. */
const KEPT_BYTES = 64 * 1024;
/** Around a caller's buffer. */
const GUARD_BYTES = 64;
const GUARD = 0xa5;

function digest(bytes: Buffer): string {
  return createHash("sha1").update(bytes).digest("hex");
}

/** One of the streams in eight is noise. */
function damaged(stream: Buffer, random: Random): Buffer {
  return random.below(8) === 0 ? random.bytes(random.below(400)) : mutate(stream, random);
}

export function serverParser(random: Random): void {
  const stream = damaged(clientSession(SHAPE, random), random);
  const extended = random.below(2) === 0;
  const whole = requestsIn([stream], extended, () => true);
  const cut = requestsIn(pieces(stream, random), extended, () => random.below(3) > 0);
  assert.deepEqual(cut, whole, `the stream ${stream.toString("hex")} reads differently when it is cut`);
}

/** What a server would see of the stream, and how it ends. */
function requestsIn(parts: readonly Buffer[], extended: boolean, isReady: () => boolean): string[] {
  const events: string[] = [];
  const body = (bytes: Buffer | null): string => {
    if (bytes === null) return "swallowed";
    assert(bytes.length <= KEPT_BYTES, "a body is kept that the sink did not want");
    return `${bytes.length} ${digest(bytes)}`;
  };
  const receiver: RequestReceiver = new RequestReceiver({
    ready: isReady,
    clientFlags: (flags) => events.push(`flags ${flags}`),
    optionHeader: ({ lengthBytes }) => lengthBytes <= KEPT_BYTES,
    option: (option, data) => {
      events.push(`option ${option.option} ${option.lengthBytes} ${body(data)}`);
      if (option.option !== Option.Go) return;
      receiver.enterTransmission(
        {
          ready: isReady,
          readyForPayload: isReady,
          requestHeader: ({ lengthBytes }) => lengthBytes <= KEPT_BYTES,
          payloadBuffer: (lengthBytes) => Buffer.alloc(lengthBytes),
          request: (request, payload) => events.push(`${JSON.stringify(request)} ${body(payload)}`),
        },
        extended,
      );
    },
  });
  const end = outcomeOf(() => {
    for (const part of parts) {
      let isDone = receiver.push(part);
      while (!isDone) isDone = receiver.resume();
    }
  });
  return [...events, end];
}

const STYLES: readonly ReplyStyle[] = ["simple", "structured", "extended"];

export function clientParser(random: Random): void {
  const style = random.oneOf(STYLES);
  const asked = Array.from({ length: 1 + random.below(6) }, (_, index) => someRequest(index, random));
  const stream = damaged(serverReplies(style, asked, random), random);
  const whole = repliesIn(style, asked, [stream]);
  const cut = repliesIn(style, asked, pieces(stream, random));
  assert.deepEqual(
    cut,
    whole,
    `the ${style} stream ${stream.toString("hex")} reads differently when it is cut`,
  );
}

export function someRequest(index: number, random: Random): AnsweredRequest {
  const type = random.oneOf([Command.Read, Command.Write, Command.Flush, Command.BlockStatus, Command.Trim]);
  const lengthBytes = type === Command.Flush ? 0 : 1 + random.below(3000);
  // A client's first cookies.
  return {
    type,
    offset: lengthBytes * random.below(100),
    lengthBytes,
    cookieHigh: index + 1,
    cookieLow: index,
  };
}

/** What a client would see of the stream: answers, contents, and how it ends. */
function repliesIn(style: ReplyStyle, asked: readonly AnsweredRequest[], parts: readonly Buffer[]): unknown {
  const guarded = asked.map(({ lengthBytes }) => Buffer.alloc(lengthBytes + 2 * GUARD_BYTES, GUARD));
  const requests = asked.map((each, index) => {
    const buffer = guarded[index]?.subarray(GUARD_BYTES, GUARD_BYTES + each.lengthBytes) ?? null;
    const request = new Request(
      each.type,
      0,
      each.offset,
      each.lengthBytes,
      each.type === Command.Read ? buffer : null,
      each.type === Command.BlockStatus ? new StatusQuery(each.lengthBytes, 10, [CONTEXT_ID], false) : null,
    );
    request.cookieHigh = each.cookieHigh;
    request.cookieLow = each.cookieLow;
    return request;
  });
  const answered: number[] = [];
  const receiver = new ReplyReceiver(
    {
      find: (high, low) => {
        const found = requests[low];
        return found?.cookieHigh === high && !answered.includes(low) ? found : undefined;
      },
      answered: (request) => answered.push(request.cookieLow),
    },
    {
      structuredReplies: style !== "simple",
      extendedHeaders: style === "extended",
      contexts: new Map(style === "simple" ? [] : [["base:allocation", CONTEXT_ID]]),
    },
  );
  const end = outcomeOf(() => {
    for (const part of parts) receiver.push(part);
  });
  for (const buffer of guarded) {
    const guards = Buffer.concat([buffer.subarray(0, GUARD_BYTES), buffer.subarray(-GUARD_BYTES)]);
    assert(
      guards.every((byte) => byte === GUARD),
      "a byte was written outside of the caller's buffer",
    );
  }
  const results = requests.map(({ error, status }) => [error?.errno, status?.answers.get(CONTEXT_ID)]);
  return { end, answered, results, contents: guarded.map(digest) };
}

const DECODERS: readonly ((bytes: Buffer, random: Random) => unknown)[] = [
  (bytes) => {
    canonical(bytes, decodeInfoRequest, encodeInfoRequest);
  },
  (bytes) => {
    canonical(bytes, decodeMetaContextRequest, encodeMetaContextRequest);
  },
  (bytes) => {
    canonical(bytes, decodeServerEntry, encodeServerEntry);
  },
  decodeInfoItem,
  decodeMetaContext,
  (bytes) => (bytes.length < 20 ? null : decodeOptionReplyHeader(bytes)),
  (bytes) => (bytes.length < 4 ? null : decodeBlockStatus(bytes)),
  (bytes) => (bytes.length < 8 ? null : decodeExtendedBlockStatus(bytes)),
  (bytes, random) => decodeErrorChunk(random.oneOf([0x8001, 0x8002, 0x8fff]), bytes),
];

export function decoders(random: Random): void {
  const context = { exportName: "disk0", queries: ["base:allocation", "\u20ac:"] };
  const seeds = [
    encodeInfoRequest({ exportName: "d\u00efsk", infoTypes: [0, 3, 9] }),
    encodeMetaContextRequest(context),
    encodeServerEntry({ exportName: "disk0", description: "first" }),
    serverHandshake("structured", 4096),
    Buffer.from("00000005000361626300000000000010", "hex"),
    Buffer.from("0000000700000001000000000000010000000000000000030000", "hex"),
  ];
  const bytes = damaged(random.oneOf(seeds), random);
  const decode = random.oneOf(DECODERS);
  outcomeOf(() => decode(bytes, random));
}

/** What can be read is what would have been written. */
function canonical<T>(bytes: Buffer, decode: (bytes: Buffer) => T, encode: (value: T) => Buffer): void {
  const encoded = encode(decode(bytes));
  assert(encoded.equals(bytes), `${bytes.toString("hex")} is read as ${encoded.toString("hex")}`);
}

/** "end", or the code of the ProtocolError; nothing else may be thrown. */
function outcomeOf(run: () => unknown): string {
  try {
    run();
    return "end";
  } catch (error) {
    if (error instanceof ProtocolError) return error.code;
    throw error;
  }
}
