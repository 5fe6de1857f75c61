/**
 * An NBD server whose every byte is the test's choice, on a unix socket of its own or a TCP port.
 *
 *     const server = await ScriptedServer.start(async (peer) => {
 *       await peer.handshake({ sizeBytes: 4096 });
 *       const request = await peer.request();
 *       peer.send(simpleReply(request, 0));
 *     });
 *     ... connectNbd({ address: server.address, exportName: "" }) ...
 *     await server.stop();            // rejects with what the script threw
 */
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import type { Server, Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { Address } from "../../../src/net/address.js";
import {
  BASE_ALLOCATION,
  Command,
  CommandFlag,
  InfoType,
  Option,
  OptionReplyType,
  TransmissionFlag,
} from "../../../src/nbd/wire/constants.js";
import {
  CLIENT_FLAGS_BYTES,
  encodeExportNameReply,
  encodeGreeting,
} from "../../../src/nbd/wire/handshake.js";
import { OPTION_HEADER_BYTES, decodeInfoRequest, decodeOptionHeader } from "../../../src/nbd/wire/option.js";
import { encodeInfoItem, encodeMetaContext, encodeOptionReply } from "../../../src/nbd/wire/option-reply.js";
import {
  EXTENDED_REQUEST_HEADER_BYTES,
  REQUEST_HEADER_BYTES,
  readExtendedRequestHeader,
  readRequestHeader,
} from "../../../src/nbd/wire/request.js";
import type { Cookie, ReplyTarget, RequestHeader } from "../../../src/nbd/wire/request.js";
import { SIMPLE_REPLY_HEADER_BYTES, writeSimpleReplyHeader } from "../../../src/nbd/wire/simple-reply.js";
import {
  OFFSET_DATA_PREFIX_BYTES,
  chunkHeaderBytes,
  writeChunkHeader,
  writeOffsetDataHeader,
} from "../../../src/nbd/wire/structured-reply.js";

export const NO_DATA = Buffer.alloc(0);

/** A server with all that we use. */
export const ALL_FLAGS =
  TransmissionFlag.HasFlags |
  TransmissionFlag.SendFlush |
  TransmissionFlag.SendFua |
  TransmissionFlag.SendTrim |
  TransmissionFlag.SendWriteZeroes |
  TransmissionFlag.SendFastZero |
  TransmissionFlag.CanMultiConn;

/** What the server of a test grants in the handshake. */
export interface Grants {
  readonly sizeBytes?: number;
  readonly transmissionFlags?: number;
  readonly structuredReplies?: boolean;
  readonly extendedHeaders?: boolean;
  /** The number of base:allocation; without, the server has no contexts. */
  readonly contextId?: number;
  /** Further contexts, with their numbers. */
  readonly moreContexts?: readonly (readonly [name: string, id: number])[];
  readonly blockSize?: readonly [minimumBytes: number, preferredBytes: number, maximumBytes: number];
  /** Otherwise NBD_OPT_EXPORT_NAME is the only way. */
  readonly go?: boolean;
}

/** What the client said in the handshake. */
export interface ClientHandshake {
  readonly clientFlags: number;
  readonly options: readonly number[];
  readonly exportName: string;
  /** The client asked for the block size. */
  readonly blockSizeAsked: boolean;
}

/** The server's end of one connection. */
export class Peer {
  readonly socket: Socket;
  #extended = false;
  #unread: Buffer = Buffer.alloc(0);
  #ended = false;
  #wake: () => void = () => undefined;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (chunk) => {
      this.#unread = Buffer.concat([this.#unread, chunk]);
      this.#wake();
    });
    const end = (): void => {
      this.#ended = true;
      this.#wake();
    };
    socket.on("end", end).on("close", end).on("error", end);
  }

  send(...parts: readonly Buffer[]): void {
    this.socket.write(Buffer.concat(parts));
  }

  async read(lengthBytes: number): Promise<Buffer> {
    while (this.#unread.length < lengthBytes) {
      if (this.#ended) throw new Error(`the client hung up before ${lengthBytes} bytes were read`);
      await this.#more();
    }
    const bytes = this.#unread.subarray(0, lengthBytes);
    this.#unread = this.#unread.subarray(lengthBytes);
    return bytes;
  }

  /** Waits for the client to hang up, then does so too; returns what the client sent before. */
  async hangUp(): Promise<Buffer> {
    while (!this.#ended) {
      await this.#more();
    }
    this.socket.end();
    return this.#unread;
  }

  /** Waits for something to happen on the connection. */
  #more(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }

  /** The next option but NBD_OPT_EXTENDED_HEADERS, which is declined on the way. */
  async option(): Promise<{ option: number; data: Buffer }> {
    const next = await this.anyOption();
    if (next.option !== Option.ExtendedHeaders) return next;
    this.send(encodeOptionReply(Option.ExtendedHeaders, OptionReplyType.ErrUnsup, NO_DATA));
    return this.option();
  }

  async anyOption(): Promise<{ option: number; data: Buffer }> {
    const { option, lengthBytes } = decodeOptionHeader(await this.read(OPTION_HEADER_BYTES));
    return { option, data: await this.read(lengthBytes) };
  }

  /** The header, extended if that was granted, and the payload that comes with it. */
  async request(): Promise<RequestHeader & { payload: Buffer }> {
    const header = this.#extended
      ? readExtendedRequestHeader(await this.read(EXTENDED_REQUEST_HEADER_BYTES), 0)
      : readRequestHeader(await this.read(REQUEST_HEADER_BYTES), 0);
    const hasPayload = this.#extended
      ? (header.flags & CommandFlag.PayloadLen) !== 0
      : header.type === Command.Write;
    return { ...header, payload: hasPayload ? await this.read(header.lengthBytes) : NO_DATA };
  }

  /** null when the client has hung up. */
  async requestOrEnd(): Promise<(RequestHeader & { payload: Buffer }) | null> {
    while (this.#unread.length === 0) {
      if (this.#ended) return null;
      await this.#more();
    }
    return this.request();
  }

  async requests(count: number): Promise<(RequestHeader & { payload: Buffer })[]> {
    const requests = [];
    for (let i = 0; i < count; i++) requests.push(await this.request());
    return requests;
  }

  /** Greets as a fixed newstyle server without padding; returns the client's flags. */
  async greet(flags = 3): Promise<number> {
    this.send(encodeGreeting(flags));
    return (await this.read(CLIENT_FLAGS_BYTES)).readUInt32BE(0);
  }

  /** Answers the client's options up to the transmission phase. */
  async handshake(grants: Grants = {}): Promise<ClientHandshake> {
    const clientFlags = await this.greet();
    const geometry = {
      sizeBytes: grants.sizeBytes ?? 1024 * 1024,
      transmissionFlags: grants.transmissionFlags ?? ALL_FLAGS,
    };
    const options: number[] = [];
    for (;;) {
      const { option, data } = await this.anyOption();
      options.push(option);
      const reply = (type: number, payload: Buffer = NO_DATA): void => {
        this.send(encodeOptionReply(option, type, payload));
      };
      if (option === Option.ExportName) {
        this.send(encodeExportNameReply(geometry, true));
        return { clientFlags, options, exportName: data.toString(), blockSizeAsked: false };
      }
      if (option === Option.Go && grants.go !== false) {
        const { exportName, infoTypes } = decodeInfoRequest(data);
        reply(OptionReplyType.Info, encodeInfoItem({ kind: "export", ...geometry }));
        if (grants.blockSize !== undefined) {
          const [minimumBytes, preferredBytes, maximumBytes] = grants.blockSize;
          reply(
            OptionReplyType.Info,
            encodeInfoItem({ kind: "block-size", minimumBytes, preferredBytes, maximumBytes }),
          );
        }
        reply(OptionReplyType.Ack);
        return { clientFlags, options, exportName, blockSizeAsked: infoTypes.includes(InfoType.BlockSize) };
      }
      if (option === Option.StructuredReply && grants.structuredReplies === true) {
        reply(OptionReplyType.Ack);
      } else if (option === Option.ExtendedHeaders && grants.extendedHeaders === true) {
        this.#extended = true;
        reply(OptionReplyType.Ack);
      } else if (option === Option.SetMetaContext) {
        const base = grants.contextId === undefined ? [] : [[BASE_ALLOCATION, grants.contextId] as const];
        for (const [name, id] of [...base, ...(grants.moreContexts ?? [])]) {
          reply(OptionReplyType.MetaContext, encodeMetaContext({ id, name }));
        }
        reply(OptionReplyType.Ack);
      } else {
        reply(OptionReplyType.ErrUnsup);
      }
    }
  }
}

export class ScriptedServer {
  readonly address: Address;
  readonly #server: Server;
  readonly #directory: string;
  readonly #scripts: Promise<void>[] = [];
  readonly #sockets: Socket[] = [];

  private constructor(server: Server, directory: string, address: Address) {
    this.#server = server;
    this.#directory = directory;
    this.address = address;
  }

  /** Runs the script for each client. */
  static async start(
    script: (peer: Peer) => Promise<void>,
    kind: Address["kind"] = "unix",
  ): Promise<ScriptedServer> {
    const directory = await mkdtemp(join(tmpdir(), "nbd-scripted-"));
    const path = join(directory, "sock");
    const server = createServer({ allowHalfOpen: true });
    await new Promise<void>((resolve) => {
      if (kind === "unix") server.listen(path, resolve);
      else server.listen(0, "127.0.0.1", resolve);
    });
    const bound = server.address();
    const scripted = new ScriptedServer(
      server,
      directory,
      bound !== null && typeof bound === "object"
        ? { kind: "tcp", host: bound.address, port: bound.port }
        : { kind: "unix", path },
    );
    server.on("connection", (socket) => {
      scripted.#sockets.push(socket);
      const done = script(new Peer(socket));
      // Judged in stop().
      done.catch(() => undefined);
      scripted.#scripts.push(done);
    });
    return scripted;
  }

  /** Awaits the scripts, which end at the latest when their clients hang up; rejects with what one threw. */
  async stop(): Promise<void> {
    const results = await Promise.allSettled(this.#scripts);
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
    await rm(this.#directory, { recursive: true });
    for (const result of results) if (result.status === "rejected") throw result.reason;
  }
}

export function simpleReply(cookie: Cookie, errorNumber: number, content: Buffer = NO_DATA): Buffer {
  const header = Buffer.alloc(SIMPLE_REPLY_HEADER_BYTES);
  writeSimpleReplyHeader(header, 0, cookie, errorNumber);
  return Buffer.concat([header, content]);
}

/** A chunk of any type with any payload, right or wrong; extended for an extended request. */
export function chunk(cookie: ReplyTarget, flags: number, type: number, payload: Buffer = NO_DATA): Buffer {
  const header = Buffer.alloc(chunkHeaderBytes(cookie));
  writeChunkHeader(header, 0, cookie, flags, type, payload.length);
  return Buffer.concat([header, payload]);
}

export function offsetData(cookie: ReplyTarget, flags: number, offset: number, content: Buffer): Buffer {
  const header = Buffer.alloc(chunkHeaderBytes(cookie) + OFFSET_DATA_PREFIX_BYTES);
  writeOffsetDataHeader(header, 0, cookie, flags, offset, content.length);
  return Buffer.concat([header, content]);
}
