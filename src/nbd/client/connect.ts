/** Connecting to an NBD server: from an address to a device. */
import { afterRunning, delayOf, systemClock } from "../../clock.js";
import { ConfigError, LinkError, NegotiationError, asError } from "../../errors.js";
import type { Address } from "../../net/address.js";
import { tlsClientOptions } from "../../net/tls/client.js";
import type { TlsParameters } from "../../net/tls/client.js";
import { STRING_MAXIMUM_BYTES } from "../wire/constants.js";
import { isString } from "../wire/strings.js";
import { NbdConnection } from "./connection.js";
import { NbdDevice } from "./device.js";
import { deviceInfo, exportAbilities } from "./export-info.js";
import { HandshakeChannel } from "./handshake-channel.js";
import { ABORT, negotiateExport } from "./negotiate.js";
import { withPeer } from "./peer-error.js";
import { printable } from "./server-text.js";
import { Transport } from "./transport.js";

/** From the first packet to the end of the handshake. */
const CONNECT_TIMEOUT_MS = 10_000;

/** As deep as Linux's own client goes (nr_requests of its queue). */
const MAX_IN_FLIGHT = 128;

/** Each of them is given its memory at once. */
const MAX_IN_FLIGHT_LIMIT = 65_536;

/** Where a server is, and how to get there. */
export interface NbdEndpoint {
  readonly address: Address;
  /** For the whole handshake; default 10 s. */
  readonly connectTimeoutMs?: number;
  /** TLS or nothing: a server that doesn't grant it is refused. */
  readonly tls?: boolean;
  readonly tlsParameters?: TlsParameters;
}

export interface NbdClientOptions extends NbdEndpoint {
  /** Empty: the server's default export. */
  readonly exportName: string;
  /** How many requests may be unanswered at a time, 1 to 65,536, further ones wait; default 128. */
  readonly maxInFlight?: number;
  /**
   * Ask for extended headers; default true. They let zero, trim and extents of any length go in one request, and make
   * each reply without data 16 bytes longer.
   */
  readonly extendedHeaders?: boolean;
  /** Metadata contexts to ask for besides base:allocation; which of them the server has is told by `metaContexts`. */
  readonly metaContexts?: readonly string[];
}

/**
 * @throws LinkError if the server can't be reached, or hangs up or falls silent in the handshake
 *   (codes connect-failed, link-lost, connect-timeout); with TLS 1.3, where a client is done before the server has looked at
 *   its certificate, a missing one shows so, too
 * @throws NegotiationError if it refuses; the code tells why, the message is the server's. Or if there can be no TLS:
 *   it refuses that ("tls-refused"), or one of the two distrusts the other ("tls-failed", with the reason)
 * @throws ProtocolError if what it says is not NBD
 * @throws ConfigError if the files for TLS can't be used, or the address, the name of the export or `maxInFlight` can't be one
 */
export async function connectNbd(options: NbdClientOptions): Promise<NbdDevice> {
  const { maxInFlight = MAX_IN_FLIGHT } = options;
  requireExportName(options.exportName);
  requireMaxInFlight(maxInFlight);
  const { transport, channel, result } = await shakeHands(options, (open) =>
    negotiateExport(open, options.exportName, options.extendedHeaders ?? true, options.metaContexts ?? []),
  );
  try {
    const info = deviceInfo(result);
    const connection = new NbdConnection(transport, channel.takeUnread(), result, maxInFlight);
    return new NbdDevice(connection, transport, info, exportAbilities(result));
  } catch (error) {
    const reason = withPeer(asError(error), transport.peer);
    transport.drop(new LinkError("link-lost", reason.message, { cause: reason }));
    throw reason;
  }
}

export function requireExportName(name: string): void {
  if (isString(name)) return;
  throw new ConfigError(
    "bad-export-name",
    `an export name is at most ${STRING_MAXIMUM_BYTES} bytes of UTF-8 without NUL, unlike "${printable(name.slice(0, 40))}"`,
  );
}

function requireMaxInFlight(count: number): void {
  if (Number.isInteger(count) && count >= 1 && count <= MAX_IN_FLIGHT_LIMIT) return;
  throw new ConfigError(
    "bad-max-in-flight",
    `a connection has 1 to ${MAX_IN_FLIGHT_LIMIT} requests unanswered at a time, not ${count}`,
  );
}

interface Session<T> {
  readonly transport: Transport;
  readonly channel: HandshakeChannel;
  readonly result: T;
}

/** The handshake alone, whatever it is for; errors as connectNbd(). */
export async function shakeHands<T>(
  options: NbdEndpoint,
  negotiate: (channel: HandshakeChannel) => Promise<T>,
): Promise<Session<T>> {
  const { address } = options;
  const host = address.kind === "tcp" ? address.host : null;
  const tls = options.tls === true ? tlsClientOptions(options.tlsParameters ?? {}, host) : null;
  const timeoutMs = options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS;
  const transport = new Transport(address);
  const channel = new HandshakeChannel(transport, tls);
  const cancelTimer = afterRunning(systemClock, delayOf(timeoutMs), () => {
    const message = `${transport.peer} did not complete the NBD handshake in ${timeoutMs} ms`;
    transport.drop(new LinkError("connect-timeout", message));
  });
  try {
    return { transport, channel, result: await negotiate(channel) };
  } catch (error) {
    const reason = withPeer(asError(error), transport.peer);
    if (error instanceof NegotiationError) transport.end(ABORT);
    else transport.drop(new LinkError("link-lost", reason.message, { cause: reason }));
    throw reason;
  } finally {
    cancelTimer();
  }
}
