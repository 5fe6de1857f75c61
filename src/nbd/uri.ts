/**
 * NBD URIs, as doc/uri.md of the NBD project defines them on top of RFC 3986:
 * `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`, and `nbds` for TLS.
 *
 * Stricter than the document where it leaves the choice to the client: whatever would be ignored
 * (an unknown parameter, a host for a unix socket) is refused, so that a typing mistake never
 * connects to something else.
 */
import { ConfigError, describeError } from "../errors.js";
import { NBD_PORT, formatAddress, unixAddress } from "../net/address.js";
import type { Address } from "../net/address.js";
import type { TlsParameters, TlsType } from "../net/tls/client.js";
import { STRING_MAXIMUM_BYTES } from "./wire/constants.js";

const TLS_TYPES: readonly TlsType[] = ["anon", "x509", "psk"];

export interface NbdUri {
  readonly address: Address;
  /** As the server is asked for it; the empty name is the server's default export. */
  readonly exportName: string;
  /** The scheme demands TLS (`nbds`); without, TLS is at the client's option. */
  readonly tls: boolean;
  /** Its username is from `user@` in front of the host. */
  readonly tlsParameters: TlsParameters;
}

/** RFC 3986, appendix B: scheme, authority, path, query, fragment. */
const COMPONENTS = /^([^:/?#]+):(?:\/\/([^/?#]*))?([^?#]*)(?:\?([^#]*))?(#.*)?$/s;

/** Userinfo, then a bracketed IPv6 address or a name, then a port that may be empty. */
const AUTHORITY = /^(?:([^@]*)@)?(?:\[([0-9a-fA-F:.]+(?:%25[^\]]+)?)\]|([^:@[\]]*))(?::(\d*))?$/;

const RIGHT_FORMS = "use nbd://HOST[:PORT][/EXPORT] or nbd+unix:///[EXPORT]?socket=PATH";

/**
 * @throws ConfigError that names the URI and what would be right
 */
export function parseNbdUri(text: string): NbdUri {
  const [, rawScheme, authority, path, query, fragment] = COMPONENTS.exec(text) ?? [];
  if (rawScheme === undefined || path === undefined) throw badUri(text, `it is not a URI: ${RIGHT_FORMS}`);
  if (fragment !== undefined) throw badUri(text, `write the "#" of an export name as %23`);

  const scheme = rawScheme.toLowerCase();
  const parameters = parseQuery(text, query ?? "");
  const { address, username } = parseTransport(text, scheme, authority, parameters);
  const uri: NbdUri = {
    address,
    exportName: parseExportName(text, path),
    tls: scheme.startsWith("nbds"),
    tlsParameters: parseTlsParameters(text, username, parameters),
  };
  const [unknown] = parameters.keys();
  if (unknown !== undefined) throw badUri(text, `the parameter "${unknown}" is unknown`);
  return uri;
}

/** The text that parseNbdUri() reads back. */
export function formatNbdUri(uri: NbdUri): string {
  const { address, exportName, tlsParameters } = uri;
  const user = tlsParameters.username === undefined ? "" : `${encodeURIComponent(tlsParameters.username)}@`;
  const query = new Map<string, string | undefined>([
    ["socket", address.kind === "unix" ? address.path : undefined],
    ["tls-type", tlsParameters.type],
    ["tls-hostname", tlsParameters.hostname],
    [
      "tls-verify-peer",
      tlsParameters.verifyPeer === undefined ? undefined : tlsParameters.verifyPeer ? "1" : "0",
    ],
    ["tls-certificates", tlsParameters.certificates],
    ["tls-psk-file", tlsParameters.pskFile],
  ]);
  const pairs = [...query].flatMap(([key, value]) =>
    value === undefined ? [] : [`${key}=${encode(value)}`],
  );
  const scheme = (uri.tls ? "nbds" : "nbd") + (address.kind === "unix" ? "+unix" : "");
  const authority = address.kind === "unix" ? user : user + formatAuthority(address.host, address.port);
  return `${scheme}://${authority}/${encode(exportName)}${pairs.length === 0 ? "" : `?${pairs.join("&")}`}`;
}

function parseTransport(
  text: string,
  scheme: string,
  authority: string | undefined,
  parameters: Map<string, string>,
): { address: Address; username: string | undefined } {
  switch (scheme) {
    case "nbd":
    case "nbds":
      if (parameters.has("socket")) throw badUri(text, `a socket needs the scheme ${scheme}+unix`);
      return parseAuthority(text, authority ?? "");
    case "nbd+unix":
    case "nbds+unix":
      return {
        address: parseSocket(text, scheme, parameters),
        username: parseUnixUser(text, scheme, authority),
      };
    case "nbd+vsock":
    case "nbds+vsock":
      throw badUri(text, `vsock is not supported: ${RIGHT_FORMS}`);
    default:
      throw badUri(text, `the scheme "${scheme}" is not one of NBD's: ${RIGHT_FORMS}`);
  }
}

function parseAuthority(text: string, authority: string): { address: Address; username: string | undefined } {
  const match = AUTHORITY.exec(authority);
  if (match === null) throw badUri(text, `"${authority}" is not a host: use HOST, HOST:PORT or [V6]:PORT`);
  const [, user, v6, name, digits] = match;
  const host = decode(text, v6 ?? name ?? "");
  if (host === "") throw badUri(text, "the host is missing: use nbd://HOST[:PORT][/EXPORT]");
  const port = digits === undefined || digits === "" ? NBD_PORT : Number(digits);
  if (port < 1 || port > 65535) throw badUri(text, `the port ${digits ?? ""} is not within 1 to 65535`);
  return {
    address: { kind: "tcp", host, port },
    username: user === undefined ? undefined : decode(text, user),
  };
}

function parseSocket(text: string, scheme: string, parameters: Map<string, string>): Address {
  const path = take(parameters, "socket");
  if (path === undefined) throw badUri(text, `the socket is missing: use ${scheme}:///[EXPORT]?socket=PATH`);
  if (path.startsWith("\0"))
    throw badUri(text, "sockets of the abstract namespace are not supported: use a path");
  try {
    return unixAddress(path);
  } catch (error) {
    throw new ConfigError("bad-uri", `"${text}" can't be used: ${describeError(error)}`, { cause: error });
  }
}

/** A unix socket has no host, but its TLS session may have a user. */
function parseUnixUser(text: string, scheme: string, authority: string | undefined): string | undefined {
  if (authority === undefined || authority === "") return undefined;
  const user = /^([^@]+)@$/.exec(authority)?.[1];
  if (user === undefined) {
    throw badUri(text, `a unix socket has no host: use ${scheme}:///EXPORT?socket=PATH, with three slashes`);
  }
  return decode(text, user);
}

/** The path without its first slash, which only separates it from the host. */
function parseExportName(text: string, path: string): string {
  const name = decode(text, path.startsWith("/") ? path.slice(1) : path);
  if (name.includes("\0")) throw badUri(text, "an export name holds no NUL character");
  if (Buffer.byteLength(name) > STRING_MAXIMUM_BYTES) {
    throw badUri(text, `the export name is longer than the protocol's ${STRING_MAXIMUM_BYTES} bytes`);
  }
  return name;
}

function parseTlsParameters(
  text: string,
  username: string | undefined,
  parameters: Map<string, string>,
): TlsParameters {
  const type = take(parameters, "tls-type");
  const tlsType = TLS_TYPES.find((known) => known === type);
  if (type !== undefined && tlsType === undefined) {
    throw badUri(text, `tls-type is one of ${TLS_TYPES.join(", ")}, not "${type}"`);
  }
  const verify = take(parameters, "tls-verify-peer");
  if (verify !== undefined && verify !== "0" && verify !== "1") {
    throw badUri(text, `tls-verify-peer is 0 or 1, not "${verify}"`);
  }
  const named = take(parameters, "tls-username");
  if (username !== undefined && named !== undefined && username !== named) {
    throw badUri(text, `the user is "${username}" in front of the host, but tls-username is "${named}"`);
  }
  const user = username ?? named;
  const hostname = take(parameters, "tls-hostname");
  const certificates = take(parameters, "tls-certificates");
  const pskFile = take(parameters, "tls-psk-file");
  return {
    ...(user !== undefined && { username: user }),
    ...(tlsType !== undefined && { type: tlsType }),
    ...(hostname !== undefined && { hostname }),
    ...(verify !== undefined && { verifyPeer: verify === "1" }),
    ...(certificates !== undefined && { certificates }),
    ...(pskFile !== undefined && { pskFile }),
  };
}

function parseQuery(text: string, query: string): Map<string, string> {
  const parameters = new Map<string, string>();
  for (const pair of query.split("&")) {
    if (pair === "") continue;
    const equals = pair.indexOf("=");
    if (equals === -1) throw badUri(text, `the parameter "${pair}" has no value: use NAME=VALUE`);
    const key = decode(text, pair.slice(0, equals));
    if (parameters.has(key)) throw badUri(text, `the parameter "${key}" is given twice`);
    parameters.set(key, decode(text, pair.slice(equals + 1)));
  }
  return parameters;
}

/** Removes what it returns, so that what is left at the end is unknown. */
function take(parameters: Map<string, string>, key: string): string | undefined {
  const value = parameters.get(key);
  parameters.delete(key);
  return value;
}

function formatAuthority(host: string, port: number): string {
  const name = host.includes(":")
    ? formatAddress({ kind: "tcp", host: host.replace("%", "%25"), port })
    : undefined;
  return name ?? `${encodeURIComponent(host)}:${port}`;
}

/** RFC 3986 allows these in a path and in a query, and they are easier on the eye. */
function encode(text: string): string {
  return encodeURIComponent(text).replace(/%(?:2F|3A|40)/g, decodeURIComponent);
}

function decode(text: string, part: string): string {
  try {
    return decodeURIComponent(part);
  } catch (error) {
    throw new ConfigError(
      "bad-uri",
      `"${text}" can't be used: "${part}" is not percent-encoded UTF-8 (write a "%" itself as %25)`,
      { cause: error },
    );
  }
}

function badUri(text: string, reason: string): ConfigError {
  return new ConfigError("bad-uri", `"${text}" can't be used: ${reason}`);
}
