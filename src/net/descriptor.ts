/** The descriptor of a socket, which Node tells nobody publicly, as read-into.ts has its handle. */
import type { Socket } from "node:net";

/** Null: it has none, or none that can be told. */
export function descriptorOf(socket: Socket): number | null {
  const { _handle: handle } = socket as Socket & { _handle?: { readonly fd?: number } | null };
  return !socket.destroyed && handle?.fd !== undefined && handle.fd >= 0 ? handle.fd : null;
}
