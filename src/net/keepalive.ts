/**
 * A peer whose host vanished, or a path that forgot the connection, is found out by the kernel after this much silence: else an idle
 * connection would count among a server's clients for the kernel's two hours, and a dead one would be noticed when it is needed. It also
 * keeps what is on the path from forgetting it.
 */
export const KEEPALIVE = { keepAlive: true, keepAliveInitialDelay: 30_000 } as const;
