/** What both nodes have in common: state directory, lock, disks, QMP server, signals, orderly end. */
import { setFlagsFromString } from "node:v8";
import type { Logger } from "pino";
import { defaultQmpAddress, type NodeConfig } from "../config/schema.js";
import { clientParameters, type TlsConfig } from "../config/tls.js";
import { Deferred } from "../deferred.js";
import { describeError, ReplError, StateError } from "../errors.js";
import { createLogger } from "../log.js";
import { openStateDirectory, type StateDirectory } from "../meta/state-directory.js";
import { unsafeDirectory } from "../meta/unsafe-directory.js";
import { type Address, formatAddress } from "../net/address.js";
import { letGoOfTerminalAtExit } from "../os/hang-up.js";
import { libc } from "../os/libc.js";
import { lockStateDirectory } from "../os/lock.js";
import { notifyServiceManager, type ServiceState } from "../os/notify.js";
import type { QmpCommand } from "../qmp/command.js";
import { STOPPING } from "../qmp/errors.js";
import { ENDED_EVENT, nodeCommands } from "../qmp/commands/node.js";
import { QmpServer } from "../qmp/server.js";
import type { LinkTls } from "../replication/primary/replica-uri.js";
import type { NamedDisk } from "../replication/named-disk.js";
import type { ConnectionInfo } from "../nbd/server/connection.js";
import type { CacheMode, ClientStatus, ListenerStatus, NodeStatus } from "../status.js";
import { readVersion } from "../version.js";
import { type NbdAccess, nbdAccess, warnOfPlaintext } from "./access.js";
import { openDisks } from "./disks.js";
import { Lifecycle } from "./lifecycle.js";

/** Of what is freed: more goes back to the kernel at once. */
const MMAP_THRESHOLD_BYTES = 64 * 1024;

/** The last is what a terminal that is closed sends to what runs in its foreground. */
const STOP_SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP"] as const;

/** What a node is built from. */
export interface NodeParts {
  readonly directory: StateDirectory;
  readonly disks: readonly NamedDisk[];
  readonly log: Logger;
  readonly lifecycle: Lifecycle;
  readonly cache: CacheMode;
  readonly nbdAccess: NbdAccess;
  readonly linkTls: LinkTls;
  readonly version: string;
  /** Sends an event to every QMP client. */
  readonly emit: (event: string, data: object) => void;
  readonly qmpListeners: () => ListenerStatus[];
  /** Begins an orderly shutdown. */
  readonly quit: () => void;
}

/** What a node gives back once it serves. */
export interface RunningNode {
  readonly commands: readonly QmpCommand[];
  readonly status: () => NodeStatus;
  /** Which promise the node can't keep any more, or null; decides on the exit code. */
  readonly brokenPromise: () => string | null;
}

/** Buffers, and clients, come and go: what many of them needed once must not stay with the process. */
function boundGarbage(): void {
  libc()?.setMmapThreshold(MMAP_THRESHOLD_BYTES);
  // V8 would let four times as much as what lives come together. A cycle takes 3 to 5 ms; under load there is less than one a second.
  setFlagsFromString("--heap-growing-percent=100");
}

/**
 * Runs a node until it is told to stop. @returns the exit code: 0, or 1 if it could not keep a promise
 * @throws ReplError if it can't start: nothing is left behind then
 */
export async function runNode(
  config: NodeConfig,
  build: (parts: NodeParts) => Promise<RunningNode>,
): Promise<number> {
  boundGarbage();
  const log = createLogger({ level: config.logLevel, format: config.logFormat });
  const lifecycle = new Lifecycle();
  const stopped = new Deferred<string>();
  let isStopping = false;
  const stop = (reason: string): void => {
    isStopping = true;
    stopped.resolve(reason);
  };
  const onSignal = (signal: NodeJS.Signals): void => {
    if (signal === "SIGHUP") letGoOfTerminalAtExit();
    stop(signal);
  };
  for (const signal of STOP_SIGNALS) process.on(signal, onSignal);
  const notify = (state: ServiceState): void => {
    notifyServiceManager(state, process.env, (message) => {
      log.warn(message);
    });
  };
  try {
    const node = await startNode(config, build, log, lifecycle, {
      quit: () => {
        stop("quit");
      },
      isStopping: () => isStopping,
    });
    log.info({ pid: process.pid, stateDirectory: config.stateDir }, "ready");
    notify("READY=1");
    const reason = await stopped.promise;
    log.info({ reason }, "stopping");
    notify("STOPPING=1");
    await end(lifecycle);
    const broken = node.brokenPromise();
    if (broken === null) log.info("stopped");
    else log.error({ reason: broken }, "stopped with a promise broken");
    return broken === null ? 0 : 1;
  } catch (error) {
    await lifecycle.close().catch((closing: unknown) => {
      log.error({ error: describeError(closing) }, "not everything could be closed");
    });
    throw error;
  } finally {
    for (const signal of STOP_SIGNALS) process.off(signal, onSignal);
  }
}

