/** Whom a client with a pre-shared key takes for its server. */
import { expect } from "chai";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { connect, createServer } from "node:tls";
import type { ConnectionOptions, TlsOptions } from "node:tls";

import { tlsClientOptions } from "../../../src/net/tls/client.js";
import { PSK, useAuthorities, writePskFile } from "../../tools/certificates.js";
import { failureOf } from "../../tools/outcome.js";

describe("TLS of a client with a pre-shared key", () => {
  const certs = useAuthorities({ server: {} });

  const optionsOf = async (): Promise<ConnectionOptions> =>
    tlsClientOptions(
      { pskFile: await writePskFile(join(certs.pki, "keys.psk"), { alice: PSK }) },
      "localhost",
    );

  /** The version of the session that comes about. */
  async function shakeHands(server: TlsOptions, client: ConnectionOptions): Promise<string | null> {
    const listener = createServer(server, (socket) => socket.end()).on("tlsClientError", () => undefined);
    await once(listener.listen(0, "127.0.0.1"), "listening");
    const { port } = listener.address() as AddressInfo;
    const socket = connect({ ...client, host: "127.0.0.1", port });
    try {
      await once(socket, "secureConnect");
      return socket.getProtocol();
    } finally {
      socket.destroy();
      listener.close();
    }
  }

  for (const version of ["TLSv1.2", "TLSv1.3"] as const) {
    it(`takes a server that has the key, by ${version}`, async () => {
      const server: TlsOptions = {
        minVersion: version,
        maxVersion: version,
        ciphers: "TLS_AES_128_GCM_SHA256:PSK",
        pskCallback: (_socket, identity) => (identity === "alice" ? Buffer.from(PSK, "hex") : null),
      };
      expect(await shakeHands(server, await optionsOf())).to.equal(version);
    });
  }

  it("takes no certificate instead of the key, though its CA be known", async () => {
    const [cert, key, ca] = await Promise.all(
      ["server-cert.pem", "server-key.pem", "ca-cert.pem"].map((name) => readFile(join(certs.pki, name))),
    );
    const failed = failureOf(shakeHands({ cert, key }, { ...(await optionsOf()), ca }));
    expect((await failed).message).to.equal("it uses a certificate instead of the pre-shared key");
  });
});
