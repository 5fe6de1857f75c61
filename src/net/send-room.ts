/**
 * Room in the kernel for what a unix socket sends. It has 208 KiB (net.core.wmem_default) for good, where TCP's grows with
 * need; a reply of 1 MiB is then a sleep and a wake-up on each side for every sixth of it. Measured: reads of 1 MiB from
 * 3,300 to 4,800 a second.
 *
 * Invariant: no more than WIDE_SOCKETS have it at a time, for clients that don't read could fill it.
 */
import { isIP, type Socket } from "node:net";

import { setOption } from "./socket-option.js";

/** The kernel counts twice that, and has a limit of its own: net.core.wmem_max. */
const WIDE_BYTES = 1024 * 1024;
const WIDE_SOCKETS = 16;

export class SendRoom {
  readonly #wide = new Set<Socket>();

  /**
   * Gives the socket room for long replies until it is closed.
   * @returns false where it can't be done, or needn't: the socket works as before
   */
  widen(socket: Socket): boolean {
    if (this.#wide.has(socket)) return true;
    if (isIP(socket.remoteAddress ?? "") !== 0 || this.#wide.size >= WIDE_SOCKETS) return false;
    const isSet = setOption(socket, (system, fd) => {
      system.setSendBuffer(fd, WIDE_BYTES);
    });
    if (!isSet) return false;
    this.#wide.add(socket);
    socket.once("close", () => this.#wide.delete(socket));
    return true;
  }
}