/** @throws ReplError for the exit code 1, whatever failed: the class of an error says why a node did not start, or can't be reached */
async function end(lifecycle: Lifecycle): Promise<void> {
  try {
    await lifecycle.close();
  } catch (error) {
    throw new ReplError("end-failed", describeError(error), { cause: error });
  }
}

async function startNode(
  config: NodeConfig,
  build: (parts: NodeParts) => Promise<RunningNode>,
  log: Logger,
  lifecycle: Lifecycle,
  { quit, isStopping }: { readonly quit: () => void; readonly isStopping: () => boolean },
): Promise<RunningNode> {
  const version = readVersion();
  const { cache } = config;
  const access = nbdAccess(config);
  if (cache === "unsafe")
    log.warn("cache unsafe: a power loss of this host can cost the disks and the checkpoint");
  const safeDirectory = await openStateDirectory(config.stateDir);
  const directory = cache === "unsafe" ? unsafeDirectory(safeDirectory) : safeDirectory;
  const lock = await lockStateDirectory(config.stateDir);
  lifecycle.add(() => lock.release());
  // The QMP server is closed last of all that serves, so that its clients see the node's end, and how it came.
  let qmp: QmpServer | null = null;
  let running: RunningNode | null = null;
  lifecycle.add(async (failure) => {
    const reason = failure === null ? (running?.brokenPromise() ?? null) : describeError(failure);
    qmp?.emit(ENDED_EVENT, { reason });
    await qmp?.close();
  });
  const { createSizeBytes, growth } = config;
  const disks = await openDisks(config.disks, { createSizeBytes, growth, cache, directory }, log, lifecycle);
  const node = await build({
    directory,
    disks,
    log,
    lifecycle,
    cache,
    nbdAccess: access,
    linkTls: linkTlsOf(config.tls),
    version,
    emit: (event, data) => {
      qmp?.emit(event, data);
    },
    quit,
    qmpListeners: () => (qmp === null ? [] : listenerStatus("qmp", qmp)),
  });
  running = node;
  qmp = new QmpServer({
    commands: [
      ...nodeCommands({ status: node.status, quit }),
      ...node.commands.map((command) => refusedWhile(isStopping, command)),
    ],
    log: log.child({ component: "qmp" }),
    tls: access.tls?.acceptor ?? null,
    ...(access.allow !== undefined && { allow: access.allow }),
    version,
  });
  for (const address of [defaultQmpAddress(config.stateDir), ...config.qmp]) await qmp.listen(address);
  warnOfPlaintext(log, node.status().listeners, config);
  return node;
}

/** QMP is closed last of all: what a command began now would be closed by nobody, or change what is on record as closed. */
function refusedWhile(isStopping: () => boolean, command: QmpCommand): QmpCommand {
  if (command.name.startsWith("query-")) return command;
  return {
    name: command.name,
    arguments: command.arguments,
    run: (args, context) =>
      isStopping()
        ? Promise.reject(new StateError(STOPPING, "the node is stopping: start it again first"))
        : command.run(args, context),
  };
}

export function linkTlsOf(config: TlsConfig): LinkTls {
  return { mode: config.mode, parameters: clientParameters(config) };
}

/** A server as its listeners show it. */
interface ListeningServer {
  readonly addresses: readonly Address[];
  clientsOf(address: Address): number;
}

export function listenerStatus(
  purpose: ListenerStatus["purpose"],
  server: ListeningServer,
): ListenerStatus[] {
  return server.addresses.map((address) => ({
    purpose,
    address: formatAddress(address),
    clients: server.clientsOf(address),
  }));
}

export function clientStatus(
  purpose: ClientStatus["purpose"],
  connections: readonly ConnectionInfo[],
): ClientStatus[] {
  return connections.map(({ exportName, ...info }) => ({ purpose, export: exportName, ...info }));
}
