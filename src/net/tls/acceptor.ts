/**
 * The server's side of TLS, over sockets that are connected already: after NBD_OPT_STARTTLS, or from the first byte.
 *
 * Invariants:
 * - A socket is handed back only when its client was verified as the options demand.
 * - Each idle tls.Server has no listener and no handshake. One serves one handshake at a time, which is how its events
 *   are known to belong to that socket; it is kept for the next, since a secure context takes a millisecond to make.
 */
import type { Socket } from "node:net";
import { createServer } from "node:tls";
import type { Server, TLSSocket, TlsOptions } from "node:tls";
import { NegotiationError } from "../../errors.js";
import { readServerCertificates } from "./certificates.js";
import { readPskFile } from "./psk-file.js";
import { tlsReason } from "./reason.js";
import { PSK_ONLY, VERSIONS, writePiecesApart } from "./session.js";

/** Where a node's credentials are; each role finds its own there. */
export type TlsCredentials =
  | { readonly kind: "certificates"; readonly directory: string }
  | { readonly kind: "psk"; readonly file: string };

export interface TlsAcceptorOptions {
  readonly credentials: TlsCredentials;
  /** Clients must show a certificate of our CA; a pre-shared key is proof enough. */
  readonly verifyPeer: boolean;
  /** Names in certificates, or users of pre-shared keys, that may connect; empty: all that are verified. */
  readonly allowedNames: readonly string[];
}

/** What is known of the client of a session, for people. */
export interface TlsSession {
  /** "TLSv1.3" */
  readonly version: string | null;
  /** Of its certificate the common name, or the first DNS name; of its pre-shared key the user; null: it showed neither. */
  readonly user: string | null;
}

export class TlsAcceptor {
  readonly #options: TlsOptions;
  /** Who came by a pre-shared key. */
  readonly #users = new WeakMap<TLSSocket, string>();
  /** Why a pre-shared key was refused; of that OpenSSL knows only that no key was found. */
  readonly #refusedUsers = new WeakMap<TLSSocket, string>();
  readonly #allowedNames: ReadonlySet<string>;
  readonly #idle: Server[] = [];

  /** Reads the files. @throws ConfigError */
  constructor(options: TlsAcceptorOptions) {
    this.#allowedNames = new Set(options.allowedNames);
    this.#options = {
      ...VERSIONS,
      ...(options.credentials.kind === "psk"
        ? this.#pskOptions(options.credentials.file)
        : {
            ...readServerCertificates(options.credentials.directory, options.verifyPeer),
            requestCert: options.verifyPeer,
            rejectUnauthorized: options.verifyPeer,
          }),
    };
  }

  /**
   * Shakes hands over `plain`, of which nobody else reads or writes any more. To give up, destroy `plain`.
   * @param received of the client's handshake already; null: nothing was
   * @throws NegotiationError "tls-failed" with the reason; both sockets are destroyed then
   */
  secure(plain: Socket, received: Buffer | null = null): Promise<TLSSocket> {
    if (plain.destroyed) return Promise.reject(failure("it hung up before it began"));
    // A FIN in the middle of the handshake has to end it.
    plain.allowHalfOpen = false;
    const server = this.#idle.pop() ?? createServer(this.#options);
    return new Promise((resolve, reject) => {
      const settle = (refusal: string | null, secured: TLSSocket): void => {
        server.removeAllListeners("secureConnection").removeAllListeners("tlsClientError");
        this.#idle.push(server);
        if (refusal === null) {
          secured.allowHalfOpen = true;
          writePiecesApart(secured);
          resolve(secured);
          return;
        }
        secured.destroy();
        plain.destroy();
        reject(failure(refusal));
      };
      // A second handshake within a session is refused by NO_RENEGOTIATION.
      addListeners(server, {
        secured: (socket) => {
          settle(this.#refusal(socket), socket);
        },
        failed: (error, socket) => {
          const unverified = socket.authorizationError as Error | string | undefined | null;
          settle(this.#refusedUsers.get(socket) ?? tlsReason(unverified ?? error), socket);
        },
      });
      // Paused, or it would flow to nobody.
      if (received !== null) plain.pause().unshift(received);
      server.emit("connection", plain);
    });
  }

  /** @param secured as secure() handed it out */
  sessionOf(secured: TLSSocket): TlsSession {
    const [name] = certificateNames(secured) ?? [];
    return { version: secured.getProtocol(), user: this.#users.get(secured) ?? name ?? null };
  }

  #pskOptions(file: string): TlsOptions {
    const keys = readPskFile(file);
    return {
      ...PSK_ONLY,
      pskCallback: (socket, user) => {
        this.#users.set(socket, user);
        const key = keys.get(user);
        if (key !== undefined && this.#isAllowed([user])) return key;
        const why = key === undefined ? "is not among the pre-shared keys" : "is not allowed";
        // Any bytes, for nobody has proved anything yet.
        this.#refusedUsers.set(socket, `its user, ${JSON.stringify(user)}, ${why}`);
        return null;
      },
    };
  }

  /** Null, or why this client, which was verified, may not connect. */
  #refusal(socket: TLSSocket): string | null {
    const names = certificateNames(socket);
    if (names === null || this.#isAllowed(names)) return null;
    if (names.length === 0)
      return "its certificate has neither a common name nor a DNS name, and not everybody is allowed";
    return `its certificate is for ${names.map((name) => `"${name}"`).join(", ")}, which is not allowed`;
  }

  #isAllowed(names: readonly string[]): boolean {
    return this.#allowedNames.size === 0 || names.some((name) => this.#allowedNames.has(name));
  }
}

/** Null: it showed no certificate. */
function certificateNames(socket: TLSSocket): string[] | null {
  const certificate = socket.getPeerX509Certificate();
  return certificate === undefined ? null : namesOf(certificate.subject, certificate.subjectAltName ?? "");
}

/** The common name and the DNS names. What Node had to quote is no name that anybody would allow. */
function namesOf(subject: string, alternatives: string): string[] {
  const [, commonName] = /^CN=(.*)$/m.exec(subject) ?? [];
  const dnsNames = alternatives.split(", ").flatMap((each) => /^DNS:([^"]+)$/.exec(each)?.[1] ?? []);
  return [...new Set([...(commonName === undefined ? [] : [commonName]), ...dnsNames])];
}

function addListeners(
  server: Server,
  on: { secured: (socket: TLSSocket) => void; failed: (error: Error, socket: TLSSocket) => void },
): void {
  server.on("secureConnection", on.secured).on("tlsClientError", on.failed);
}

function failure(reason: string): NegotiationError {
  return new NegotiationError("tls-failed", `no TLS session: ${reason}`);
}
