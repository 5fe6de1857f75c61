/** The client's side of TLS: what it shows, and what it demands of a server. */
import { isIP } from "node:net";
import { userInfo } from "node:os";
import { checkServerIdentity } from "node:tls";
import type { ConnectionOptions } from "node:tls";
import { ConfigError } from "../../errors.js";
import { readClientCertificates } from "./certificates.js";
import { readPskFile } from "./psk-file.js";
import { PSK_ONLY, VERSIONS } from "./session.js";

/** How the peers identify themselves: not at all, by certificates, by a shared key. */
export type TlsType = "anon" | "x509" | "psk";

/** As NBD URIs have them; the names of the last four are libnbd's. */
export interface TlsParameters {
  /** The identity that goes with a pre-shared key; default: the file's only one, or who runs the process. */
  readonly username?: string;
  /** Default: what the other parameters imply. */
  readonly type?: TlsType;
  /** The name to look for in the server's certificate, if it isn't the host's. */
  readonly hostname?: string;
  /** Default true. */
  readonly verifyPeer?: boolean;
  /** Directory with ca-cert.pem and its companions; without, the CAs that Node.js knows. */
  readonly certificates?: string;
  readonly pskFile?: string;
}

/**
 * Options of node:tls for a connection to `host`; null: a unix socket, whose server's certificate may have any name.
 * Reads the files, so that renewed ones are used from the next connection on.
 * @throws ConfigError
 */
export function tlsClientOptions(parameters: TlsParameters, host: string | null): ConnectionOptions {
  const { pskFile, certificates } = parameters;
  const type = parameters.type ?? (pskFile === undefined ? "x509" : "psk");
  switch (type) {
    case "anon":
      throw new ConfigError(
        "bad-tls-type",
        "anonymous TLS is not supported: use certificates or a pre-shared key",
      );
    case "psk":
      if (pskFile === undefined)
        throw new ConfigError("bad-tls-type", "TLS with a pre-shared key needs its file: add tls-psk-file");
      return pskOptions(pskFile, parameters.username);
    case "x509":
      return {
        ...(certificates !== undefined && readClientCertificates(certificates)),
        ...certificateChecks(parameters.hostname ?? host, parameters.verifyPeer ?? true),
      };
  }
}

function certificateChecks(name: string | null, verifyPeer: boolean): ConnectionOptions {
  return {
    ...VERSIONS,
    rejectUnauthorized: verifyPeer,
    // An address is no name to ask for, but one to look for.
    servername: name === null || isIP(name) !== 0 ? "" : name,
    checkServerIdentity: (_name, certificate) =>
      name === null ? undefined : checkServerIdentity(name, certificate),
  };
}

function pskOptions(file: string, username: string | undefined): ConnectionOptions {
  const keys = readPskFile(file);
  const [onlyUser] = keys.size === 1 ? keys.keys() : [];
  const identity = username ?? onlyUser ?? userInfo().username;
  const psk = keys.get(identity);
  if (psk === undefined) {
    const [someUser = "USER"] = keys.keys();
    throw new ConfigError(
      "no-such-user",
      `"${file}" has no pre-shared key of the user "${identity}": name one that it has, as in nbds://${someUser}@HOST, or give a file with one key`,
    );
  }
  return {
    ...VERSIONS,
    ...PSK_ONLY,
    pskCallback: () => ({ identity, psk }),
    // Called for a server that has proved itself by a certificate of no matter whom; by TLS 1.2 also for one that has the key, and none.
    checkServerIdentity: (_name, certificate) =>
      Object.keys(certificate).length === 0
        ? undefined
        : new Error("it uses a certificate instead of the pre-shared key"),
  };
}
