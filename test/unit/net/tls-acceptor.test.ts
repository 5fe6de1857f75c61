/** The server's side of TLS over sockets of this process: what is left of who was refused, and what a session does not do again. */
import { expect } from "chai";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import {
  connect as connectPlainly,
  createServer,
  type AddressInfo,
  type Server,
  type Socket,
} from "node:net";
import { join } from "node:path";
import { connect, type ConnectionOptions, type SecureVersion, type TLSSocket } from "node:tls";

import { NegotiationError } from "../../../src/errors.js";
import { TlsAcceptor } from "../../../src/net/tls/acceptor.js";
import { PSK, useAuthorities, writePskFile } from "../../tools/certificates.js";
import { failureOf, isSettled } from "../../tools/outcome.js";

describe("TlsAcceptor", () => {
  const certs = useAuthorities();
  let listener: Server;
  const clients: TLSSocket[] = [];

  beforeEach(async () => {
    listener = createServer({ allowHalfOpen: true, pauseOnConnect: true });
    await once(listener.listen(0, "127.0.0.1"), "listening");
  });

  afterEach(() => {
    for (const client of clients.splice(0)) client.destroy();
    listener.close();
  });

  /** A client, and the server's end of its connection. */
  async function accept(options: ConnectionOptions): Promise<{ client: TLSSocket; plain: Socket }> {
    const { port } = listener.address() as AddressInfo;
    const accepted = once(listener, "connection");
    const client = connect({ ...options, host: "127.0.0.1", port }).on("error", () => undefined);
    clients.push(client);
    const [plain] = (await accepted) as [Socket];
    return { client, plain: plain.on("error", () => undefined) };
  }

  const byCertificates = (allowedNames: readonly string[] = []): TlsAcceptor =>
    new TlsAcceptor({
      credentials: { kind: "certificates", directory: certs.pki },
      verifyPeer: true,
      allowedNames,
    });

  async function ownCertificate(version: SecureVersion): Promise<ConnectionOptions> {
    const [ca, cert, key] = await Promise.all(
      ["ca-cert.pem", "client-cert.pem", "client-key.pem"].map((name) => readFile(join(certs.pki, name))),
    );
    return { ca, cert, key, servername: "localhost", minVersion: version, maxVersion: version };
  }

  const expectRefused = async (
    acceptor: TlsAcceptor,
    options: ConnectionOptions,
    reason: string,
  ): Promise<void> => {
    const { client, plain } = await accept(options);
    const closed = new Promise((resolve) => client.once("close", resolve));
    expect(await failureOf(acceptor.secure(plain)))
      .to.be.instanceOf(NegotiationError)
      .with.property("message", `no TLS session: ${reason}`);
    expect(plain.destroyed).to.equal(true);
    await closed;
  };

  for (const version of ["TLSv1.2", "TLSv1.3"] as const) {
    describe(`by ${version}`, () => {
      it("leaves no socket of a client that it refuses, whose certificate is another's", async () => {
        const reason = 'its certificate is for "client", "localhost", which is not allowed';
        await expectRefused(byCertificates(["replica.example"]), await ownCertificate(version), reason);
      });

      it("leaves no socket of a client that it refuses, which has no certificate", async () => {
        const nothing = { ...(await ownCertificate(version)), cert: undefined, key: undefined };
        await expectRefused(byCertificates(), nothing, "it has no certificate");
      });

      it("leaves no socket of a client that it refuses, whose key it does not have", async () => {
        const file = await writePskFile(join(certs.pki, "keys.psk"), { alice: PSK });
        const acceptor = new TlsAcceptor({
          credentials: { kind: "psk", file },
          verifyPeer: false,
          allowedNames: [],
        });
        const mallory: ConnectionOptions = {
          minVersion: version,
          maxVersion: version,
          ciphers: "TLS_AES_128_GCM_SHA256:PSK",
          pskCallback: () => ({ identity: "mallory", psk: Buffer.from(PSK, "hex") }),
          checkServerIdentity: () => undefined,
        };
        const reason = 'its user, "mallory", is not among the pre-shared keys';
        await expectRefused(acceptor, mallory, reason);
      });

      it("serves another client with what it kept of one that it refused", async () => {
        const acceptor = byCertificates(["client"]);
        const nothing = { ...(await ownCertificate(version)), cert: undefined, key: undefined };
        await expectRefused(acceptor, nothing, "it has no certificate");
        const { plain } = await accept(await ownCertificate(version));
        const secured = await acceptor.secure(plain);
        expect(acceptor.sessionOf(secured)).to.deep.equal({ version, user: "client" });
        secured.destroy();
      });

      it("verifies a client anew that comes with a session of before", async () => {
        const acceptor = byCertificates();
        const options = await ownCertificate(version);
        const first = await accept(options);
        const sessions: Buffer[] = [];
        first.client.on("session", (session) => sessions.push(session));
        const secured = await acceptor.secure(first.plain);
        secured.end("hello");
        await once(first.client.resume(), "end");
        const session = sessions.at(-1) ?? first.client.getSession();
        const second = await accept({ ...options, ...(session !== undefined && { session }) });
        const again = await acceptor.secure(second.plain);
        expect(again.isSessionReused()).to.equal(false);
        expect(acceptor.sessionOf(again)).to.deep.equal({ version, user: "client" });
        again.destroy();
        secured.destroy();
      });
    });
  }

  it("tells clients apart whose handshakes are under way at the same time, with what it kept of others", async () => {
    const acceptor = byCertificates();
    const options = await ownCertificate("TLSv1.3");
    const secure = async (): Promise<TLSSocket> => acceptor.secure((await accept(options)).plain);
    for (let before = 0; before < 2; before++) (await secure()).destroy();
    const { port } = listener.address() as AddressInfo;
    const accepted = once(listener, "connection");
    const silent = connectPlainly(port, "127.0.0.1");
    const [plain] = (await accepted) as [Socket];
    const refused = failureOf(acceptor.secure(plain));
    const secured = await secure();
    expect(await isSettled(refused)).to.equal(false);
    silent.destroy();
    expect(await refused).to.be.instanceOf(NegotiationError);
    expect(secured.destroyed).to.equal(false);
    secured.destroy();
  });

  it("shakes hands once a session", async () => {
    const { client, plain } = await accept(await ownCertificate("TLSv1.2"));
    const shaken = once(client, "secureConnect");
    const secured = (await byCertificates().secure(plain)).on("error", () => undefined);
    await shaken;
    secured.resume();
    client.resume();
    const error = await new Promise<Error | null>((resolve) => {
      client.once("error", resolve).renegotiate({ rejectUnauthorized: true }, resolve);
    });
    expect(error).to.have.property("code", "ERR_SSL_NO_RENEGOTIATION");
    secured.destroy();
  });
});
