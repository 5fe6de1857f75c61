/**
 * A directory of certificates in nbdkit's and QEMU's layout: ca-cert.pem, ca-crl.pem (optional), and a certificate
 * with its key for each role, server-cert.pem and server-key.pem, client-cert.pem and client-key.pem.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createSecureContext } from "node:tls";
import { ConfigError, describeError, isErrno } from "../../errors.js";

/** PEM, as node:tls takes it; what is absent was not asked for or, where that may be, isn't there. */
export interface Certificates {
  readonly ca?: string;
  readonly crl?: string;
  readonly cert?: string;
  readonly key?: string;
}

/**
 * What a server shows, and what it checks its clients against if they are to be verified.
 * @throws ConfigError that names the file
 */
export function readServerCertificates(directory: string, verifyPeer: boolean): Certificates {
  const own = readPair(directory, "server");
  if (own === null) throw unusable(directory, "server-cert.pem is missing");
  return usable(directory, { ...own, ...(verifyPeer && readAuthority(directory)) });
}

/** What a client checks servers against, and what it shows if it has something to show. @throws ConfigError */
export function readClientCertificates(directory: string): Certificates {
  return usable(directory, { ...readAuthority(directory), ...readPair(directory, "client") });
}

function readAuthority(directory: string): Certificates {
  const ca = readPem(directory, "ca-cert.pem");
  if (ca === null) throw unusable(directory, "ca-cert.pem is missing");
  const crl = readPem(directory, "ca-crl.pem");
  return { ca, ...(crl !== null && { crl }) };
}

function readPair(directory: string, role: "server" | "client"): Certificates | null {
  const cert = readPem(directory, `${role}-cert.pem`);
  if (cert === null) return null;
  const key = readPem(directory, `${role}-key.pem`);
  if (key === null) throw unusable(directory, `${role}-cert.pem is there, but ${role}-key.pem is missing`);
  return { cert, key };
}

/** null: there is no such file. */
function readPem(directory: string, name: string): string | null {
  try {
    return readFileSync(join(directory, name), "latin1");
  } catch (error) {
    if (isErrno(error, "ENOENT")) return null;
    throw unusable(directory, describeError(error), error);
  }
}

function usable(directory: string, certificates: Certificates): Certificates {
  try {
    createSecureContext({ ...certificates });
    return certificates;
  } catch (error) {
    throw unusable(directory, `OpenSSL says ${describeError(error)}`, error);
  }
}

function unusable(directory: string, problem: string, cause?: unknown): ConfigError {
  return new ConfigError(
    "bad-certificates",
    `the TLS certificates in "${directory}" can't be used: ${problem}`,
    { cause },
  );
}
