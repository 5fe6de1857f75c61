/**
 * An NBD server: listeners, the connections they accepted, and the exports these may choose from.
 *
 * Invariants:
 * - `#connections` holds every connection whose socket is open or that has a device request in flight.
 * - There are never more than `maxConnections` of them and of those whose turn has not come, nor more than
 *   `maxConnectionsPerPeer` from one address.
 * - Once close() was called no listener is opened and no connection enters transmission.
 */
import type { Socket } from "node:net";

import type { Logger } from "pino";

import { delayOf } from "../../clock.js";
import { StateError, describeError } from "../../errors.js";
import type { Address } from "../../net/address.js";
import { formatAddress } from "../../net/address.js";
import { ClientLog } from "../../net/client-log.js";
import { bePatient } from "../../net/keepalive.js";
import type { SocketAccess } from "../../net/listen.js";
import type { PeerFilter } from "../../net/peer-filter.js";
import { SendRoom } from "../../net/send-room.js";
import type { ConnectionInfo } from "./connection.js";
import { Connection } from "./connection.js";
import type { ExportTable } from "./exports.js";
import {
  DEFAULT_HANDSHAKE_TIMEOUT_MS,
  DEFAULT_MAX_CONNECTIONS,
  DEFAULT_MAX_CONNECTIONS_PER_PEER,
  DEFAULT_STALL_TIMEOUT_MS,
  SERVER_PAYLOAD_BYTES,
} from "./limits.js";
import { MemoryPool } from "./memory-pool.js";
import type { Listener } from "./listener.js";
import { openListener } from "./listener.js";
import type { ServerTls } from "./starttls.js";
import type { Farewell } from "./transmission.js";
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
  /** How long a client may leave its replies unread; default 15 min. */
  readonly stallTimeoutMs?: number;
  /**
   * Whether clients build their connections anew by themselves: then one whose host vanished is found out within 40 s and is in
   * nobody's way. Others have 15 min, for they may lose their disk with the connection.
   */
  readonly clientsReconnect?: boolean;
}

/** Why a client may not connect. */
interface Refusal {
  readonly code: string;
  readonly message: string;
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
  /** Accepted and not gone, those too whose turn has not come: in all, and from each address. */
  #present = 0;
  readonly #presentFrom = new Map<string, number>();
  #stopping = false;
  readonly #clientLog: ClientLog;

  constructor(options: NbdServerOptions) {
    this.#options = options;
    this.#clientLog = new ClientLog(options.log);
    this.#maxConnections = options.maxConnections ?? DEFAULT_MAX_CONNECTIONS;
    this.#maxConnectionsPerPeer = options.maxConnectionsPerPeer ?? DEFAULT_MAX_CONNECTIONS_PER_PEER;
  }

