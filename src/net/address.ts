/** Where a socket listens or connects to: the addresses of the command line, of QMP and of NBD URIs. */
import { ConfigError } from "../errors.js";

export type Address =
  | { readonly kind: "tcp"; readonly host: string; readonly port: number }
  | { readonly kind: "unix"; readonly path: string };

/** The port that IANA gave NBD. */
export const NBD_PORT = 10809;

/** sun_path of sockaddr_un(7) without its terminating NUL. */
const UNIX_PATH_MAXIMUM_BYTES = 107;

/**
 * Reads `HOST:PORT`, `[V6]:PORT` or `unix:PATH`, with an optional `tcp:` in front of the first two. A link-local address
 * has its zone, the interface, behind a % (RFC 4007, section 11).
 * @throws ConfigError with the text and what would be right
 */
export function parseAddress(text: string): Address {
  if (text.startsWith("unix:")) return unixAddress(text.slice("unix:".length));
  const match =
    /^(?:tcp:)?(?:\[(?<v6>[0-9a-fA-F:.]+(?:%[^\]/\s]+)?)\]|(?<host>[^:[\]/\s]+)):(?<port>\d{1,5})$/.exec(
      text,
    );
  const host = match?.groups?.["v6"] ?? match?.groups?.["host"];
  const port = Number(match?.groups?.["port"]);
  if (host === undefined || port > 65535) {
    throw new ConfigError(
      "bad-address",
      `"${text}" is not an address: use HOST:PORT, [V6]:PORT or unix:PATH`,
    );
  }
  return { kind: "tcp", host, port };
}

/** @throws ConfigError where the kernel would not take the path */
export function unixAddress(path: string): Address & { readonly kind: "unix" } {
  if (path === "" || path.includes("\0")) {
    throw new ConfigError("bad-address", `"unix:${path}" is not an address: a path must follow unix:`);
  }
  if (Buffer.byteLength(path) > UNIX_PATH_MAXIMUM_BYTES) {
    throw new ConfigError(
      "bad-address",
      `unix socket path "${path}" is longer than the kernel's ${UNIX_PATH_MAXIMUM_BYTES} bytes: use a shorter one`,
    );
  }
  return { kind: "unix", path };
}

/** The text that parseAddress() reads back. */
export function formatAddress(address: Address): string {
  if (address.kind === "unix") return `unix:${address.path}`;
  return `${address.host.includes(":") ? `[${address.host}]` : address.host}:${address.port}`;
}

/**
 * As net.connect() and net.Server.listen() take it. They would cut a long path, and listen on all addresses for want of a host.
 * @throws ConfigError bad-address: callers in JavaScript may give anything
 */
export function socketOptions(address: Address): { path: string } | { host: string; port: number } {
  const { kind, host, port, path } = address as { [member in "kind" | "host" | "port" | "path"]?: unknown };
  if (kind === "unix" && typeof path === "string") return { path: unixAddress(path).path };
  const isPort = Number.isInteger(port) && Number(port) >= 0 && Number(port) <= 65535;
  if (kind === "tcp" && typeof host === "string" && isPort) return { host, port: Number(port) };
  throw new ConfigError("bad-address", "an address has kind tcp, a host and a port, or kind unix and a path");
}
