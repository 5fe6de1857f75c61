/**
 * An NBD client that does what it is told, right or wrong: for tests of what a server makes of it.
 *
 * Bytes are read on demand from one buffer of all that arrived; a read waits for its bytes and rejects when
 * the server closes first.
 */
import assert from "node:assert/strict";
import type { Socket } from "node:net";
import { connect } from "node:net";
import { connect as connectTls } from "node:tls";
import type { ConnectionOptions } from "node:tls";

import type { Address } from "../../src/net/address.js";
import { socketOptions } from "../../src/net/address.js";
import {
  CHUNK_ERROR_BIT,
  ChunkFlag,
  ClientFlag,
  Command,
  Option,
  OptionReplyType,
  OPTION_REPLY_ERROR_BIT,
  SIMPLE_REPLY_MAGIC,
} from "../../src/nbd/wire/constants.js";
import { GREETING_BYTES, encodeClientFlags } from "../../src/nbd/wire/handshake.js";
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption } from "../../src/nbd/wire/option.js";
import { OPTION_REPLY_HEADER_BYTES, decodeOptionReplyHeader } from "../../src/nbd/wire/option-reply.js";
import type { RequestHeader } from "../../src/nbd/wire/request.js";
import { REQUEST_HEADER_BYTES, writeRequestHeader } from "../../src/nbd/wire/request.js";
import { SIMPLE_REPLY_HEADER_BYTES, readSimpleReplyHeader } from "../../src/nbd/wire/simple-reply.js";
import type { ErrorChunk } from "../../src/nbd/wire/structured-reply.js";
import {
  CHUNK_HEADER_BYTES,
  decodeErrorChunk,
  readChunkHeader,
} from "../../src/nbd/wire/structured-reply.js";

export interface OptionReply {
  readonly type: number;
  readonly data: Buffer;
}

export interface Chunk {
  readonly type: number;
  readonly flags: number;
  readonly payload: Buffer;
}

/** One whole answer. */
export interface Reply {
  readonly cookie: number;
  /** 0 is success. */
  readonly errorNumber: number;
  /** Of the error chunk. */
  readonly message: string;
  /** At which the request failed, of an ERROR_OFFSET chunk. */
  readonly failedAt: number | null;
  /** Null for a simple reply. */
  readonly chunks: readonly Chunk[] | null;
}

/** What is left out is 0; `cookie` is the low word of the cookie. */
export type RequestFields = Partial<RequestHeader> & { readonly cookie?: number };

const EMPTY: Buffer = Buffer.alloc(0);
const DEFAULT_CLIENT_FLAGS = ClientFlag.FixedNewstyle | ClientFlag.NoZeroes;

