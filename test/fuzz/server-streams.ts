/** What a server sends: a handshake, and the answers to some requests, right in every byte. */
import { ChunkFlag, ChunkType, Command, Option, OptionReplyType } from "../../src/nbd/wire/constants.js";
import { encodeGreeting } from "../../src/nbd/wire/handshake.js";
import { encodeInfoItem, encodeMetaContext, encodeOptionReply } from "../../src/nbd/wire/option-reply.js";
import type { ReplyTarget } from "../../src/nbd/wire/request.js";
import { SIMPLE_REPLY_HEADER_BYTES, writeSimpleReplyHeader } from "../../src/nbd/wire/simple-reply.js";
import {
  OFFSET_DATA_PREFIX_BYTES,
  chunkHeaderBytes,
  encodeBlockStatusChunk,
  encodeErrorChunk,
  encodeErrorOffsetChunk,
  encodeOffsetHoleChunk,
  writeChunkHeader,
  writeOffsetDataHeader,
} from "../../src/nbd/wire/structured-reply.js";
import type { Random } from "../tools/seed.js";

export type ReplyStyle = "simple" | "structured" | "extended";

export const CONTEXT_ID = 7;

export interface AnsweredRequest {
  readonly type: number;
  readonly offset: number;
  readonly lengthBytes: number;
  readonly cookieHigh: number;
  readonly cookieLow: number;
}

/** All that a client of ours waits for, up to the transmission phase. */
export function serverHandshake(style: ReplyStyle, sizeBytes: number): Buffer {
  const ack = (option: number): Buffer => encodeOptionReply(option, OptionReplyType.Ack, Buffer.alloc(0));
  const unsupported = (option: number): Buffer =>
    encodeOptionReply(option, OptionReplyType.ErrUnsup, Buffer.from("no"));
  const context = encodeMetaContext({ id: CONTEXT_ID, name: "base:allocation" });
  const item = encodeInfoItem({ kind: "export", sizeBytes, transmissionFlags: 0xfff & ~2 });
  const parts = [encodeGreeting(3)];
  if (style === "extended") parts.push(ack(Option.ExtendedHeaders));
  else {
    parts.push(unsupported(Option.ExtendedHeaders));
    parts.push(style === "simple" ? unsupported(Option.StructuredReply) : ack(Option.StructuredReply));
  }
  if (style !== "simple") {
    parts.push(encodeOptionReply(Option.SetMetaContext, OptionReplyType.MetaContext, context));
    parts.push(ack(Option.SetMetaContext));
  }
  parts.push(encodeOptionReply(Option.Go, OptionReplyType.Info, item), ack(Option.Go));
  return Buffer.concat(parts);
}

/** The answers in random order, those of chunks interleaved. */
export function serverReplies(
  style: ReplyStyle,
  requests: readonly AnsweredRequest[],
  random: Random,
): Buffer {
  const queues = requests.map((request) => answer(style, request, random));
  const stream: Buffer[] = [];
  for (let left = queues.filter((queue) => queue.length > 0); left.length > 0;) {
    const next = random.oneOf(left).shift();
    if (next !== undefined) stream.push(next);
    left = left.filter((queue) => queue.length > 0);
  }
  return Buffer.concat(stream);
}

function answer(style: ReplyStyle, request: AnsweredRequest, random: Random): Buffer[] {
  const { type, offset, lengthBytes } = request;
  const fails = random.below(6) === 0;
  if (style === "simple") {
    const reply = Buffer.alloc(SIMPLE_REPLY_HEADER_BYTES);
    writeSimpleReplyHeader(reply, 0, request, fails ? 5 : 0);
    return [type === Command.Read && !fails ? Buffer.concat([reply, random.bytes(lengthBytes)]) : reply];
  }
  const target: ReplyTarget =
    style === "structured"
      ? request
      : { ...request, extended: true, offsetHigh: Math.floor(offset / 2 ** 32), offsetLow: offset % 2 ** 32 };
  if (fails) {
    return [
      random.below(2) === 0 || lengthBytes === 0
        ? encodeErrorChunk(target, ChunkFlag.Done, 5, "broken")
        : encodeErrorOffsetChunk(target, ChunkFlag.Done, 28, "full", offset),
    ];
  }
  if (type === Command.Read) return content(target, offset, lengthBytes, random);
  if (type === Command.BlockStatus) {
    const half = Math.ceil(lengthBytes / 2);
    const descriptors = [half, lengthBytes].map((bytes, status) => ({ lengthBytes: bytes, status }));
    return [encodeBlockStatusChunk(target, ChunkFlag.Done, CONTEXT_ID, descriptors)];
  }
  return [done(target)];
}

function content(target: ReplyTarget, offset: number, lengthBytes: number, random: Random): Buffer[] {
  const chunks: Buffer[] = [];
  for (let at = 0; at < lengthBytes;) {
    const next = Math.min(lengthBytes, at + 1 + random.below(lengthBytes));
    if (random.below(3) === 0) chunks.push(encodeOffsetHoleChunk(target, 0, offset + at, next - at));
    else {
      const header = Buffer.alloc(chunkHeaderBytes(target) + OFFSET_DATA_PREFIX_BYTES);
      writeOffsetDataHeader(header, 0, target, 0, offset + at, next - at);
      chunks.push(Buffer.concat([header, random.bytes(next - at)]));
    }
    at = next;
  }
  return [...chunks, done(target)];
}

function done(target: ReplyTarget): Buffer {
  const bytes = Buffer.alloc(chunkHeaderBytes(target));
  writeChunkHeader(bytes, 0, target, ChunkFlag.Done, ChunkType.None, 0);
  return bytes;
}
