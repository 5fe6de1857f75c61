/** Whether the kernel holds small packets back (Nagle's algorithm) on TCP connections of this process, as the kernel has it. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import koffi from "koffi";

const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const ESTABLISHED = "01";

const getsockopt = koffi
  .load(null)
  .func(
    "int getsockopt(int fd, int level, int name, _Out_ int *value, _Inout_ unsigned int *lengthBytes)",
  ) as (fd: number, level: number, name: number, value: number[], lengthBytes: number[]) => number;

/** Of each connection over this port of loopback: true, never held back. */
export interface NoDelay {
  readonly server: readonly boolean[];
  readonly client: readonly boolean[];
}

/** Both sides, as far as they are this process's. */
export function noDelayOf(port: number): NoDelay {
  const found = { server: [] as boolean[], client: [] as boolean[] };
  const hexPort = port.toString(16).toUpperCase().padStart(4, "0");
  const fds = socketsByInode();
  for (const line of readFileSync("/proc/self/net/tcp", "utf8").trim().split("\n").slice(1)) {
    const [, local = "", remote = "", state, , , , , , inode = ""] = line.trim().split(/\s+/);
    const fd = fds.get(inode);
    if (fd === undefined || state !== ESTABLISHED) continue;
    if (local.endsWith(`:${hexPort}`)) found.server.push(isNoDelay(fd));
    else if (remote.endsWith(`:${hexPort}`)) found.client.push(isNoDelay(fd));
  }
  return found;
}

function isNoDelay(fd: number): boolean {
  const value = [0];
  if (getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, value, [4]) !== 0)
    throw new Error(`getsockopt of ${fd} failed`);
  return value[0] !== 0;
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
