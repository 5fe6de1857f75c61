/**
 * The socket under an NBD connection: bytes in, bytes out, and one end.
 *
 * Invariants:
 * - Each user is told of the end, exactly once, and gets no bytes after that.
 * - Received bytes are in one buffer that is used again and again (half the CPU time of a fresh buffer for each read), so
 *   that a chunk is only valid during the call.
 * - What is written within one turn of the event loop leaves in one system call.
 */
import { connect } from "node:net";
import type { Socket } from "node:net";
import { TLSSocket, connect as connectTls } from "node:tls";
import type { ConnectionOptions } from "node:tls";

import { LinkError, NegotiationError } from "../../errors.js";
import { formatAddress, socketOptions } from "../../net/address.js";
import { writeGathered } from "../../net/gather.js";
import type { Address } from "../../net/address.js";
import { KEEPALIVE } from "../../net/keepalive.js";
import { type Reader, readInto } from "../../net/read-into.js";
import { tlsReason } from "../../net/tls/reason.js";
import { writePiecesApart } from "../../net/tls/session.js";

/** As much as the kernel hands over in one read; 256 KiB measured no better. */
const RECEIVE_BUFFER_BYTES = 64 * 1024;

/** How long end() waits for the server to close its side. */
const END_TIMEOUT_MS = 2000;

/** Who is served by a transport; first the handshake, then the connection. */
export interface TransportUser {
  /** `chunk` is valid during the call only. */
  received(chunk: Buffer): void;
  /** Nothing more can be sent or received. */
  gone(reason: LinkError): void;
}

export class Transport implements Reader {
  /** The server's address, for messages. */
  readonly peer: string;
  /** The TLS session once it is begun. */
  #socket: Socket;
  /** Set in the turn of the event loop in which the transport is made; the socket's first event comes later. */
  #user: TransportUser | null = null;
  #connected = false;
  /** To be sent at the end of this turn of the event loop, and who is to be told then. */
  #pieces: Buffer[] = [];
  #onSent: (() => void)[] = [];
  #goneReason: LinkError | null = null;

  readonly #buffer = Buffer.allocUnsafe(RECEIVE_BUFFER_BYTES);

  /** Begins to connect; the user is told if that fails. @throws ConfigError bad-address */
  constructor(address: Address) {
    const place = socketOptions(address);
    this.peer = formatAddress(address);
    const onread = { buffer: this.#buffer, callback: (lengthBytes: number) => this.received(lengthBytes) };
    this.#socket = connect({ ...place, noDelay: true, ...KEEPALIVE, onread });
    this.#watch(this.#socket);
    this.#socket.on("connect", () => {
      this.#connected = true;
    });
  }

  /** Whom to serve from now on. */
  serve(user: TransportUser): void {
    this.#user = user;
    if (this.#goneReason !== null) user.gone(this.#goneReason);
  }

  /**
   * Shakes TLS hands and goes on over that; nothing may be written meanwhile.
   * @throws NegotiationError "tls-failed" with the reason, or why the transport ended
   */
  async startTls(options: ConnectionOptions): Promise<void> {
    const plain = this.#socket.pause();
    const secured = connectTls({ ...options, socket: plain });
    this.#socket = secured;
    await new Promise<void>((resolve, reject) => {
      secured
        .once("secureConnect", resolve)
        .once("error", (error) => {
          const message = `no TLS session: ${tlsReason(error)}`;
          reject(new NegotiationError("tls-failed", message, { cause: error }));
        })
        .once("close", () => {
          reject(this.#goneReason ?? new LinkError("link-lost", `the connection to ${this.peer} is lost`));
        });
    });
    this.#watch(secured);
    readInto(secured, this);
    writePiecesApart(secured);
    secured.on("data", (chunk: Buffer) => {
      this.#receive(chunk);
    });
  }

  /** As Reader. */
  target(): Buffer {
    return this.#buffer;
  }

  /** As Reader. */
  received(lengthBytes: number): boolean {
    this.#receive(this.#buffer.subarray(0, lengthBytes));
    return true;
  }

  get bytesSent(): number {
    return this.#socket.bytesWritten;
  }

  get bytesReceived(): number {
    return this.#socket.bytesRead;
  }

  /** Sends `bytes`, which stay lent until `sent` is called; it isn't when the connection ends before. */
  write(bytes: Buffer, sent?: () => void): void {
    if (this.#pieces.length === 0) process.nextTick(this.#flush);
    this.#pieces.push(bytes);
    if (sent !== undefined) this.#onSent.push(sent);
  }

  /** Ends the connection at once; the user is told `reason` before this returns. */
  drop(reason: LinkError): void {
    if (this.#goneReason !== null) return;
    this.#goneReason = reason;
    this.#socket.destroy();
    this.#user?.gone(reason);
  }

  /** Sends the last bytes, then waits for the server to close the connection; not for long. */
  end(lastBytes: Buffer): void {
    if (this.#goneReason !== null) return;
    const timer = setTimeout(() => {
      this.drop(
        new LinkError("link-lost", `${this.peer} did not close the connection in ${END_TIMEOUT_MS} ms`),
      );
    }, END_TIMEOUT_MS);
    this.#socket.once("close", () => {
      clearTimeout(timer);
    });
    this.#flush();
    this.#socket.end(lastBytes);
  }

  /** Whatever ends the socket that is in use ends the transport. */
  #watch(socket: Socket): void {
    socket
      .on("error", (error) => {
        if (socket === this.#socket) this.drop(this.#failure(error));
      })
      .on("end", () => {
        if (socket === this.#socket)
          this.drop(new LinkError("link-lost", `${this.peer} closed the connection`));
      })
      .on("close", () => {
        if (socket === this.#socket)
          this.drop(new LinkError("link-lost", `the connection to ${this.peer} is lost`));
      });
  }

  #receive(chunk: Buffer): void {
    if (this.#goneReason === null) this.#user?.received(chunk);
  }

  #failure(cause: Error): LinkError {
    const reason = this.#socket instanceof TLSSocket ? tlsReason(cause) : cause.message;
    return this.#connected
      ? new LinkError("link-lost", `the connection to ${this.peer} is lost: ${reason}`, { cause })
      : new LinkError("connect-failed", `can't connect to ${this.peer}: ${reason}`, { cause });
  }

  readonly #flush = (): void => {
    const pieces = this.#pieces;
    if (pieces.length === 0) return;
    const onSent = this.#onSent;
    this.#pieces = [];
    this.#onSent = [];
    writeGathered(this.#socket, pieces, (error) => {
      if (error === null || error === undefined) for (const sent of onSent) sent();
    });
  };
}
