/**
 * The socket under an NBD connection: bytes in, bytes out, and one end.
 *
 * Invariants:
 * - Each user is told of the end, exactly once, and gets no bytes after that.
 * - Received bytes are in one buffer that is used again and again (half the CPU time of a fresh buffer for each
 *   read), so that a chunk is only valid during the call.
 * - What is written within one turn of the event loop leaves in one system call.
 */
import { connect } from "node:net";
import type { Socket } from "node:net";

import { LinkError } from "../../errors.js";
import { formatAddress, socketOptions } from "../../net/address.js";
import type { Address } from "../../net/address.js";

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

export class Transport {
  /** The server's address, for messages. */
  readonly peer: string;
  readonly #socket: Socket;
  /** Set in the turn of the event loop in which the transport is made; the socket's first event comes later. */
  #user: TransportUser | null = null;
  #connected = false;
  #corked = false;
  #goneReason: LinkError | null = null;

  /** Begins to connect; the user is told if that fails. */
  constructor(address: Address) {
    this.peer = formatAddress(address);
    const onread = {
      buffer: Buffer.allocUnsafe(RECEIVE_BUFFER_BYTES),
      callback: (bytes: number, buffer: Uint8Array): boolean => {
        if (this.#goneReason === null) this.#user?.received(asBuffer(buffer).subarray(0, bytes));
        return true;
      },
    };
    this.#socket = connect({ ...socketOptions(address), noDelay: true, onread });
    this.#socket
      .on("connect", () => {
        this.#connected = true;
      })
      .on("error", (error) => {
        this.drop(
          this.#connected
            ? new LinkError("link-lost", `the connection to ${this.peer} is lost: ${error.message}`, {
                cause: error,
              })
            : new LinkError("connect-failed", `can't connect to ${this.peer}: ${error.message}`, {
                cause: error,
              }),
        );
      })
      .on("end", () => {
        this.drop(new LinkError("link-lost", `${this.peer} closed the connection`));
      })
      .on("close", () => {
        this.drop(new LinkError("link-lost", `the connection to ${this.peer} is lost`));
      });
  }

  /** Whom to serve from now on. */
  serve(user: TransportUser): void {
    this.#user = user;
    if (this.#goneReason !== null) user.gone(this.#goneReason);
  }

  get bytesSent(): number {
    return this.#socket.bytesWritten;
  }

  get bytesReceived(): number {
    return this.#socket.bytesRead;
  }

  /** Sends `bytes`, which stay lent until `sent` is called; it isn't when the connection ends before. */
  write(bytes: Buffer, sent?: (error?: Error | null) => void): void {
    if (!this.#corked) {
      this.#corked = true;
      this.#socket.cork();
      process.nextTick(this.#uncork);
    }
    this.#socket.write(bytes, sent);
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
    this.#socket.end(lastBytes);
  }

  readonly #uncork = (): void => {
    this.#corked = false;
    this.#socket.uncork();
  };
}

/** @types/node says Uint8Array, but what comes back is the Buffer that was given. */
function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
