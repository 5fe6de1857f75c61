/** Options of sockets that Node has no call for. */
import type { Socket } from "node:net";

import { type Libc, libc, SystemCallError } from "../os/libc.js";
import { descriptorOf } from "./descriptor.js";

/** @returns false where it can't be set, which is no reason to end the socket: it works as before */
export function setOption(socket: Socket, set: (system: Libc, fd: number) => void): boolean {
  const fd = descriptorOf(socket);
  const system = libc();
  if (fd === null || system === null) return false;
  try {
    set(system, fd);
    return true;
  } catch (error) {
    if (error instanceof SystemCallError) return false;
    throw error;
  }
}
