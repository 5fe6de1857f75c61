/** Addresses as programs give them, not texts. */
import { expect } from "chai";
import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { ConfigError } from "../../../src/errors.js";
import { connectNbd } from "../../../src/nbd/client/connect.js";
import type { Address } from "../../../src/net/address.js";
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
