/**
 * Reading a socket into memory of one's own, as net.connect() offers with `onread`; Node has no such option for the
 * connections that a server accepts. Without it each read allocates 64 KiB outside of V8's heap, which at a gigabyte
 * a second is what the garbage collector then spends most of the time on.
 *
 * So the connection's handle moves to a socket that was made with `onread`. That is not public; where it can't be done
 * the caller reads as usual.
 */
import { Socket } from "node:net";
import type { OnReadOpts, SocketConstructorOpts } from "node:net";

export interface Reader {
  /** Where the next bytes are to go; at least one fits. Asked once before each read. */
  target(): Buffer;
  /** So many bytes are there now. @returns whether to read on; if not, resume() does */
  received(lengthBytes: number): boolean;
}

interface HandleOptions extends SocketConstructorOpts {
  readonly handle: object;
  readonly onread: OnReadOpts;
}

/**
 * @param accepted from a server with `pauseOnConnect`, with no listener and nothing written; unusable afterwards
 * @returns a socket of the same connection that is paused, or null: `accepted` is as it was
 */
export function readInto(accepted: Socket, reader: Reader): Socket | null {
  const owner = accepted as Socket & { _handle?: object | null };
  const handle = owner._handle;
  if (typeof handle !== "object" || handle === null || !("useUserBuffer" in handle)) return null;
  owner._handle = null;
  const options: HandleOptions = {
    handle,
    allowHalfOpen: accepted.allowHalfOpen,
    onread: { buffer: () => reader.target(), callback: (lengthBytes) => reader.received(lengthBytes) },
  };
  return new Socket(options);
}
