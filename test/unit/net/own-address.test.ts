import { expect } from "chai";
import { networkInterfaces } from "node:os";
import { relative } from "node:path";

import { parseAddress } from "../../../src/net/address.js";
import { leadsToOneOf } from "../../../src/net/own-address.js";

describe("an address that leads back to this process", () => {
  const [own] = Object.values(networkInterfaces()).flatMap((addresses = []) => addresses);
  const ownHost = own === undefined ? "127.0.0.1" : own.family === "IPv6" ? `[${own.address}]` : own.address;
  const leads = (address: string, ...listeners: string[]): boolean =>
    leadsToOneOf(
      listeners.map((listener) => parseAddress(listener)),
      parseAddress(address),
    );

  for (const [address, listener] of [
    ["unix:/run/view.sock", "unix:/run/view.sock"],
    ["unix:/run/../run//view.sock", "unix:/run/view.sock"],
    [`unix:${relative(process.cwd(), "/run/view.sock")}`, "unix:/run/view.sock"],
    ["192.0.2.1:10809", "192.0.2.1:10809"],
    ["primary:10809", "primary:10809"],
    ["localhost:10809", "127.0.0.1:10809"],
    ["[::1]:10809", "localhost:10809"],
    ["127.0.0.1:10809", "0.0.0.0:10809"],
    ["localhost:10809", "[::]:10809"],
    [`${ownHost}:10809`, "0.0.0.0:10809"],
  ] as const) {
    it(`is told: ${address} where it listens on ${listener}`, () => {
      expect(leads(address, "unix:/run/other.sock", "127.0.0.1:1", listener)).to.equal(true);
    });
  }

  for (const [address, listener] of [
    ["unix:/run/other.sock", "unix:/run/view.sock"],
    ["127.0.0.1:10809", "unix:/run/view.sock"],
    ["127.0.0.1:10810", "127.0.0.1:10809"],
    ["127.0.0.2:10809", "127.0.0.1:10809"],
    ["192.0.2.1:10809", "0.0.0.0:10809"],
    ["secondary:10809", "0.0.0.0:10809"],
    ["secondary:10809", "primary:10809"],
  ] as const) {
    it(`is not taken for one: ${address} where it listens on ${listener}`, () => {
      expect(leads(address, listener)).to.equal(false);
    });
  }
});
