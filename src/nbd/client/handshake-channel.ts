/**
 * What the handshake needs of a transport: write, and read an exact number of bytes.
 *
 * Invariants:
 * - At most one read is waiting, and only while too few bytes are unread.
 * - Bytes that nobody has asked for yet are bounded; a server that sends more is not negotiating.
 */
import assert from "node:assert";
import type { ConnectionOptions } from "node:tls";

import { LinkError, ProtocolError } from "../../errors.js";
import type { Transport, TransportUser } from "./transport.js";

/** The longest option reply that is read: the name and description of an export, and room to spare. */
export const OPTION_REPLY_MAXIMUM_BYTES = 64 * 1024;

/** A reply that isn't complete yet, and a receive buffer on top of it. */
const UNREAD_MAXIMUM_BYTES = 2 * OPTION_REPLY_MAXIMUM_BYTES + 1024;

interface WaitingRead {
  readonly lengthBytes: number;
  readonly resolve: (bytes: Buffer) => void;
  readonly reject: (error: Error) => void;
}

export class HandshakeChannel implements TransportUser {
  /** TLS has to come before anything else that is asked for. */
  readonly needsTls: boolean;
  readonly #transport: Transport;
  readonly #tls: ConnectionOptions | null;
  #unread: Buffer = Buffer.alloc(0);
  #waiting: WaitingRead | null = null;
  #goneReason: Error | null = null;

  constructor(transport: Transport, tls: ConnectionOptions | null = null) {
    this.needsTls = tls !== null;
    this.#transport = transport;
    this.#tls = tls;
    transport.serve(this);
  }

  write(bytes: Buffer): void {
    this.#transport.write(bytes);
  }

  /** Rejects with the reason of the transport's end. */
  read(lengthBytes: number): Promise<Buffer> {
    assert(this.#waiting === null);
    return new Promise((resolve, reject) => {
      this.#waiting = { lengthBytes, resolve, reject };
      this.#settle();
    });
  }

  /**
   * The server has granted TLS: goes on over it.
   * @throws ProtocolError if plaintext came behind that; NegotiationError "tls-failed"
   */
  async startTls(): Promise<void> {
    assert(this.#tls !== null);
    if (this.#unread.length > 0) {
      throw new ProtocolError("plaintext-injection", "plaintext came behind the consent to TLS");
    }
    await this.#transport.startTls(this.#tls);
  }

  /** What arrived after the last read; whoever is served next begins with it. */
  takeUnread(): Buffer {
    const unread = this.#unread;
    this.#unread = Buffer.alloc(0);
    return unread;
  }

  received(chunk: Buffer): void {
    this.#unread = Buffer.concat([this.#unread, chunk]);
    if (this.#unread.length > UNREAD_MAXIMUM_BYTES) {
      this.#goneReason = new ProtocolError("unasked-data", "the server sends more than it was asked for");
      this.#transport.drop(new LinkError("link-lost", this.#goneReason.message, { cause: this.#goneReason }));
      return;
    }
    this.#settle();
  }

  gone(reason: LinkError): void {
    this.#goneReason ??= reason;
    this.#settle();
  }

  #settle(): void {
    const waiting = this.#waiting;
    if (waiting === null) return;
    if (this.#unread.length >= waiting.lengthBytes) {
      this.#waiting = null;
      const bytes = this.#unread.subarray(0, waiting.lengthBytes);
      this.#unread = this.#unread.subarray(waiting.lengthBytes);
      waiting.resolve(bytes);
    } else if (this.#goneReason !== null) {
      this.#waiting = null;
      waiting.reject(this.#goneReason);
    }
  }
}
