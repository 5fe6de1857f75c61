/** What the options of access and TLS are to the NBD servers of a node, and what an operator should be warned of. */
import type { Logger } from "pino";
import type { NodeConfig } from "../config/schema.js";
import { parseAddress } from "../net/address.js";
import { PeerFilter } from "../net/peer-filter.js";
import { TlsAcceptor } from "../net/tls/acceptor.js";
import type { NbdServerOptions } from "../nbd/server/server.js";
import type { ListenerStatus } from "../status.js";

/** Of every NBD server of the node. */
export type NbdAccess = Omit<NbdServerOptions, "exports" | "log">;

/** @throws ConfigError if the files for TLS can't be used */
export function nbdAccess({ access, tls }: Pick<NodeConfig, "access" | "tls">): NbdAccess {
  const { allow, maxConnections, maxConnectionsPerPeer, sockets } = access;
  const { mode, credentials, verifyPeer, allowedNames } = tls;
  return {
    sockets,
    ...(allow.length > 0 && { allow: new PeerFilter(allow) }),
    ...(maxConnections !== null && { maxConnections }),
    ...(maxConnectionsPerPeer !== null && { maxConnectionsPerPeer }),
    ...(mode !== "off" &&
      credentials !== null && {
        tls: { mode, acceptor: new TlsAcceptor({ credentials, verifyPeer, allowedNames }) },
      }),
  };
}

/** One line for all of a node's listeners that other hosts reach. */
export function warnOfPlaintext(
  log: Logger,
  listeners: readonly ListenerStatus[],
  { tls }: Pick<NodeConfig, "tls">,
): void {
  const exposed = listeners.map(({ address }) => address).filter(isReachable);
  if (exposed.length === 0) return;
  if (tls.mode === "off") {
    log.warn(
      { listeners: exposed },
      "no TLS: whoever is on the network can read and change what goes over it",
    );
  } else if (tls.mode === "on" && tls.verifyPeer) {
    log.warn({ listeners: exposed }, "clients without TLS are not verified: --tls require keeps them out");
  }
}

/** Whether it is TCP and on other than loopback. */
function isReachable(address: string): boolean {
  const parsed = parseAddress(address);
  if (parsed.kind === "unix") return false;
  return !/^(?:localhost|127\.\d+\.\d+\.\d+|::1)$/.test(parsed.host);
}
