/**
 * An NBD server: listeners, the connections they accepted, and the exports these may choose from.
 *
 * Invariants:
 * - `#connections` holds every connection whose socket is open or that has a device request in flight.
 * - There are never more than `maxConnections` of them, nor more than `maxConnectionsPerPeer` from one address.
 * - Once close() was called no listener is opened and no connection enters transmission.
 */
import type { Socket } from "node:net";

import type { Logger } from "pino";

import { StateError, describeError } from "../../errors.js";
import type { Address } from "../../net/address.js";
import { formatAddress } from "../../net/address.js";
import type { SocketAccess } from "../../net/listen.js";
import type { PeerFilter } from "../../net/peer-filter.js";
import { SendRoom } from "../../net/send-room.js";
import type { ConnectionInfo, ServerTls } from "./connection.js";
import { Connection } from "./connection.js";
import type { ExportTable } from "./exports.js";
import {
  DEFAULT_HANDSHAKE_TIMEOUT_MS,
  DEFAULT_MAX_CONNECTIONS,
  DEFAULT_MAX_CONNECTIONS_PER_PEER,
  DEFAULT_STALL_TIMEOUT_MS,
  REPORTED_REFUSALS,
  SERVER_PAYLOAD_BYTES,
} from "./limits.js";
import { MemoryPool } from "./memory-pool.js";
import type { Listener } from "./listener.js";
import { openListener } from "./listener.js";
import { Turns } from "./turns.js";

export interface NbdServerOptions {
  readonly exports: ExportTable;
  readonly log: Logger;
  /** Absent: NBD_OPT_STARTTLS is refused. */
  readonly tls?: ServerTls;
  /** Of all listeners together; what comes above that is closed at once. */
  readonly maxConnections?: number;
  /** From one address; unix sockets have none. */
  readonly maxConnectionsPerPeer?: number;
  /** Absent: clients may come from anywhere. */
  readonly allow?: PeerFilter;
  /** Who may connect to unix sockets; absent: whoever the umask lets. */
  readonly sockets?: SocketAccess;
  /** From accept to transmission. */
  readonly handshakeTimeoutMs?: number;
  /** How long a client may leave its replies unread. */
  readonly stallTimeoutMs?: number;
}

export class NbdServer {
  readonly #options: NbdServerOptions;
  readonly #maxConnections: number;
  readonly #maxConnectionsPerPeer: number;
  readonly #listeners = new Map<string, Listener>();
  readonly #connections = new Set<Connection>();
  readonly #turns = new Turns();
  readonly #sendRoom = new SendRoom();
  readonly #memory = new MemoryPool(SERVER_PAYLOAD_BYTES);
  #accepted = 0;
  /** Accepted, and their turn has not come. */
  #arriving = 0;
  #stopping = false;
  /** What was refused and logged since a client last went. */
  readonly #refusals = new Set<string>();

  constructor(options: NbdServerOptions) {
    this.#options = options;
    this.#maxConnections = options.maxConnections ?? DEFAULT_MAX_CONNECTIONS;
    this.#maxConnectionsPerPeer = options.maxConnectionsPerPeer ?? DEFAULT_MAX_CONNECTIONS_PER_PEER;
  }

  get addresses(): readonly Address[] {
    return [...this.#listeners.values()].map((listener) => listener.address);
  }

  /**
   * Returns the bound address, a port of 0 resolved. A unix socket file that nobody listens on is replaced.
   * @throws ReplError address-in-use, cannot-listen; StateError server-closed
   */
  listen(address: Address): Promise<Address> {
    return this.#open(address);
  }

  /** As listen(), on a socket that listens already: descriptor `fd`. */
  listenOn(fd: number): Promise<Address> {
    return this.#open({ fd });
  }

  async #open(place: Address | { readonly fd: number }): Promise<Address> {
    this.#requireOpen();
    const listener = await openListener(place, this.#options.sockets ?? {}, {
      onSocket: (socket) => {
        this.#accept(socket, listener.address);
      },
      onError: (error) => {
        const bound = formatAddress(listener.address);
        this.#options.log.error({ address: bound, err: error }, `can't accept: ${describeError(error)}`);
      },
    });
    if (this.#stopping) await listener.close();
    this.#requireOpen();
    this.#listeners.set(formatAddress(listener.address), listener);
    this.#options.log.info({ address: formatAddress(listener.address) }, "NBD server listens");
    return listener.address;
  }

