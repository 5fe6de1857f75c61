/**
 * The QMP server of a node: several listeners, several clients, one table of commands. It knows the protocol and
 * the commands that belong to it (qmp_capabilities, query-version, query-commands); what a node can do comes from outside.
 *
 * Invariants:
 * - Every open connection is in `#sessions`, or in `#handshakes` before that; they are MAXIMUM_CLIENTS at most over TCP, and as many
 *   on unix sockets: whatever the network fills up, an operator on this host finds a place.
 * - Once close() was called no client is taken and no command is begun.
 */
import { createServer } from "node:net";
import type { Server, Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { afterRunning, systemClock } from "../clock.js";
import { NegotiationError, describeError } from "../errors.js";
import type { Logger } from "../log.js";
import { formatAddress } from "../net/address.js";
import type { Address } from "../net/address.js";
import { ClientLog } from "../net/client-log.js";
import { KEEPALIVE, beImpatient } from "../net/keepalive.js";
import { OWNER_ONLY, listen } from "../net/listen.js";
import type { PeerFilter } from "../net/peer-filter.js";
import type { TlsAcceptor } from "../net/tls/acceptor.js";
import { qmpCommand } from "./command.js";
import type { QmpCommand } from "./command.js";

import { QmpSession } from "./session.js";

/** Managers, monitoring, a person or two, over TCP and on unix sockets each; one more is closed at once. */
export const MAXIMUM_CLIENTS = 32;

/** How long close() waits for a command that runs, and then for its reply to be read. */
const CLOSE_GRACE_MS = 2000;

/** From accept to the end of the TLS handshake. */
const TLS_HANDSHAKE_TIMEOUT_MS = 10_000;

/** The QEMU release whose commands, answers and error texts this server follows. */
const QEMU_VERSION = { major: 7, minor: 2, micro: 0 } as const;

type Kind = Address["kind"];

export interface QmpServerOptions {
  readonly commands: readonly QmpCommand[];
  readonly log: Logger;
  /** For clients over TCP, from the first byte; absent or null: none. */
  readonly tls?: TlsAcceptor | null;
  /** Absent: clients may come from anywhere. */
  readonly allow?: PeerFilter;
  /** Of this software, as package.json has it. */
  readonly version: string;
  /** Milliseconds since the epoch, for the events' timestamps. */
  readonly now?: () => number;
}

export class QmpServer {
  readonly #log: Logger;
  readonly #clientLog: ClientLog;
  readonly #tls: TlsAcceptor | null;
  readonly #allow: PeerFilter | null;
  readonly #now: () => number;
  readonly #version: unknown;
  readonly #commands: ReadonlyMap<string, QmpCommand>;
  readonly #servers = new Map<Server, Address>();
  readonly #sessions = new Map<
    Socket,
    { readonly session: QmpSession; readonly server: Server; readonly kind: Kind }
  >();
  /** In the TLS handshake, over TCP all of them. */
  readonly #handshakes = new Set<Socket>();
  #clientsSeen = 0;
  #closed: Promise<void> | null = null;

  constructor(options: QmpServerOptions) {
    this.#log = options.log;
    this.#clientLog = new ClientLog(options.log);
    this.#tls = options.tls ?? null;
    this.#allow = options.allow ?? null;
    this.#now = options.now ?? Date.now;
    this.#version = { qemu: QEMU_VERSION, package: `nbd-replication ${options.version}` };
    const commands = [...this.#genericCommands(), ...options.commands];
    this.#commands = new Map(commands.map((command) => [command.name, command]));
  }

  /** Where clients can connect, in the order of listening. */
  get addresses(): readonly Address[] {
    return [...this.#servers.values()];
  }

  /** How many clients came by an address, as listen() returned it. */
  clientsOf(address: Address): number {
    const key = formatAddress(address);
    const cameBy = ({ server }: { server: Server }): boolean => {
      const bound = this.#servers.get(server);
      return bound !== undefined && formatAddress(bound) === key;
    };
    return [...this.#sessions.values()].filter(cameBy).length;
  }

  /**
   * Takes clients on one more address; returns it with the port that the kernel chose for port 0.
   * @throws ReplError "address-in-use", "cannot-listen"
   */
  async listen(address: Address): Promise<Address> {
    const server = createServer({ allowHalfOpen: true, noDelay: true, ...KEEPALIVE });
    server.on("connection", (socket) => {
      beImpatient(socket);
      if (this.#tls !== null && address.kind === "tcp") void this.#secure(socket, server, this.#tls);
      else this.#accept(socket, server, address.kind);
    });
    const bound = await listen(server, address, OWNER_ONLY);
    server.on("error", (error) => {
      this.#log.error({ address: formatAddress(bound), error: error.message }, "QMP listener failed");
    });
    this.#servers.set(server, bound);
    return bound;
  }

  /** Sends an event to every client that has negotiated. */
  emit(event: string, data?: object): void {
    const nowMs = this.#now();
    const seconds = Math.floor(nowMs / 1000);
    const timestamp = { seconds, microseconds: Math.floor((nowMs - seconds * 1000) * 1000) };
    const message = { timestamp, event, ...(data === undefined ? {} : { data }) };
    for (const { session } of this.#sessions.values()) session.event(message);
  }

  /** Takes no more clients and commands, answers those that run (within a grace period), closes. Idempotent. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    const closed = [...this.#servers.keys()].map((server) => new Promise((resolve) => server.close(resolve)));
    for (const socket of this.#handshakes) socket.destroy();
    const sessions = [...this.#sessions.values()];
    await within(CLOSE_GRACE_MS, Promise.all(sessions.map(({ session }) => session.finish())));
    for (const socket of this.#sessions.keys()) socket.destroySoon();
    await within(CLOSE_GRACE_MS, Promise.all(closed));
    for (const socket of this.#sessions.keys()) socket.destroy();
    await Promise.all(closed);
    this.#servers.clear();
    this.#clientLog.close();
  }

  async #secure(socket: Socket, server: Server, tls: TlsAcceptor): Promise<void> {
    if (!this.#admits(socket, "tcp")) return;
    const peer = formatAddress({
      kind: "tcp",
      host: socket.remoteAddress ?? "",
      port: socket.remotePort ?? 0,
    });
    const cancelDeadline = afterRunning(systemClock, TLS_HANDSHAKE_TIMEOUT_MS, () => socket.destroy());
    this.#handshakes.add(socket);
    socket.on("error", (error) => {
      this.#log.debug({ peer, error: error.message }, "QMP connection failed");
    });
    try {
      const secured = await tls.secure(socket);
      this.#handshakes.delete(socket);
      this.#accept(secured, server, "tcp");
    } catch (error) {
      this.#handshakes.delete(socket);
      if (this.#closed === null) this.#refused(socket, "tls-failed", { peer }, describeError(error));
    } finally {
      cancelDeadline();
    }
  }

  #admits(socket: Socket, kind: Kind): boolean {
    const host = socket.remoteAddress;
    if (host !== undefined && this.#allow?.admits(host) === false) {
      this.#refused(socket, "address-not-allowed", { host }, "its address is not allowed");
      socket.destroy();
      return false;
    }
    const sessions = [...this.#sessions.values()].filter((session) => session.kind === kind).length;
    const clients = sessions + (kind === "tcp" ? this.#handshakes.size : 0);
    if (clients < MAXIMUM_CLIENTS && this.#closed === null) return true;
    this.#refused(socket, "too-many-clients", { clients }, "too many, or closing");
    socket.destroy();
    return false;
  }

  #refused(socket: Socket, code: string, details: Readonly<Record<string, unknown>>, reason: string): void {
    const host = socket.remoteAddress ?? null;
    this.#clientLog.warn({ host, code }, () => details, `QMP client refused: ${reason}`);
  }

  #accept(socket: Socket, server: Server, kind: Kind): void {
    if (!this.#admits(socket, kind)) return;
    this.#clientsSeen += 1;
    const session = new QmpSession({
      socket,
      clientId: this.#clientsSeen,
      commands: this.#commands,
      greeting: { QMP: { version: this.#version, capabilities: [] } },
      log: this.#log,
      clientLog: this.#clientLog,
    });
    this.#sessions.set(socket, { session, server, kind });
    socket.once("close", () => this.#sessions.delete(socket));
  }

  #genericCommands(): QmpCommand[] {
    const nothing = z.strictObject({});
    return [
      qmpCommand({
        name: "qmp_capabilities",
        arguments: z.strictObject({ enable: z.array(z.string()).optional() }),
        run: (args) => refuseCapabilities(args.enable ?? []),
      }),
      qmpCommand({ name: "query-version", arguments: nothing, run: () => Promise.resolve(this.#version) }),
      qmpCommand({
        name: "query-commands",
        arguments: nothing,
        run: () => Promise.resolve([...this.#commands.keys()].map((name) => ({ name }))),
      }),
    ];
  }
}

/** None of QEMU's capabilities (out-of-band execution) is offered. */
function refuseCapabilities(wanted: readonly string[]): Promise<object> {
  const [capability] = wanted;
  if (capability === undefined) return Promise.resolve({});
  return Promise.reject(
    new NegotiationError("no-such-capability", `capability '${capability}' is not available`),
  );
}

/** Resolves when `work` does, or after `limitMs`. */
async function within(limitMs: number, work: Promise<unknown>): Promise<void> {
  const timer = new AbortController();
  try {
    await Promise.race([work, sleep(limitMs, undefined, { signal: timer.signal })]);
  } finally {
    timer.abort();
  }
}
