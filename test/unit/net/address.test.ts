/** Addresses as programs give them, not texts. */
import { expect } from "chai";
import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";

import { ConfigError } from "../../../src/errors.js";
import { connectNbd } from "../../../src/nbd/client/connect.js";
import { type Address, formatAddress, parseAddress, socketOptions } from "../../../src/net/address.js";
import { listen } from "../../../src/net/listen.js";
import { failureOf } from "../../tools/outcome.js";

describe("an address that there can't be", () => {
  const cut = join(tmpdir(), `${process.pid}-`.padEnd(107 - tmpdir().length - 1, "x"));

  const wrong: [string, unknown][] = [
    ["a unix path that the kernel would cut", { kind: "unix", path: `${cut}y` }],
    ["a unix address without a path", { kind: "unix" }],
    ["an empty path", { kind: "unix", path: "" }],
    ["a TCP address without a host", { kind: "tcp", port: 0 }],
    ["a TCP address without a port", { kind: "tcp", host: "127.0.0.1" }],
    ["a port that is too large", { kind: "tcp", host: "127.0.0.1", port: 65536 }],
    ["a kind that nobody knows", { kind: "vsock", host: "127.0.0.1", port: 0 }],
  ];
  for (const [what, address] of wrong) {
    it(`is neither listened on nor connected to: ${what}`, async () => {
      const server = createServer();
      try {
        const refusal = await failureOf(listen(server, address as Address, {}));
        expect(refusal).to.be.instanceOf(ConfigError).with.property("code", "bad-address");
        expect(server.listening).to.equal(false);
        expect(existsSync(cut)).to.equal(false);
      } finally {
        server.close();
        await rm(cut, { force: true });
      }
      const failure = await failureOf(connectNbd({ address: address as Address, exportName: "" }));
      expect(failure).to.be.instanceOf(ConfigError).with.property("code", "bad-address");
    });
  }
});

describe("an IPv6 address with a zone", () => {
  it("is read with the interface's name, and written so that it is read again", () => {
    for (const written of [
      "[fe80::1%eth0]:10809",
      "[fe80::5054:ff:fe12:3456%br-lan.7]:1",
      "[fe80::1%2]:10809",
    ]) {
      const address = parseAddress(written);
      expect(address).to.have.property("host", written.slice(1, written.indexOf("]")));
      expect(formatAddress(address)).to.equal(written);
    }
  });

  it("is not read without its address, or without the zone that the % announces", () => {
    for (const written of ["[%eth0]:10809", "[fe80::1%]:10809", "[fe80::1%et h0]:10809"]) {
      expect(() => parseAddress(written)).to.throw(ConfigError, `"${written}" is not an address`);
    }
  });

  it("is listened on and connected to", async () => {
    const server = createServer((socket) => socket.end("hello"));
    try {
      await listen(server, parseAddress("[::1%lo]:0"), {});
      const { port } = server.address() as AddressInfo;
      const socket = connect(socketOptions(parseAddress(`[::1%lo]:${port}`)));
      expect(await text(socket)).to.equal("hello");
    } finally {
      server.close();
    }
  });
});
