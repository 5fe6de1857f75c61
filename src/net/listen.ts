/** Listening sockets: TCP, or a unix socket that replaces a stale one. */
import { once } from "node:events";
import { chmodSync } from "node:fs";
import { lstat, unlink } from "node:fs/promises";
import { connect } from "node:net";
import type { Server } from "node:net";
import { ReplError, describeError } from "../errors.js";
import { formatAddress, socketOptions } from "./address.js";
import type { Address } from "./address.js";

/** Connections that the kernel keeps waiting for us. */
const BACKLOG = 128;

/** Who may connect to a unix socket: its owner alone, or whoever the umask lets. */
export type SocketAccess = "owner" | "umask";

/**
 * Makes `server` listen; returns the address with the port that the kernel chose for port 0.
 * @throws ReplError "address-in-use", or "cannot-listen" with the reason
 */
export async function listen(server: Server, address: Address, access: SocketAccess): Promise<Address> {
  if (address.kind === "unix") await removeStaleSocket(address.path);
  const listening = once(server, "listening");
  try {
    bind(server, address, access);
    await listening;
  } catch (error) {
    throw listenError(address, error);
  }
  const bound = server.address();
  if (address.kind === "tcp" && bound !== null && typeof bound === "object")
    return { ...address, port: bound.port };
  return address;
}

/** listen() binds before it returns, so the socket is private from its first instant on. */
function bind(server: Server, address: Address, access: SocketAccess): void {
  if (address.kind === "tcp" || access === "umask") {
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
  if (server.listening) chmodSync(address.path, 0o600);
}

/** A socket file outlives a process that was killed; whether anybody listens is told by connecting to it. */
async function removeStaleSocket(path: string): Promise<void> {
  const address: Address = { kind: "unix", path };
  try {
    const found = await lstat(path);
    if (!found.isSocket()) throw inUse(address, "there is a file of that name that isn't a socket");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
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
  if ((error as NodeJS.ErrnoException).code === "EADDRINUSE")
    return inUse(address, "another process listens there");
  return new ReplError(
    "cannot-listen",
    `can't listen on ${formatAddress(address)}: ${describeError(error)}`,
    {
      cause: error,
    },
  );
}
