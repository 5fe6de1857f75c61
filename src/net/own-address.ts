/** Whether an address leads back to this process, as far as that can be told without asking anybody: a host's name is not looked up. */
import { networkInterfaces } from "node:os";
import { resolve } from "node:path";
import type { Address } from "./address.js";

/** @param listeners where this process listens */
export function leadsToOneOf(listeners: readonly Address[], address: Address): boolean {
  return listeners.some((listener) => leadsTo(listener, address));
}

function leadsTo(listener: Address, address: Address): boolean {
  if (listener.kind === "unix" || address.kind === "unix") {
    return (
      listener.kind === "unix" && address.kind === "unix" && resolve(listener.path) === resolve(address.path)
    );
  }
  if (listener.port !== address.port) return false;
  if (listener.host === address.host) return true;
  if (isAnyHost(listener.host)) return isThisHost(address.host);
  const hosts = [listener.host, address.host];
  return hosts.every(isLoopback) && hosts.includes("localhost");
}

function isAnyHost(host: string): boolean {
  return host === "0.0.0.0" || host === "::";
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || host.startsWith("127.");
}

function isThisHost(host: string): boolean {
  const own = Object.values(networkInterfaces()).flatMap((addresses = []) => addresses);
  return isLoopback(host) || isAnyHost(host) || own.some(({ address }) => address === host);
}
