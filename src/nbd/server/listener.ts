/** A listening socket of the NBD server: hands out accepted sockets. */
import type { Socket } from "node:net";
import { createServer } from "node:net";

import type { Address } from "../../net/address.js";
import { KEEPALIVE } from "../../net/keepalive.js";
import type { SocketAccess } from "../../net/listen.js";
import { listen, listenOn } from "../../net/listen.js";

export interface Listener {
  /** As bound: port 0 is resolved. */
  readonly address: Address;
  /** Accepts no more; resolves when the address is free. The sockets that it accepted live on. */
  close(): Promise<void>;
}

/** What becomes of a listener's clients. */
export interface ListenerEvents {
  /** It is paused. */
  readonly onSocket: (socket: Socket) => void;
  /** A connection could not be accepted, for want of file descriptors say; the listener lives on. */
  readonly onError: (error: Error) => void;
}

/** @throws ReplError address-in-use when somebody listens there, cannot-listen for any other reason */
export async function openListener(
  place: Address | { readonly fd: number },
  access: SocketAccess,
  events: ListenerEvents,
): Promise<Listener> {
  // Half-open: who sends requests and then FIN, like netcat, still gets the replies.
  const server = createServer(
    { allowHalfOpen: true, noDelay: true, pauseOnConnect: true, ...KEEPALIVE },
    events.onSocket,
  );
  const bound = "fd" in place ? await listenOn(server, place.fd) : await listen(server, place, access);
  server.on("error", events.onError);
  return {
    address: bound,
    // server.close() frees the address at once but calls back only when the last connection is gone.
    close: () => {
      server.close();
      return Promise.resolve();
    },
  };
}
