/** Listening sockets: TCP, or a unix socket that replaces a stale one. */
import { once } from "node:events";
import { chmodSync, chownSync, existsSync, readFileSync, readlinkSync } from "node:fs";
import { lstat, unlink } from "node:fs/promises";
import { connect } from "node:net";
import type { Server } from "node:net";
import { dirname } from "node:path";
import { ReplError, describeError, isErrno } from "../errors.js";
import { formatAddress, socketOptions } from "./address.js";
import type { Address } from "./address.js";

/** Connections that the kernel keeps waiting for us. */
const BACKLOG = 128;

/** Who may connect to a unix socket; what is absent is as the umask and the process have it. */
export interface SocketAccess {
  /** Permission bits. */
  readonly mode?: number;
  /** Numbers; -1 leaves it. */
  readonly user?: number;
  readonly group?: number;
}

/** Its owner alone. */
export const OWNER_ONLY: SocketAccess = { mode: 0o600 };

/**
 * Makes `server` listen; returns the address with the port that the kernel chose for port 0.
 * @throws ReplError "address-in-use", or "cannot-listen" with the reason; ConfigError "bad-address"
 */
export async function listen(server: Server, address: Address, access: SocketAccess): Promise<Address> {
  // What is wrong with it is told before anything is looked at or opened.
  socketOptions(address);
  if (address.kind === "unix") await removeStaleSocket(address.path);
  const listening = once(server, "listening");
  try {
    bind(server, address, access);
    await listening;
  } catch (error) {
    // It may have been the owner that could not be set.
    server.close();
    throw listenError(address, error);
  }
  const bound = server.address();
  if (address.kind === "tcp" && bound !== null && typeof bound === "object")
    return { ...address, port: bound.port };
  return address;
}

/**
 * Makes `server` accept from a socket that listens already; returns its address.
 * @throws ReplError "cannot-listen"
 */
export async function listenOn(server: Server, fd: number): Promise<Address> {
  const listening = once(server, "listening");
  try {
    server.listen({ fd });
    await listening;
    return boundAddress(server, fd);
  } catch (error) {
    server.close();
    throw new ReplError("cannot-listen", `can't listen on descriptor ${fd}: ${describeError(error)}`, {
      cause: error,
    });
  }
}

function boundAddress(server: Server, fd: number): Address {
  const bound = server.address();
  if (bound !== null && typeof bound === "object") {
    return { kind: "tcp", host: bound.address, port: bound.port };
  }
  return { kind: "unix", path: bound ?? pathOf(fd) };
}

/** The path of a unix socket that Node did not bind, which it can't tell: looked up by the socket's inode; for people. */
function pathOf(fd: number): string {
  const [, inode = ""] = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/self/fd/${fd}`)) ?? [];
  const entries = readFileSync("/proc/net/unix", "utf8")
    .split("\n")
    .map((line) => line.trim().split(/\s+/));
  const [, , , , , , , path] = entries.find((entry) => entry[6] === inode) ?? [];
  return path ?? `descriptor ${fd}`;
}

/** listen() binds before it returns, so the socket is private from its first instant on. */
function bind(server: Server, address: Address, access: SocketAccess): void {
  const { mode, user = -1, group = -1 } = access;
  const isAsCreated = mode === undefined && user === -1 && group === -1;
  if (address.kind === "tcp" || isAsCreated) {
    server.listen({ ...socketOptions(address), backlog: BACKLOG });
    return;
  }
  // 0077 and not 0177: the mask is the process's, and a directory made meanwhile must stay usable.
  const mask = process.umask(0o077);
  try {
    server.listen({ path: address.path, backlog: BACKLOG });
  } finally {
    process.umask(mask);
  }
  if (!server.listening) return;
  // In this order: whoever is let in by the mode is to be let in as the new owner.
  if (user !== -1 || group !== -1) chownSync(address.path, user, group);
  chmodSync(address.path, mode ?? 0o777 & ~mask);
}

/** A socket file outlives a process that was killed; whether anybody listens is told by connecting to it. */
async function removeStaleSocket(path: string): Promise<void> {
  const address: Address = { kind: "unix", path };
  try {
    const found = await lstat(path);
    if (!found.isSocket()) throw inUse(address, "there is a file of that name that isn't a socket");
  } catch (error) {
    if (isErrno(error, "ENOENT")) return;
    throw error instanceof ReplError ? error : listenError(address, error);
  }
  if (await isAnswered(path)) throw inUse(address, "another process listens there");
  await unlink(path).catch((error: unknown) => {
    throw listenError(address, error);
  });
}

async function isAnswered(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ path });
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", (error: NodeJS.ErrnoException) => {
      // EAGAIN: a listener whose backlog is full is a listener.
      resolve(error.code !== "ECONNREFUSED" && error.code !== "ENOENT");
    });
  });
}

function inUse(address: Address, reason: string): ReplError {
  return new ReplError("address-in-use", `can't listen on ${formatAddress(address)}: ${reason}`);
}

function listenError(address: Address, error: unknown): ReplError {
  if (isErrno(error, "EADDRINUSE")) return inUse(address, "another process listens there");
  // libuv calls a directory that is missing EACCES.
  if (address.kind === "unix" && !existsSync(dirname(address.path)))
    return new ReplError(
      "cannot-listen",
      `can't listen on ${formatAddress(address)}: ${dirname(address.path)} is not there: make it`,
      { cause: error },
    );
  return new ReplError(
    "cannot-listen",
    `can't listen on ${formatAddress(address)}: ${describeError(error)}`,
    {
      cause: error,
    },
  );
}
