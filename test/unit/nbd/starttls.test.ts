/** What becomes of a client that was granted TLS, with an acceptor that does as the test wants. */
import { expect } from "chai";
import { Socket } from "node:net";

import { NegotiationError } from "../../../src/errors.js";
import type { TlsAcceptor } from "../../../src/net/tls/acceptor.js";
import { StartTls } from "../../../src/nbd/server/starttls.js";
import { Turns } from "../../../src/nbd/server/turns.js";

/** A record of type handshake with the beginning of a client_hello. */
const HELLO = Buffer.from([22, 3, 1, 0, 1, 1]);

describe("StartTls", () => {
  /** What the connection is told when it has come to its end: code, message and whether there is a stack. */
  async function endOf(secure: () => Promise<Socket>, secured: () => void): Promise<unknown[]> {
    const acceptor = { secure, sessionOf: () => ({ version: "TLSv1.3", user: null }) };
    return new Promise((resolve) => {
      const startTls = new StartTls({
        tls: { mode: "on", acceptor: acceptor as unknown as TlsAcceptor },
        turns: new Turns(),
        secured,
        failed: (code, message, err) => {
          resolve([code, message, err?.stack !== undefined]);
        },
      });
      startTls.grant();
      startTls.awaitHello();
      startTls.push(new Socket(), HELLO);
    });
  }

  it("tells of a handshake that failed with the peer's reason", async () => {
    const refused = new NegotiationError("tls-failed", "no TLS session: it hung up");
    const end = await endOf(
      () => Promise.reject(refused),
      () => undefined,
    );
    expect(end).to.deep.equal(["tls-failed", "no TLS session: it hung up", false]);
  });

  it("tells of a mistake of ours as such, with its stack, and not as a handshake that failed", async () => {
    const end = await endOf(
      () => Promise.resolve(new Socket()),
      () => {
        throw new TypeError("boom");
      },
    );
    expect(end).to.deep.equal(["internal-error", "internal error: boom", true]);
  });
});
