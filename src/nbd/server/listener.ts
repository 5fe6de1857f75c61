/** A listening socket: binds an address, replaces a stale unix socket file, hands out accepted sockets. */
import { lstat, unlink } from "node:fs/promises";
import type { Socket } from "node:net";
import { connect, createServer } from "node:net";

import { ReplError, describeError } from "../../errors.js";
import type { Address } from "../../net/address.js";
import { formatAddress, socketOptions } from "../../net/address.js";

export interface Listener {
  /** As bound: port 0 is resolved. */
  readonly address: Address;
  /** Accepts no more; resolves when the address is free. The sockets that it accepted live on. */
  close(): Promise<void>;
}

/** What becomes of a listener's clients. */
export interface ListenerEvents {
  readonly onSocket: (socket: Socket) => void;
  /** A connection could not be accepted, for want of file descriptors say; the listener lives on. */
  readonly onError: (error: Error) => void;
}

/**
 * @throws ReplError address-in-use when somebody listens there, cannot-listen for any other reason
 */
export async function openListener(address: Address, events: ListenerEvents): Promise<Listener> {
  const text = formatAddress(address);
  try {
    if (address.kind === "unix" && (await isStaleSocket(address.path))) await unlink(address.path);
    return await bind(address, events);
  } catch (error) {
    if (errnoCode(error) === "EADDRINUSE") {
      throw new ReplError("address-in-use", `${text} is in use`, { cause: error });
    }
    throw new ReplError("cannot-listen", `can't listen on ${text}: ${describeError(error)}`, {
      cause: error,
    });
  }
}

/** A client whose host vanished is found out by the kernel, some minutes after this much silence. */
const KEEPALIVE_DELAY_MS = 30_000;

function bind(address: Address, events: ListenerEvents): Promise<Listener> {
  // Half-open: who sends requests and then FIN, like netcat, still gets the replies.
  const server = createServer(
    { allowHalfOpen: true, noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEPALIVE_DELAY_MS },
    events.onSocket,
  );
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(socketOptions(address), () => {
      server.off("error", reject);
      server.on("error", events.onError);
      const bound = server.address();
      const port = bound !== null && typeof bound === "object" ? bound.port : 0;
      resolve({
        address: address.kind === "tcp" ? { ...address, port } : address,
        // server.close() frees the address at once but calls back only when the last connection is gone.
        close: () => {
          server.close();
          return Promise.resolve();
        },
      });
    });
  });
}

/** Whether there is a socket file that nobody listens on any more, as a crash leaves it. */
async function isStaleSocket(path: string): Promise<boolean> {
  const found = await lstat(path).catch((error: unknown) => {
    if (errnoCode(error) === "ENOENT") return null;
    throw error;
  });
  if (found?.isSocket() !== true) return false;
  return new Promise((resolve) => {
    const probe = connect({ path });
    probe.once("connect", () => {
      probe.destroy();
      resolve(false);
    });
    probe.once("error", (error) => {
      resolve(errnoCode(error) === "ECONNREFUSED");
    });
  });
}

function errnoCode(error: unknown): unknown {
  return error instanceof Error && "code" in error ? error.code : undefined;
}
