/**
 * TCP as NBD needs it: small packets leave at once, for a held back one meets the other side's delayed ACK, and costs 44 ms; and a
 * peer that vanished is found out.
 */
import { expect } from "chai";
import { join } from "node:path";

import { openNbd } from "../../src/nbd/client/open.js";
import { formatNbdUri } from "../../src/nbd/uri.js";
import { TlsAcceptor } from "../../src/net/tls/acceptor.js";
import { PSK, useAuthorities, writePskFile } from "../tools/certificates.js";
import { MemoryDevice } from "../tools/memory-device.js";
import type { NbdServerHarness } from "../tools/nbd-server-harness.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { RawNbdClient } from "../tools/raw-nbd-client.js";
import { keepalivePatienceOf, keepaliveSecondsOf, noDelayOf } from "../tools/tcp-delay.js";

const CONNECTIONS = 3;

describe("NBD over TCP", () => {
  const certs = useAuthorities();
  let harness: NbdServerHarness | null = null;

  afterEach(async () => {
    await harness?.close();
    harness = null;
  });

  /** The port of a server with TLS or without. */
  async function start(acceptor: TlsAcceptor | null, clientsReconnect = false): Promise<number> {
    const tls = acceptor === null ? {} : { tls: { mode: "require", acceptor } as const };
    harness = await startNbdServer({ ...tls, clientsReconnect });
    harness.add("disk0", new MemoryDevice(1024 * 1024));
    const address = await harness.server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
    return address.kind === "tcp" ? address.port : 0;
  }

  for (const kind of ["no TLS", "certificates", "pre-shared keys"] as const) {
    it(`holds no packet back on either side, with ${kind}`, async () => {
      const { pki } = certs;
      const keys = await writePskFile(join(pki, "keys.psk"), { alice: PSK });
      const credentials =
        kind === "certificates"
          ? ({ kind: "certificates", directory: pki } as const)
          : ({ kind: "psk", file: keys } as const);
      const tls = kind !== "no TLS";
      const port = await start(
        tls ? new TlsAcceptor({ credentials, verifyPeer: false, allowedNames: [] }) : null,
      );
      const uri = formatNbdUri({
        address: { kind: "tcp", host: "127.0.0.1", port },
        exportName: "disk0",
        tls,
        tlsParameters: tls ? (kind === "certificates" ? { certificates: pki } : { pskFile: keys }) : {},
      });
      const device = await openNbd(uri, { connections: CONNECTIONS });
      await device.read(0, Buffer.alloc(512));
      const all = new Array<boolean>(CONNECTIONS).fill(true);
      expect(noDelayOf(port)).to.deep.equal({ server: all, client: all });
      const seconds = new Array<number>(CONNECTIONS).fill(30);
      expect(keepaliveSecondsOf(port)).to.deep.equal({ server: seconds, client: seconds });
      await device.close();
    });
  }

  for (const { clientsReconnect, who, seconds } of [
    { clientsReconnect: false, who: "a client that may lose its disk", seconds: 900 },
    { clientsReconnect: true, who: "a client that connects again by itself", seconds: 10 },
  ]) {
    it(`${who} may give no sign of life for ${seconds} seconds before its connection is ended`, async () => {
      const port = await start(null, clientsReconnect);
      const client = await RawNbdClient.negotiating({ kind: "tcp", host: "127.0.0.1", port });
      expect(keepalivePatienceOf(port).server).to.deep.equal([seconds]);
      client.destroy();
    });
  }

  it("is told from a client that lets the kernel hold them back", async () => {
    const port = await start(null);
    const client = await RawNbdClient.negotiating({ kind: "tcp", host: "127.0.0.1", port });
    expect(noDelayOf(port)).to.deep.equal({ server: [true], client: [false] });
    client.destroy();
  });
});