  get addresses(): readonly Address[] {
    return [...this.#listeners.values()].map((listener) => listener.address);
  }

  /**
   * Returns the bound address, a port of 0 resolved. A unix socket file that nobody listens on is replaced.
   * @throws ReplError address-in-use, cannot-listen; ConfigError bad-address; StateError server-closed
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
        if (this.#options.clientsReconnect !== true) bePatient(socket);
        this.#accept(socket, listener.address);
      },
      onError: (error) => {
        const bound = formatAddress(listener.address);
        this.#options.log.error({ address: bound, err: error }, `can't accept: ${describeError(error)}`);
      },
    });
    const address = formatAddress(listener.address);
    try {
      this.#requireOpen();
      this.#options.log.info({ address }, "NBD server listens");
    } catch (error) {
      await listener.close();
      throw error;
    }
    this.#listeners.set(address, listener);
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
      "refuse",
    );
  }

  /** How many connections came by an address, as listen() returned it. */
  clientsOf(address: Address): number {
    const key = formatAddress(address);
    return [...this.#connections].filter(({ listenedOn }) => formatAddress(listenedOn) === key).length;
  }

  connections(): ConnectionInfo[] {
    return [...this.#connections].map((connection) => connection.info());
  }

  /** Stops listening, then as disconnect() for all. Clients in the handshake get NBD_REP_ERR_SHUTDOWN until then. */
  async close(deadlineMs: number, farewell: Farewell = "refuse"): Promise<void> {
    this.#stopping = true;
    await Promise.all(this.addresses.map((address) => this.unlisten(address)));
    const inTransmission = [...this.#connections].filter((connection) => connection.exportName !== null);
    await endAll(inTransmission, deadlineMs, farewell);
    for (const connection of this.#connections) if (connection.exportName === null) connection.destroy();
    this.#clientLog.close();
  }

  #requireOpen(): void {
    if (this.#stopping) throw new StateError("server-closed", "the NBD server is closed");
  }

  #accept(socket: Socket, listenedOn: Address): void {
    const host = socket.remoteAddress ?? null;
    const refusal = this.#refusal(host);
    if (refusal !== null) {
      socket.destroy();
      this.#clientLog.warn(
        { host, code: refusal.code },
        () => ({ host }),
        `client refused: ${refusal.message}`,
      );
      return;
    }
    // A thousand may come at once; those who are served already don't wait for all of them.
    this.#count(host, 1);
    this.#turns.later(() => {
      if (!this.#stopping) {
        this.#welcome(socket, host, listenedOn);
        return;
      }
      this.#count(host, -1);
      socket.destroy();
    });
  }

  #welcome(socket: Socket, host: string | null, listenedOn: Address): void {
    this.#accepted++;
    const connection = new Connection(
      { stream: socket, host, peer: peerOf(socket, listenedOn, this.#accepted), listenedOn },
      {
        exports: this.#options.exports,
        log: this.#options.log,
        clientLog: this.#clientLog,
        memory: this.#memory,
        turns: this.#turns,
        sendRoom: this.#sendRoom,
        tls: this.#options.tls ?? null,
        handshakeTimeoutMs: this.#options.handshakeTimeoutMs ?? DEFAULT_HANDSHAKE_TIMEOUT_MS,
        stallTimeoutMs: this.#options.stallTimeoutMs ?? DEFAULT_STALL_TIMEOUT_MS,
        isStopping: () => this.#stopping,
        onClosed: (closed) => {
          if (this.#connections.delete(closed)) this.#count(host, -1);
        },
      },
    );
    this.#connections.add(connection);
  }

  #count(host: string | null, added: 1 | -1): void {
    this.#present += added;
    if (host === null) return;
    const present = (this.#presentFrom.get(host) ?? 0) + added;
    if (present === 0) this.#presentFrom.delete(host);
    else this.#presentFrom.set(host, present);
  }

  #refusal(host: string | null): Refusal | null {
    if (host !== null && this.#options.allow?.admits(host) === false) {
      return { code: "address-not-allowed", message: "its address is not allowed" };
    }
    if (this.#present >= this.#maxConnections) {
      return {
        code: "too-many-connections",
        message: `there are ${this.#maxConnections} connections already`,
      };
    }
    return host !== null && (this.#presentFrom.get(host) ?? 0) >= this.#maxConnectionsPerPeer
      ? {
          code: "too-many-from-address",
          message: `there are ${this.#maxConnectionsPerPeer} connections from its address already`,
        }
      : null;
  }
}

function peerOf(socket: Socket, listenedOn: Address, number: number): string {
  const { remoteAddress, remotePort } = socket;
  if (remoteAddress === undefined || remotePort === undefined)
    return `${formatAddress(listenedOn)}#${number}`;
  return formatAddress({ kind: "tcp", host: remoteAddress, port: remotePort });
}

async function endAll(
  connections: readonly Connection[],
  deadlineMs: number,
  farewell: Farewell,
): Promise<void> {
  for (const connection of connections) connection.shutDown(farewell);
  const deadline = setTimeout(() => {
    for (const connection of connections) connection.destroy();
  }, delayOf(deadlineMs));
  await Promise.all(connections.map((connection) => connection.ended));
  clearTimeout(deadline);
}