  /** Takes an address as listen() returned it; its connections live on. Nothing happens for any other address. */
  async unlisten(address: Address): Promise<void> {
    const key = formatAddress(address);
    const listener = this.#listeners.get(key);
    this.#listeners.delete(key);
    await listener?.close();
  }

  /**
   * Ends every connection to that export: new requests get ESHUTDOWN, those in flight finish and are answered.
   * After `deadlineMs` the sockets are closed whatever is unanswered. Resolves when none of these connections has
   * a request with the device, for which there is no deadline. Keeping new clients out is the export's refusal().
   */
  disconnect(exportName: string, deadlineMs: number): Promise<void> {
    return endAll(
      [...this.#connections].filter((connection) => connection.exportName === exportName),
      deadlineMs,
    );
  }

  connections(): ConnectionInfo[] {
    return [...this.#connections].map((connection) => connection.info());
  }

  /** Stops listening, then as disconnect() for all. Clients in the handshake get NBD_REP_ERR_SHUTDOWN until then. */
  async close(deadlineMs: number): Promise<void> {
    this.#stopping = true;
    await Promise.all(this.addresses.map((address) => this.unlisten(address)));
    const inTransmission = [...this.#connections].filter((connection) => connection.exportName !== null);
    await endAll(inTransmission, deadlineMs);
    for (const connection of this.#connections) if (connection.exportName === null) connection.destroy();
  }

  #requireOpen(): void {
    if (this.#stopping) throw new StateError("server-closed", "the NBD server is closed");
  }

  #accept(socket: Socket, listenedOn: Address): void {
    const host = socket.remoteAddress ?? null;
    const refusal = this.#refusal(host);
    if (refusal !== null) {
      socket.destroy();
      this.#reportRefusal(host, refusal);
      return;
    }
    // A thousand may come at once; those who are served already don't wait for all of them.
    this.#arriving++;
    this.#turns.later(() => {
      this.#arriving--;
      if (this.#stopping) socket.destroy();
      else this.#welcome(socket, host, listenedOn);
    });
  }

  #welcome(socket: Socket, host: string | null, listenedOn: Address): void {
    this.#accepted++;
    const connection = new Connection(
      { stream: socket, host, peer: peerOf(socket, listenedOn, this.#accepted) },
      {
        exports: this.#options.exports,
        log: this.#options.log,
        memory: this.#memory,
        turns: this.#turns,
        sendRoom: this.#sendRoom,
        tls: this.#options.tls ?? null,
        handshakeTimeoutMs: this.#options.handshakeTimeoutMs ?? DEFAULT_HANDSHAKE_TIMEOUT_MS,
        stallTimeoutMs: this.#options.stallTimeoutMs ?? DEFAULT_STALL_TIMEOUT_MS,
        isStopping: () => this.#stopping,
        onClosed: (closed) => {
          this.#connections.delete(closed);
          this.#refusals.clear();
        },
      },
    );
    this.#connections.add(connection);
  }

  #refusal(host: string | null): string | null {
    if (host !== null && this.#options.allow?.admits(host) === false) return "its address is not allowed";
    if (this.#connections.size + this.#arriving >= this.#maxConnections) {
      return `there are ${this.#maxConnections} connections already`;
    }
    const fromHost = (): number =>
      [...this.#connections].filter((connection) => connection.host === host).length;
    return host !== null && fromHost() >= this.#maxConnectionsPerPeer
      ? `there are ${this.#maxConnectionsPerPeer} connections from its address already`
      : null;
  }

  /** One line for each address and reason. */
  #reportRefusal(host: string | null, refusal: string): void {
    const key = `${host ?? ""} ${refusal}`;
    if (this.#refusals.has(key) || this.#refusals.size >= REPORTED_REFUSALS) return;
    this.#refusals.add(key);
    this.#options.log.warn({ host }, `client refused: ${refusal}; further ones like it are not logged`);
  }
}

function peerOf(socket: Socket, listenedOn: Address, number: number): string {
  const { remoteAddress, remotePort } = socket;
  if (remoteAddress === undefined || remotePort === undefined)
    return `${formatAddress(listenedOn)}#${number}`;
  return formatAddress({ kind: "tcp", host: remoteAddress, port: remotePort });
}

async function endAll(connections: readonly Connection[], deadlineMs: number): Promise<void> {
  for (const connection of connections) connection.shutDown();
  const deadline = setTimeout(() => {
    for (const connection of connections) connection.destroy();
  }, deadlineMs);
  await Promise.all(connections.map((connection) => connection.ended));
  clearTimeout(deadline);
}
