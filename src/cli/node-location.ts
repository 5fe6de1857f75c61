/** How a verb finds its node: the options for it, and what they mean. */
import type { Options } from "yargs";
import { addressField, readField } from "../config/fields.js";
import { type Environment, loadStateDir } from "../config/load.js";
import { defaultQmpAddress } from "../config/schema.js";
import { ConfigError } from "../errors.js";
import type { Endpoint } from "../net/endpoint.js";
import type { TlsParameters } from "../net/tls/client.js";
import type { NodeRole } from "../status.js";
import type { VerbArguments } from "./program.js";

const TEXT = { type: "string", requiresArg: true } as const;

/** Options of every verb, also of one that asks the state directory alone. */
export const DIRECTORY_LOCATION: Readonly<Record<string, Options>> = {
  "state-dir": {
    ...TEXT,
    describe: "DIR: the state directory of the node",
    defaultDescription: "as the node's",
  },
  config: { ...TEXT, describe: "FILE: the node's config file, to find its state directory" },
};

/** Options of every verb that talks to the node. */
export const NODE_LOCATION: Readonly<Record<string, Options>> = {
  ...DIRECTORY_LOCATION,
  qmp: { ...TEXT, describe: "ADDR: the node's QMP server, wherever it is: tcp:HOST:PORT or unix:PATH" },
  "tls-certificates": {
    ...TEXT,
    describe: "DIR: for QMP over TCP with TLS: ca-cert.pem, client-cert.pem, client-key.pem",
  },
  "tls-psk": { ...TEXT, describe: "FILE: pre-shared key for QMP over TCP with TLS, USER:HEXKEY" },
  "tls-hostname": { ...TEXT, describe: "NAME: in the node's certificate, if it isn't the host of --qmp" },
};

/** The node's QMP server. @throws ConfigError */
export function nodeAddress(role: NodeRole, args: VerbArguments, environment: Environment): Endpoint {
  const { qmp } = args.texts;
  const tls = tlsOf(args);
  if (qmp !== undefined) {
    const address = readField(addressField, "--qmp", qmp);
    if (tls === null) return address;
    if (address.kind === "tcp") return { ...address, tls };
  }
  if (tls !== null)
    throw new ConfigError("usage", "TLS is for QMP over TCP: use it with --qmp tcp:HOST:PORT");
  return defaultQmpAddress(nodeStateDir(role, args, environment));
}

/** The node's state directory. @throws ConfigError */
export function nodeStateDir(role: NodeRole, { texts }: VerbArguments, environment: Environment): string {
  const { "state-dir": stateDir, config } = texts;
  const given = {
    ...(stateDir !== undefined && { "state-dir": stateDir }),
    ...(config !== undefined && { config }),
  };
  return loadStateDir(role, given, environment);
}

/** null: no option of TLS was given. */
function tlsOf({ texts }: VerbArguments): TlsParameters | null {
  const { "tls-certificates": certificates, "tls-psk": pskFile, "tls-hostname": hostname } = texts;
  if (certificates === undefined && pskFile === undefined && hostname === undefined) return null;
  return {
    ...(certificates !== undefined && { certificates }),
    ...(pskFile !== undefined && { pskFile }),
    ...(hostname !== undefined && { hostname }),
  };
}
