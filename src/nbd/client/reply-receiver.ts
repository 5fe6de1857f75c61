/**
 * The client's parser of the transmission phase: bytes are pushed in as they arrive, answered requests come out.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#transmission
 * The content of a READ goes from the chunk straight into the caller's buffer. All else that a reply may carry
 * (offsets, extents, messages) is collected up to a bound, then applied.
 *
 * Invariants:
 * - Between two messages #request is null, and the scratch buffer holds at most a header that is cut.
 * - A byte is written to a caller's buffer only while its request is unanswered, and inside of it.
 * - After a ProtocolError the receiver is not used again.
 */
import { ProtocolError } from "../../errors.js";
import {
  CHUNK_ERROR_BIT,
  ChunkFlag,
  ChunkType,
  Command,
  EXTENDED_REPLY_MAGIC,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from "../wire/constants.js";
import { SIMPLE_REPLY_HEADER_BYTES, readSimpleReplyHeader } from "../wire/simple-reply.js";
import {
  CHUNK_HEADER_BYTES,
  EXTENDED_CHUNK_HEADER_BYTES,
  readChunkHeader,
  readExtendedChunkHeader,
  readOffsetDataPrefix,
} from "../wire/structured-reply.js";
import type { ChunkHeader } from "../wire/structured-reply.js";
import { applyBlockStatus, applyError, applyHole, bytesToCollect } from "./reply-chunk.js";
import type { Request } from "./request.js";

const MAGIC_BYTES = 4;
/** Holds each header and each payload of fixed size. */
const SCRATCH_BYTES = 32;

/** The requests that the server may answer. */
export interface RequestTable {
  /** undefined: no request in flight has this cookie. */
  find(cookieHigh: number, cookieLow: number): Request | undefined;
  /** The reply to a request that find() returned is complete. */
  answered(request: Request): void;
}

/** What the handshake agreed on. */
export interface ReplyFormat {
  /** Also where extended headers are. */
  readonly structuredReplies: boolean;
  readonly extendedHeaders: boolean;
  /** The selected metadata contexts, with the server's numbers for them. */
  readonly contexts: ReadonlyMap<string, number>;
}

export class ReplyReceiver {
  readonly #requests: RequestTable;
  readonly #format: ReplyFormat;
  readonly #scratch = Buffer.alloc(SCRATCH_BYTES);
  #expected: "header" | "payload" | "content" = "header";
  /** The request that the message at hand answers. */
  #request: Request | null = null;
  #chunkType = 0;
  #chunkBytes = 0;
  #isLast = true;
  /** Where a cut header or a payload is collected. */
  #collected = this.#scratch;
  #collectedBytes = 0;
  #payloadBytes = 0;
  /** The part of the request's buffer that is still to be filled from the message at hand. */
  #contentAt = 0;
  #contentEnd = 0;

  constructor(requests: RequestTable, format: ReplyFormat) {
    this.#requests = requests;
    this.#format = format;
  }

  /**
   * `chunk` is valid during the call only.
   * @throws ProtocolError for replies that make no sense
   */
  push(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      switch (this.#expected) {
        case "header":
          at = this.#takeHeader(chunk, at);
          break;
        case "payload":
          at = this.#takePayload(chunk, at);
          break;
        case "content":
          at = this.#takeContent(chunk, at);
          break;
      }
    }
  }

  #takeHeader(chunk: Buffer, at: number): number {
    if (this.#collectedBytes === 0 && chunk.length - at >= MAGIC_BYTES) {
      const headerBytes = headerBytesOf(chunk.readUInt32BE(at));
      if (chunk.length - at >= headerBytes) {
        this.#begin(chunk, at, headerBytes);
        return at + headerBytes;
      }
    }
    // The header is cut: put it together, the magic first because it tells the rest's length.
    const wantedBytes =
      this.#collectedBytes < MAGIC_BYTES ? MAGIC_BYTES : headerBytesOf(this.#scratch.readUInt32BE(0));
    const count = chunk.copy(
      this.#scratch,
      this.#collectedBytes,
      at,
      at + wantedBytes - this.#collectedBytes,
    );
    this.#collectedBytes += count;
    // A wrong magic is told as soon as it is there, not with the byte behind it.
    if (this.#collectedBytes === MAGIC_BYTES) headerBytesOf(this.#scratch.readUInt32BE(0));
    else if (this.#collectedBytes === wantedBytes) {
      this.#collectedBytes = 0;
      this.#begin(this.#scratch, 0, wantedBytes);
    }
    return at + count;
  }

  #begin(from: Buffer, at: number, headerBytes: number): void {
    if (headerBytes === SIMPLE_REPLY_HEADER_BYTES) this.#beginSimpleReply(from, at);
    else if (headerBytes === CHUNK_HEADER_BYTES) this.#beginStructured(from, at);
    else this.#beginExtended(from, at);
  }

  #beginSimpleReply(from: Buffer, at: number): void {
    const header = readSimpleReplyHeader(from, at);
    const request = this.#find(header.cookieHigh, header.cookieLow);
    this.#isLast = true;
    if (this.#format.extendedHeaders) {
      throw new ProtocolError("simple-reply", `a simple reply answers the extended ${request.describe()}`);
    }
    if (header.errorNumber !== 0) {
      request.fail(header.errorNumber, "");
      this.#finishMessage(request);
    } else if (this.#format.structuredReplies && answerHasContent(request)) {
      throw new ProtocolError("simple-reply", `a simple reply can't answer ${request.describe()}`);
    } else if (request.type === Command.Read) {
      this.#beginContent(request, request.offset, request.lengthBytes);
    } else {
      this.#finishMessage(request);
    }
  }

  #beginStructured(from: Buffer, at: number): void {
    if (!this.#format.structuredReplies || this.#format.extendedHeaders) {
      throw new ProtocolError("structured-reply", "the server sends structured replies unasked");
    }
    const header = readChunkHeader(from, at);
    this.#beginChunk(header, this.#find(header.cookieHigh, header.cookieLow));
  }

  #beginExtended(from: Buffer, at: number): void {
    if (!this.#format.extendedHeaders) {
      throw new ProtocolError("extended-reply", "the server sends extended replies unasked");
    }
    const header = readExtendedChunkHeader(from, at);
    const request = this.#find(header.cookieHigh, header.cookieLow);
    if (header.offset !== request.offset) {
      throw new ProtocolError(
        "wrong-offset",
        `a reply to offset ${header.offset} has the cookie of a ${request.describe()}`,
      );
    }
    this.#beginChunk(header, request);
  }

  #beginChunk(header: ChunkHeader, request: Request): void {
    this.#request = request;
    this.#isLast = (header.flags & ChunkFlag.Done) !== 0;
    this.#chunkType = header.type;
    this.#chunkBytes = header.lengthBytes;
    this.#payloadBytes = bytesToCollect(header, request, this.#format.extendedHeaders);
    if (this.#payloadBytes === 0) {
      this.#applyPayload(request, this.#scratch.subarray(0, 0));
      return;
    }
    this.#collected =
      this.#payloadBytes <= SCRATCH_BYTES ? this.#scratch : Buffer.allocUnsafe(this.#payloadBytes);
    this.#expected = "payload";
  }

  #takePayload(chunk: Buffer, at: number): number {
    const count = chunk.copy(
      this.#collected,
      this.#collectedBytes,
      at,
      at + this.#payloadBytes - this.#collectedBytes,
    );
    this.#collectedBytes += count;
    if (this.#collectedBytes === this.#payloadBytes && this.#request !== null) {
      const payload = this.#collected.subarray(0, this.#payloadBytes);
      this.#collected = this.#scratch;
      this.#collectedBytes = 0;
      this.#applyPayload(this.#request, payload);
    }
    return at + count;
  }

  #applyPayload(request: Request, payload: Buffer): void {
    if (this.#chunkType === ChunkType.OffsetData) {
      const { offset, dataBytes } = readOffsetDataPrefix(payload, 0, this.#chunkBytes);
      request.cover(offset, dataBytes);
      this.#beginContent(request, offset, dataBytes);
      return;
    }
    if (this.#chunkType === ChunkType.OffsetHole) applyHole(request, payload);
    else if (this.#chunkType === ChunkType.BlockStatus || this.#chunkType === ChunkType.BlockStatusExt)
      applyBlockStatus(request, this.#chunkType, payload, this.#format.contexts);
    else if ((this.#chunkType & CHUNK_ERROR_BIT) !== 0) applyError(request, this.#chunkType, payload);
    this.#finishMessage(request);
  }

  #beginContent(request: Request, offset: number, lengthBytes: number): void {
    this.#request = request;
    this.#contentAt = offset - request.offset;
    this.#contentEnd = this.#contentAt + lengthBytes;
    this.#expected = "content";
  }

  #takeContent(chunk: Buffer, at: number): number {
    const count = Math.min(chunk.length - at, this.#contentEnd - this.#contentAt);
    if (this.#request !== null) {
      if (this.#request.buffer !== null) chunk.copy(this.#request.buffer, this.#contentAt, at, at + count);
      this.#contentAt += count;
      if (this.#contentAt === this.#contentEnd) this.#finishMessage(this.#request);
    }
    return at + count;
  }

  #finishMessage(request: Request): void {
    this.#expected = "header";
    this.#request = null;
    if (!this.#isLast) return;
    if (this.#format.structuredReplies && request.error === null && !isComplete(request)) {
      throw new ProtocolError(
        "incomplete-reply",
        `the reply to ${request.describe()} lacks a part of the answer`,
      );
    }
    this.#requests.answered(request);
  }

  #find(cookieHigh: number, cookieLow: number): Request {
    const request = this.#requests.find(cookieHigh, cookieLow);
    if (request === undefined) {
      throw new ProtocolError("unknown-cookie", "the server answers a request that is not in flight");
    }
    return request;
  }
}

/** @throws ProtocolError bad-reply-magic */
function headerBytesOf(magic: number): number {
  if (magic === SIMPLE_REPLY_MAGIC) return SIMPLE_REPLY_HEADER_BYTES;
  if (magic === STRUCTURED_REPLY_MAGIC) return CHUNK_HEADER_BYTES;
  if (magic === EXTENDED_REPLY_MAGIC) return EXTENDED_CHUNK_HEADER_BYTES;
  throw new ProtocolError("bad-reply-magic", `the server starts a reply with 0x${magic.toString(16)}`);
}

/** An error apart, such a request is answered by chunks if they are agreed on. */
function answerHasContent(request: Request): boolean {
  return request.type === Command.Read || request.type === Command.BlockStatus;
}

function isComplete(request: Request): boolean {
  if (request.type === Command.Read) return request.coverage?.complete === true;
  if (request.type === Command.BlockStatus) return request.status?.isAnswered === true;
  return true;
}
