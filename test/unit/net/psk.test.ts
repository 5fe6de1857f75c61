/** Pre-shared keys: their files, and whom a client that has one takes for its server. */
import { expect } from "chai";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { connect, createServer } from "node:tls";
import type { ConnectionOptions, TlsOptions } from "node:tls";

import { ConfigError } from "../../../src/errors.js";
import { tlsClientOptions } from "../../../src/net/tls/client.js";
import { readPskFile } from "../../../src/net/tls/psk-file.js";
import { PSK, useAuthorities, writePskFile } from "../../tools/certificates.js";
import { failureOf } from "../../tools/outcome.js";
import { useWorkspace } from "../../tools/workspace.js";

describe("readPskFile()", () => {
  const workspace = useWorkspace();

  for (const [what, keys, problem] of [
    ["names a user twice", `alice:${PSK}\nalice:${PSK}\n`, "line 2 names a user for the second time"],
    [
      "has a key that is too long",
      `alice:${"00".repeat(257)}\n`,
      "line 1 has a key or a user that is too long",
    ],
    [
      "has a user that is too long",
      `${"a".repeat(129)}:${PSK}\n`,
      "line 1 has a key or a user that is too long",
    ],
  ] as const) {
    it(`refuses a file that ${what}`, async () => {
      const path = workspace.path("keys.psk");
      await writeFile(path, keys);
      expect(() => readPskFile(path)).to.throw(
        ConfigError,
        `the pre-shared keys in "${path}" can't be used: ${problem}`,
      );
    });
  }
});

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
