/**
 * The NBD server that a secondary's primary writes to: filled from the start, or by a manager with QEMU's commands.
 *
 * Invariant: `#server` is the one that accepts connections, or null; its exports are in `#exports`.
 */
import type { Logger } from "pino";
import { ReplError, StateError } from "../errors.js";
import type { Address } from "../net/address.js";
import type { ConnectionInfo } from "../nbd/server/connection.js";
import { DEFAULT_MAX_CONNECTIONS, DEFAULT_MAX_CONNECTIONS_PER_PEER } from "../nbd/server/limits.js";
import { NbdServer } from "../nbd/server/server.js";
import type { InheritedSocket } from "../os/socket-activation.js";
import type { ManagedNbdServer } from "../qmp/commands/nbd-server.js";
import type { Secondary } from "../replication/secondary/secondary.js";
import type { NbdAccess } from "./access.js";
import { ReplicationExports } from "./replication-exports.js";

/** How long a writer that is cut off may take to take its last replies. */
export const DISCONNECT_DEADLINE_MS = 2000;

/** QEMU's id_wellformed(), for what is the export's name too. */
const EXPORT_ID = /^[A-Za-z][A-Za-z0-9._-]*$/;

export class ReplicationServer implements ManagedNbdServer {
  readonly #log: Logger;
  readonly #access: NbdAccess;
  readonly #exports: ReplicationExports;
  #secondary: Secondary | null = null;
  #server: NbdServer | null = null;

  constructor(log: Logger, access: NbdAccess) {
    this.#log = log;
    this.#access = access;
    this.#exports = new ReplicationExports(() => this.#secondary);
  }

  /** Whose disks it exports; known only after it, since the secondary cuts its writers off through it. */
  serve(secondary: Secondary): void {
    this.#secondary = secondary;
  }

  get addresses(): readonly Address[] {
    return this.#server?.addresses ?? [];
  }

  /** As NbdServer.clientsOf(). */
  clientsOf(address: Address): number {
    return this.#server?.clientsOf(address) ?? 0;
  }

  /** In transmission or on the way there. */
  connections(): ConnectionInfo[] {
    return this.#server?.connections() ?? [];
  }

  async start(address: Address, maxConnections: number | null): Promise<void> {
    if (this.#server !== null) throw new StateError("nbd-server-running", "NBD server already running");
    await this.#open([address], maxConnections);
  }

  /** Exports every disk by its name on all these addresses. */
  async startAll(addresses: readonly Address[], sockets: readonly InheritedSocket[] = []): Promise<void> {
    for (const { name } of this.#secondary?.disks ?? []) this.#add(name, name, true);
    await this.#open(addresses, null, sockets);
  }

  add(diskName: string, exportName: string, isWritable: boolean, description: string | null): void {
    if (this.#server === null) throw new StateError("nbd-server-stopped", "NBD server not running");
    if (!EXPORT_ID.test(exportName)) throw new ReplError("bad-export", "Invalid block export id");
    if (this.#exports.has(exportName)) {
      throw new ReplError("export-exists", `Block export id '${exportName}' is already in use`);
    }
    this.#add(diskName, exportName, isWritable, description);
  }

  async remove(name: string, isForced: boolean): Promise<void> {
    const server = this.#server;
    if (server === null || !this.#exports.has(name)) {
      throw new ReplError("no-export", `Export '${name}' is not found`);
    }
    const isInUse = server.connections().some(({ exportName }) => exportName === name);
    if (isInUse && !isForced) {
      throw new StateError("export-in-use", `export '${name}' still in use`);
    }
    this.#exports.remove(name);
    await server.disconnect(name, DISCONNECT_DEADLINE_MS);
  }

  async stop(): Promise<void> {
    const server = this.#server;
    if (server === null) throw new StateError("nbd-server-stopped", "NBD server not running");
    this.#server = null;
    for (const { name } of this.#exports.list()) this.#exports.remove(name);
    await server.close(DISCONNECT_DEADLINE_MS);
  }

  /** Ends every connection to an export; resolves when none of their requests is under way. */
  async disconnectWriters(): Promise<void> {
    const server = this.#server;
    if (server === null) return;
    await Promise.all(
      this.#exports.list().map(({ name }) => server.disconnect(name, DISCONNECT_DEADLINE_MS)),
    );
  }

  async close(): Promise<void> {
    await this.#server?.close(DISCONNECT_DEADLINE_MS);
    this.#server = null;
  }

  async #open(
    addresses: readonly Address[],
    maxConnections: number | null,
    sockets: readonly InheritedSocket[] = [],
  ): Promise<void> {
    const server = new NbdServer({
      exports: this.#exports,
      log: this.#log,
      clientsReconnect: true,
      ...roomFor(this.#secondary?.disks.length ?? 0),
      ...this.#access,
      ...(maxConnections !== null && { maxConnections }),
    });
    this.#server = server;
    try {
      for (const address of addresses) await server.listen(address);
      for (const { fd } of sockets) await server.listenOn(fd);
    } catch (error) {
      this.#server = null;
      await server.close(0);
      throw error;
    }
  }

  #add(diskName: string, exportName: string, isWritable: boolean, description: string | null = null): void {
    const disk = this.#secondary?.disks.find(({ name }) => name === diskName);
    if (disk === undefined) {
      throw new ReplError("no-such-disk", `Cannot find device='${diskName}' nor node-name='${diskName}'`);
    }
    this.#exports.addDisk(disk, exportName, { isWritable, description });
  }
}

/** Each disk has a connection from its primary, and another one when the primary comes back before it is missed. */
function roomFor(disks: number): Pick<NbdAccess, "maxConnections" | "maxConnectionsPerPeer"> {
  const connections = 2 * disks;
  return {
    maxConnections: Math.max(DEFAULT_MAX_CONNECTIONS, 2 * connections),
    maxConnectionsPerPeer: Math.max(DEFAULT_MAX_CONNECTIONS_PER_PEER, connections),
  };
}
