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

  const MAXIMUM_BYTES = 1024 * 1024;
  const KEY = Buffer.from(PSK, "hex");

  const write = async (text: string): Promise<string> => {
    const path = workspace.path("keys.psk");
    await writeFile(path, text);
    return path;
  };

  /** With empty lines behind it, so that the file has this length. */
  const padded = (text: string, lengthBytes: number): string =>
    text + "\n".repeat(lengthBytes - Buffer.byteLength(text));

  for (const [what, text] of [
    ["with an end of line of either kind, or none at the end", `alice:${PSK}\r\nbob:00ff\n\r\neve:AA`],
    ["of 1 MiB", padded(`alice:${PSK}\nbob:00ff\neve:AA\n`, MAXIMUM_BYTES)],
  ] as const) {
    it(`takes a file ${what}`, async () => {
      expect([...readPskFile(await write(text))]).to.deep.equal([
        ["alice", KEY],
        ["bob", Buffer.from([0, 255])],
        ["eve", Buffer.from([0xaa])],
      ]);
    });
  }

  it("takes keys and users of the greatest length that OpenSSL does", async () => {
    const [key, user] = [Buffer.alloc(256, 7), "ü".repeat(64)];
    expect([...readPskFile(await write(`${user}:${key.toString("hex")}\n`))]).to.deep.equal([[user, key]]);
  });

  it("says so where there is no file", () => {
    const path = workspace.path("nowhere");
    expect(() => readPskFile(path))
      .to.throw(ConfigError)
      .with.property("message")
      .that.matches(/^the pre-shared keys in ".*nowhere" can't be used: it can't be read: /);
  });

  for (const [what, keys, problem] of [
    ["names a user twice", `alice:${PSK}\nalice:${PSK}\n`, "line 2 names a user for the second time"],
    ["holds no key at all", "\r\n\n", "it holds no key"],
    ["is empty", "", "it holds no key"],
    ["is longer than 1 MiB", padded(`alice:${PSK}\n`, MAXIMUM_BYTES + 1), "it is too large"],
    [
      "is longer than 1 MiB in bytes, not in characters",
      "ü".repeat(MAXIMUM_BYTES / 2 + 1),
      "it is too large",
    ],
    ["has an odd digit", `bob:00\nalice:${PSK}0\n`, "line 2 is not USER:HEXKEY, as psktool writes it"],
    ["has a line without a user", `:${PSK}\n`, "line 1 is not USER:HEXKEY, as psktool writes it"],
    ["has a line without a key", "alice:\n", "line 1 is not USER:HEXKEY, as psktool writes it"],
    [
      "has a key that is too long",
      `alice:${"00".repeat(257)}\n`,
      "line 1 has a key or a user that is too long",
    ],
    [
      "has a user that is too long in bytes, not in characters",
      `${"ü".repeat(65)}:${PSK}\n`,
      "line 1 has a key or a user that is too long",
    ],
    [
      "has a user that is too long",
      `${"a".repeat(129)}:${PSK}\n`,
      "line 1 has a key or a user that is too long",
    ],
  ] as const) {
    it(`refuses a file that ${what}`, async () => {
      const path = await write(keys);
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
