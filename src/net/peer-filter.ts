/** Which hosts may connect: addresses and networks, as --allow has them. */
import { BlockList, isIP } from "node:net";
import { ConfigError } from "../errors.js";

export class PeerFilter {
  /** node:net calls it a block list; what is in it is let in here. */
  readonly #allowed = new BlockList();

  /** @param networks as parseNetwork() takes them. @throws ConfigError */
  constructor(networks: readonly string[]) {
    for (const network of networks) {
      const { address, prefixBits } = parseNetwork(network);
      this.#allowed.addSubnet(address, prefixBits, familyOf(address));
    }
  }

  /** @param host the peer's address, as sockets have it */
  admits(host: string): boolean {
    return this.#allowed.check(host, familyOf(host));
  }
}

/** Reads `10.0.0.0/8`, `2001:db8::/32`, or an address alone. @throws ConfigError */
export function parseNetwork(text: string): { readonly address: string; readonly prefixBits: number } {
  const [address = "", prefix, ...rest] = text.split("/");
  const longest = isIP(address) === 4 ? 32 : 128;
  const prefixBits = prefix === undefined ? longest : /^\d{1,3}$/.test(prefix) ? Number(prefix) : Infinity;
  if (isIP(address) === 0 || rest.length > 0 || prefixBits > longest) {
    throw new ConfigError(
      "bad-network",
      `"${text}" is not a network: use ADDRESS or ADDRESS/BITS, as in 192.0.2.0/24 or 2001:db8::/32`,
    );
  }
  return { address, prefixBits };
}

function familyOf(address: string): "ipv4" | "ipv6" {
  return isIP(address) === 4 ? "ipv4" : "ipv6";
}
