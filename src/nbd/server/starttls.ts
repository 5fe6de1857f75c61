/**
 * NBD_OPT_STARTTLS, from our consent to the session: first the reply is sent, then the client's first message is received, then
 * the TLS handshake takes place. It begins in the client's turn (turns.ts), once that message is there as a whole.
 *
 * Invariant: while it is under way no plaintext is parsed.
 */
import type { Socket } from "node:net";

import { asError, describeError, NegotiationError } from "../../errors.js";
import type { TlsAcceptor, TlsSession } from "../../net/tls/acceptor.js";
import { ClientHelloReader } from "../../net/tls/client-hello.js";
import type { Turns } from "./turns.js";

/** The TLS of a server: offered to its clients, or demanded of them. */
export interface ServerTls {
  readonly mode: "on" | "require";
  readonly acceptor: TlsAcceptor;
}

export interface StartTlsParts {
  readonly tls: ServerTls | null;
  readonly turns: Turns;
  /** What the client sends from now on is TLS, and this its stream. */
  readonly secured: (stream: Socket) => void;
  /** Not called after abandon(). @param err with a stack that is of use */
  readonly failed: (code: string, message: string, err?: Error) => void;
}

export class StartTls {
  readonly #parts: StartTlsParts;
  #state: "none" | "granted" | "hello" | "handshake" | "abandoned" = "none";
  #hello: ClientHelloReader | null = null;
  #session: TlsSession | null = null;

  constructor(parts: StartTlsParts) {
    this.#parts = parts;
  }

  /** Null: none yet. */
  get session(): TlsSession | null {
    return this.#session;
  }

  get isUnderWay(): boolean {
    return this.#state !== "none";
  }

  /** Only the reply may pass. */
  get isGranted(): boolean {
    return this.#state === "granted";
  }

  get awaitsHello(): boolean {
    return this.#state === "hello";
  }

  get isHandshaking(): boolean {
    return this.#state === "handshake";
  }

  get #isAbandoned(): boolean {
    return this.#state === "abandoned";
  }

  grant(): void {
    this.#state = "granted";
  }

  /** The client has the reply: what it sends from now on is TLS. */
  awaitHello(): void {
    this.#state = "hello";
    this.#hello = new ClientHelloReader();
  }

  /** This side closes the socket. */
  abandon(): void {
    if (this.isUnderWay) this.#state = "abandoned";
  }

  /** @returns whether to read on */
  push(stream: Socket, chunk: Buffer): boolean {
    const { tls, turns, failed } = this.#parts;
    try {
      const hello = this.#hello?.push(chunk) ?? null;
      if (hello === null) return true;
      this.#hello = null;
      turns.later(() => {
        if (!stream.destroyed && tls !== null) void this.#secure(stream, tls, hello);
      });
    } catch (error) {
      if (!(error instanceof NegotiationError)) throw error;
      failed(error.code, error.message);
    }
    return false;
  }

  async #secure(plain: Socket, { acceptor }: ServerTls, hello: Buffer): Promise<void> {
    this.#state = "handshake";
    plain.removeAllListeners("data");
    try {
      const secured = await acceptor.secure(plain, hello);
      this.#session = acceptor.sessionOf(secured);
      this.#state = "none";
      this.#parts.secured(secured);
    } catch (error) {
      if (this.#isAbandoned) return;
      if (error instanceof NegotiationError) this.#parts.failed(error.code, error.message);
      else this.#parts.failed("internal-error", `internal error: ${describeError(error)}`, asError(error));
    }
  }
}
