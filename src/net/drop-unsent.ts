/** Closing a connection so that nothing more of it is delivered. */
import type { Socket } from "node:net";

import { libc, SystemCallError } from "../os/libc.js";
import { descriptorOf } from "./descriptor.js";

/**
 * To be called right before the socket is destroyed. The kernel would go on sending what it has taken, for a quarter of an hour, also
 * when this process has long ended, as soon as the network lets it through. Without koffi it does so.
 */
export function dropUnsent(socket: Socket): void {
  const fd = descriptorOf(socket);
  try {
    if (fd !== null) libc()?.setLingerNot(fd);
  } catch (error) {
    // It is closed like any other then.
    if (!(error instanceof SystemCallError)) throw error;
  }
}