export class RawNbdClient {
  readonly socket: Socket;
  #arrived: Buffer[] = [];
  #arrivedBytes = 0;
  #closed = false;
  #wake: (() => void) | null = null;

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (chunk: Buffer) => {
      this.#arrived.push(chunk);
      this.#arrivedBytes += chunk.length;
      this.#wake?.();
    });
    const onClosed = (): void => {
      this.#closed = true;
      this.#wake?.();
    };
    // A reset is one of the ways to be closed.
    socket.on("end", onClosed).on("close", onClosed).on("error", onClosed);
  }

  static connect(address: Address): Promise<RawNbdClient> {
    return new Promise((resolve, reject) => {
      const socket = connect({ ...socketOptions(address), allowHalfOpen: true });
      socket.once("error", reject);
      socket.once("connect", () => {
        socket.off("error", reject);
        resolve(new RawNbdClient(socket));
      });
    });
  }

  /** Connected, greeted, and with these client flags sent. */
  static async negotiating(address: Address, clientFlags = DEFAULT_CLIENT_FLAGS): Promise<RawNbdClient> {
    const client = await RawNbdClient.connect(address);
    await client.read(GREETING_BYTES);
    client.send(encodeClientFlags(clientFlags));
    return client;
  }

  /** Sends NBD_OPT_STARTTLS, shakes hands if it is granted, and goes on over TLS. @throws what node:tls says */
  async startTls(options: ConnectionOptions): Promise<RawNbdClient> {
    const [reply] = await this.option(Option.StartTls);
    assert.equal(reply?.type, OptionReplyType.Ack, "NBD_OPT_STARTTLS was refused");
    return this.shakeTlsHands(options);
  }

  async shakeTlsHands(options: ConnectionOptions): Promise<RawNbdClient> {
    this.socket.removeAllListeners("data");
    const socket = connectTls({ socket: this.socket, ...options });
    await new Promise((resolve, reject) => {
      socket.once("secureConnect", resolve).once("error", reject);
      socket.once("close", () => {
        reject(new Error("closed in the TLS handshake"));
      });
    });
    return new RawNbdClient(socket);
  }

  /** In transmission on this export, with structured replies and `contexts` when asked for. */
  static async transmitting(
    address: Address,
    exportName: string,
    options: { readonly structured?: boolean; readonly contexts?: readonly string[] } = {},
  ): Promise<RawNbdClient> {
    const client = await RawNbdClient.negotiating(address);
    if (options.structured === true) await client.option(Option.StructuredReply);
    if (options.contexts !== undefined) {
      const request = encodeMetaContextRequest({ exportName, queries: options.contexts });
      await client.option(Option.SetMetaContext, request);
    }
    const replies = await client.option(Option.Go, encodeInfoRequest({ exportName, infoTypes: [] }));
    assert.equal(replies.at(-1)?.type, OptionReplyType.Ack, "NBD_OPT_GO was refused");
    return client;
  }

  send(...bytes: Buffer[]): void {
    for (const part of bytes) this.socket.write(part);
  }

  /** The next bytes of the stream. */
  async read(lengthBytes: number): Promise<Buffer> {
    while (this.#arrivedBytes < lengthBytes) {
      if (this.#closed) throw new Error(`closed after ${this.#arrivedBytes} of ${lengthBytes} bytes`);
      await this.#somethingHappened();
    }
    const all = this.#arrived.length === 1 ? (this.#arrived[0] ?? EMPTY) : Buffer.concat(this.#arrived);
    this.#arrived = [all.subarray(lengthBytes)];
    this.#arrivedBytes -= lengthBytes;
    return all.subarray(0, lengthBytes);
  }

  /** Everything up to the moment the server closes. */
  async readToEnd(): Promise<Buffer> {
    while (!this.#closed) await this.#somethingHappened();
    return this.read(this.#arrivedBytes);
  }

  /** Sends an option and reads its replies up to the final one. */
  async option(option: number, data: Buffer = EMPTY): Promise<OptionReply[]> {
    this.send(encodeOption(option, data));
    return this.optionReplies(option);
  }

  async optionReplies(option: number): Promise<OptionReply[]> {
    const replies: OptionReply[] = [];
    for (;;) {
      const header = decodeOptionReplyHeader(await this.read(OPTION_REPLY_HEADER_BYTES));
      assert.equal(header.option, option, "reply to another option");
      replies.push({ type: header.type, data: await this.read(header.lengthBytes) });
      if (header.type === OptionReplyType.Ack || header.type >= OPTION_REPLY_ERROR_BIT) return replies;
    }
  }

  /** Sends a request; the cookie is its low word. */
  request(
    type: number,
    fields: Partial<RequestHeader> & { readonly cookie?: number } = {},
    payload = EMPTY,
  ): void {
    this.send(requestBytes(type, fields), payload);
  }

  /** Sends a request and reads the next reply. */
  ask(type: number, fields: RequestFields = {}, payload = EMPTY): Promise<Reply> {
    const lengthBytes = fields.lengthBytes ?? payload.length;
    this.request(type, { ...fields, lengthBytes }, payload);
    return this.reply(type === Command.Read ? lengthBytes : 0);
  }

  /** Reads a reply; `dataBytes` follow a simple one that is no error. */
  async reply(dataBytes = 0): Promise<Reply> {
    const chunks: Chunk[] = [];
    let error: ErrorChunk | null = null;
    for (;;) {
      const start = await this.read(4);
      if (start.readUInt32BE(0) === SIMPLE_REPLY_MAGIC) {
        const rest = await this.read(SIMPLE_REPLY_HEADER_BYTES - 4);
        const { cookieLow, errorNumber } = readSimpleReplyHeader(Buffer.concat([start, rest]), 0);
        const data = errorNumber === 0 && dataBytes > 0 ? [await this.read(dataBytes)] : [];
        const asChunks = data.map((payload) => ({ type: -1, flags: 0, payload }));
        const chunksOrNull = dataBytes > 0 ? asChunks : null;
        return { cookie: cookieLow, errorNumber, message: "", failedAt: null, chunks: chunksOrNull };
      }
      const rest = await this.read(CHUNK_HEADER_BYTES - 4);
      const { type, flags, lengthBytes, cookieLow } = readChunkHeader(Buffer.concat([start, rest]), 0);
      const payload = await this.read(lengthBytes);
      chunks.push({ type, flags, payload });
      if ((type & CHUNK_ERROR_BIT) !== 0) error = decodeErrorChunk(type, payload);
      if ((flags & ChunkFlag.Done) !== 0) {
        return {
          cookie: cookieLow,
          errorNumber: error?.errorNumber ?? 0,
          message: error?.message ?? "",
          failedAt: error?.offset ?? null,
          chunks,
        };
      }
    }
  }

  disconnect(): void {
    this.request(Command.Disconnect);
  }

  destroy(): void {
    this.socket.destroy();
  }

  #somethingHappened(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}

/** The bytes of a request header. */
export function requestBytes(type: number, fields: RequestFields = {}): Buffer {
  const bytes = Buffer.alloc(REQUEST_HEADER_BYTES);
  const { cookie = 0, ...rest } = fields;
  const defaults = { flags: 0, offset: 0, lengthBytes: 0, cookieHigh: 0, cookieLow: cookie };
  writeRequestHeader(bytes, 0, { ...defaults, ...rest, type });
  return bytes;
}
