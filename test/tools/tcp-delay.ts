/** What the kernel does on TCP connections of this process: whether it holds small packets back (Nagle's algorithm), and when it asks for a sign of life. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import koffi from "koffi";

const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const TCP_KEEPIDLE = 4;
const TCP_KEEPINTVL = 5;
const TCP_KEEPCNT = 6;
const TCP_USER_TIMEOUT = 18;
const SOL_SOCKET = 1;
const SO_KEEPALIVE = 9;
const ESTABLISHED = "01";

const getsockopt = koffi
  .load(null)
  .func(
    "int getsockopt(int fd, int level, int name, _Out_ int *value, _Inout_ unsigned int *lengthBytes)",
  ) as (fd: number, level: number, name: number, value: number[], lengthBytes: number[]) => number;

/** Of each connection over a port of loopback, as far as its side is this process's. */
export interface Sides<T> {
  readonly server: readonly T[];
  readonly client: readonly T[];
}

/** True: never held back. */
export function noDelayOf(port: number): Sides<boolean> {
  return askAll(port, (fd) => optionOf(fd, IPPROTO_TCP, TCP_NODELAY) !== 0);
}

/** After how many seconds of silence the kernel asks for a sign of life; null: never. */
export function keepaliveSecondsOf(port: number): Sides<number | null> {
  return askAll(port, (fd) =>
    optionOf(fd, SOL_SOCKET, SO_KEEPALIVE) === 0 ? null : optionOf(fd, IPPROTO_TCP, TCP_KEEPIDLE),
  );
}

/** For how many seconds a peer may then give none before the kernel ends the connection. */
export function keepalivePatienceOf(port: number): Sides<number> {
  return askAll(
    port,
    (fd) => optionOf(fd, IPPROTO_TCP, TCP_KEEPINTVL) * optionOf(fd, IPPROTO_TCP, TCP_KEEPCNT),
  );
}

/** For how many milliseconds a peer may leave unacknowledged what is sent to it; 0: for as long as the kernel sends it again. */
export function userTimeoutOf(port: number): Sides<number> {
  return askAll(port, (fd) => optionOf(fd, IPPROTO_TCP, TCP_USER_TIMEOUT));
}

function askAll<T>(port: number, ask: (fd: number) => T): Sides<T> {
  const found = { server: [] as T[], client: [] as T[] };
  const hexPort = port.toString(16).toUpperCase().padStart(4, "0");
  const fds = socketsByInode();
  for (const line of readFileSync("/proc/self/net/tcp", "utf8").trim().split("\n").slice(1)) {
    const [, local = "", remote = "", state, , , , , , inode = ""] = line.trim().split(/\s+/);
    const fd = fds.get(inode);
    if (fd === undefined || state !== ESTABLISHED) continue;
    if (local.endsWith(`:${hexPort}`)) found.server.push(ask(fd));
    else if (remote.endsWith(`:${hexPort}`)) found.client.push(ask(fd));
  }
  return found;
}

function optionOf(fd: number, level: number, name: number): number {
  const value = [0];
  if (getsockopt(fd, level, name, value, [4]) !== 0) throw new Error(`getsockopt of ${fd} failed`);
  return value[0] ?? 0;
}

function socketsByInode(): Map<string, number> {
  const sockets = new Map<string, number>();
  for (const name of readdirSync("/proc/self/fd")) {
    const [, inode] = /^socket:\[(\d+)\]$/.exec(linkOf(name)) ?? [];
    if (inode !== undefined) sockets.set(inode, Number(name));
  }
  return sockets;
}

function linkOf(name: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${name}`);
  } catch (error) {
    // The descriptor that lists the directory is gone by now.
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return "";
    throw error;
  }
}
