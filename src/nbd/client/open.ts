/** Opening the export that a URI names, over as many connections as are wanted and allowed. */
import assert from "node:assert";
import { isDeepStrictEqual } from "node:util";

import { ConfigError, LinkError, NegotiationError, asError } from "../../errors.js";
import { formatAddress } from "../../net/address.js";
import { parseNbdUri } from "../uri.js";
import type { NbdUri } from "../uri.js";
import { connectNbd } from "./connect.js";
import type { NbdClientOptions } from "./connect.js";
import type { NbdDevice } from "./device.js";
import { ParallelNbdDevice } from "./parallel-device.js";

/** How long the connections after the first may take: a server that serves no more at a time may leave them unanswered. */
const FURTHER_TIMEOUT_MS = 2000;

/** More would cost a server more than they could bring. */
const CONNECTIONS_MAXIMUM = 64;

export interface OpenNbdOptions extends Omit<
  NbdClientOptions,
  "address" | "exportName" | "tls" | "tlsParameters"
> {
  /** How many to use if the server allows several (NBD_FLAG_CAN_MULTI_CONN); default 1. It may take fewer. */
  readonly connections?: number;
}

/**
 * `maxInFlight` counts for each connection.
 * @throws ConfigError if the URI, or the number of connections, is not right
 * @throws NegotiationError connections-differ: the server told one connection this and another that of the export
 * @throws what connectNbd() throws, for the first of the connections; for another one only what is wrong beyond a server that takes no
 *   more: then none is left open
 */
export async function openNbd(
  uri: string | NbdUri,
  options: OpenNbdOptions = {},
): Promise<ParallelNbdDevice> {
  const { connections = 1, ...rest } = options;
  if (!Number.isInteger(connections) || connections < 1 || connections > CONNECTIONS_MAXIMUM) {
    throw new ConfigError(
      "bad-connections",
      `an export is opened over 1 to ${CONNECTIONS_MAXIMUM} connections, not ${connections}`,
    );
  }
  const target = { ...(typeof uri === "string" ? parseNbdUri(uri) : uri), ...rest };
  const first = await connectNbd(target);
  if (connections === 1 || !first.canMultiConn) return new ParallelNbdDevice([first]);
  const { devices, failures } = await connectMore(target, first, connections - 1);
  return new ParallelNbdDevice([first, ...devices], failures[0] ?? null);
}

/** `first` is closed with the others if one of them is not as it should be. */
async function connectMore(
  target: NbdClientOptions,
  first: NbdDevice,
  count: number,
): Promise<{ devices: NbdDevice[]; failures: Error[] }> {
  const connectTimeoutMs = Math.min(FURTHER_TIMEOUT_MS, target.connectTimeoutMs ?? FURTHER_TIMEOUT_MS);
  const connecting = Array.from({ length: count }, () => connectNbd({ ...target, connectTimeoutMs }));
  const results = await Promise.allSettled(connecting);
  const devices = results.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
  const failures = results.flatMap((result) =>
    result.status === "rejected" ? [asError(result.reason)] : [],
  );
  const fault = failures.find((error) => !(error instanceof LinkError || error instanceof NegotiationError));
  const differs = devices.some((device) => !tellsTheSame(device, first));
  if (fault === undefined && !differs) return { devices, failures };
  await Promise.all([first, ...devices].map((device) => device.close()));
  if (fault !== undefined) throw fault;
  assert(differs);
  throw new NegotiationError(
    "connections-differ",
    `${formatAddress(target.address)} describes the export "${target.exportName}" differently to each connection`,
  );
}

function tellsTheSame(a: NbdDevice, b: NbdDevice): boolean {
  return isDeepStrictEqual(
    [a.info, a.canMultiConn, a.canFastZero, a.hasExtendedHeaders, a.metaContexts],
    [b.info, b.canMultiConn, b.canFastZero, b.hasExtendedHeaders, b.metaContexts],
  );
}
