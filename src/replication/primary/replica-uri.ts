/** A replica as it is named on the command line and over QMP. */
import { ConfigError } from "../../errors.js";
import type { Address } from "../../net/address.js";
import type { Endpoint } from "../../net/endpoint.js";
import { leadsToOneOf } from "../../net/own-address.js";
import { type TlsParameters, tlsClientOptions } from "../../net/tls/client.js";
import { parseNbdUri } from "../../nbd/uri.js";
import type { Replica } from "./replica-attachment.js";

/** What the node's own options of TLS are to a link. */
export interface LinkTls {
  /** off: as the URI says. on: QMP over TCP is TLS. require: so is NBD over TCP. */
  readonly mode: "off" | "on" | "require";
  /** Where the URI names no certificates and no key. */
  readonly parameters: TlsParameters;
}

/**
 * @param uri as replicaField takes it: it names the server, and each disk is asked for by its own name
 * @throws ConfigError if the link would go without a TLS that is required, or its files can't be used
 */
export function replicaOf(uri: string, control: Address | null, own: LinkTls): Replica {
  const { address, tls, tlsParameters } = parseNbdUri(uri);
  if (own.mode === "require" && !tls && address.kind === "tcp") {
    throw new ConfigError(
      "tls-required",
      `the replica "${uri}" would be reached without TLS, which --tls require forbids: use nbds://`,
    );
  }
  const hasFiles = tlsParameters.certificates !== undefined || tlsParameters.pskFile !== undefined;
  const parameters = { ...(hasFiles ? {} : own.parameters), ...tlsParameters };
  const isControlTls = tls || own.mode !== "off";
  return {
    address: tls ? secured(address, parameters) : address,
    control:
      control !== null && control.kind === "tcp" && isControlTls ? secured(control, parameters) : control,
    uri,
  };
}

/**
 * @param listeners where the node's own NBD servers listen
 * @throws ConfigError if the replica is this node: a copy of its disks to themselves would never end
 */
export function refuseItself({ address, uri }: Replica, listeners: readonly Address[]): void {
  if (!leadsToOneOf(listeners, address)) return;
  throw new ConfigError(
    "own-address",
    `the replica "${uri}" is this node itself, which listens there: give the NBD server of its secondary`,
  );
}

function secured(address: Address, tls: TlsParameters): Endpoint {
  // To be told of a missing file now, and not by each attempt to connect.
  tlsClientOptions(tls, null);
  return { ...address, tls };
}
