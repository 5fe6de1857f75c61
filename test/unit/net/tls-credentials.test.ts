/** What a directory of certificates has to hold for each role, and what a client asks a server's name for. */
import { expect } from "chai";
import { copyFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { ConfigError } from "../../../src/errors.js";
import { readClientCertificates, readServerCertificates } from "../../../src/net/tls/certificates.js";
import { tlsClientOptions } from "../../../src/net/tls/client.js";
import { useAuthorities } from "../../tools/certificates.js";
import { useWorkspace } from "../../tools/workspace.js";

const FILES = [
  "ca-cert.pem",
  "server-cert.pem",
  "server-key.pem",
  "client-cert.pem",
  "client-key.pem",
] as const;

describe("a directory of certificates", () => {
  const certs = useAuthorities();
  const workspace = useWorkspace();
  let directory: string;

  beforeEach(async () => {
    directory = workspace.path("pki");
    await mkdir(directory);
    await Promise.all(FILES.map((name) => copyFile(join(certs.pki, name), join(directory, name))));
  });

  const text = (name: (typeof FILES)[number]): Promise<string> => readFile(join(directory, name), "latin1");

  const refusal = (problem: string): string =>
    `the TLS certificates in "${directory}" can't be used: ${problem}`;

  it("gives a server its certificate and key, and its CA only if clients are to be verified", async () => {
    const pair = { cert: await text("server-cert.pem"), key: await text("server-key.pem") };
    expect(readServerCertificates(directory, false)).to.deep.equal(pair);
    const verifying = { ...pair, ca: await text("ca-cert.pem") };
    expect(readServerCertificates(directory, true)).to.deep.equal(verifying);
    await rm(join(directory, "ca-cert.pem"));
    expect(readServerCertificates(directory, false)).to.deep.equal(pair);
  });

  it("gives a client its CA, and its certificate and key if there are any", async () => {
    const ca = await text("ca-cert.pem");
    const pair = { cert: await text("client-cert.pem"), key: await text("client-key.pem") };
    expect(readClientCertificates(directory)).to.deep.equal({ ca, ...pair });
    await rm(join(directory, "client-cert.pem"));
    await rm(join(directory, "client-key.pem"));
    expect(readClientCertificates(directory)).to.deep.equal({ ca });
  });

  for (const [role, read] of [
    ["server", () => readServerCertificates(directory, true)],
    ["client", () => readClientCertificates(directory)],
  ] as const) {
    it(`is refused to a ${role} whose certificate has no key`, async () => {
      await rm(join(directory, `${role}-key.pem`));
      expect(read).to.throw(
        ConfigError,
        refusal(`${role}-cert.pem is there, but ${role}-key.pem is missing`),
      );
    });

    it(`is refused to a ${role} whose key is another's`, async () => {
      const other = role === "server" ? "client" : "server";
      await copyFile(join(certs.pki, `${other}-key.pem`), join(directory, `${role}-key.pem`));
      expect(read).to.throw(ConfigError, refusal("OpenSSL says "));
    });

    it(`is refused to a ${role} without its CA`, async () => {
      await rm(join(directory, "ca-cert.pem"));
      expect(read).to.throw(ConfigError, refusal("ca-cert.pem is missing"));
    });

    it(`is refused to a ${role} when one of its files can't be read`, async () => {
      await rm(join(directory, `${role}-cert.pem`));
      await mkdir(join(directory, `${role}-cert.pem`));
      expect(read).to.throw(ConfigError, refusal("EISDIR"));
    });

    it(`is refused to a ${role} when its list of revoked certificates is none`, async () => {
      await writeFile(join(directory, "ca-crl.pem"), "nothing");
      expect(read).to.throw(ConfigError, refusal("OpenSSL says "));
    });
  }

  it("is refused to a server without a certificate", async () => {
    await rm(join(directory, "server-cert.pem"));
    expect(() => readServerCertificates(directory, false)).to.throw(
      ConfigError,
      refusal("server-cert.pem is missing"),
    );
  });
});

describe("TLS of a client by certificates", () => {
  for (const [host, hostname, asked] of [
    ["replica.example", undefined, "replica.example"],
    ["replica.example", "other.example", "other.example"],
    ["192.0.2.1", "other.example", "other.example"],
    ["192.0.2.1", undefined, ""],
    ["2001:db8::1", undefined, ""],
    ["replica.example", "192.0.2.1", ""],
    [null, undefined, ""],
    [null, "other.example", "other.example"],
  ] as const) {
    const where = host ?? "a unix socket";
    it(`asks ${where}${hostname === undefined ? "" : `, to be known as ${hostname},`} for ${asked === "" ? "no name" : asked}`, () => {
      const { servername } = tlsClientOptions(hostname === undefined ? {} : { hostname }, host);
      expect(servername).to.equal(asked);
    });
  }
});
