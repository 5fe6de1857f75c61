/** Our client over TLS: with the servers that people run, and with ones that are not to be trusted. */
import { expect } from "chai";
import { writeFile } from "node:fs/promises";
import { userInfo } from "node:os";
import { join } from "node:path";

import { Flag } from "../../src/block/device.js";
import { LinkError, NegotiationError } from "../../src/errors.js";
import { connectNbd } from "../../src/nbd/client/connect.js";
import type { NbdDevice } from "../../src/nbd/client/device.js";
import { formatNbdUri, parseNbdUri } from "../../src/nbd/uri.js";
import type { TlsParameters } from "../../src/net/tls/client.js";
import { PSK, useAuthorities, writePskFile } from "../tools/certificates.js";
import { NbdPeer, startNbdkitOnTcp, startQemuNbd } from "../tools/nbd-peers.js";
import { failureOf } from "../tools/outcome.js";
import { createImage } from "../tools/qemu-image.js";
import { Random, SEED } from "../tools/seed.js";

const MEBIBYTE = 1024 * 1024;

describe("NBD client over TLS, with real servers", () => {
  const certs = useAuthorities();
  let peer: NbdPeer | null = null;
  const devices: NbdDevice[] = [];

  afterEach(async () => {
    for (const device of devices.splice(0)) device.destroy(new Error("the test is over"));
    await peer?.stop();
    peer = null;
  });

  /** As a URI has it, so that every parameter goes that way. */
  async function connect(tlsParameters: TlsParameters): Promise<NbdDevice> {
    if (peer === null) throw new Error("no server was started");
    const uri = formatNbdUri({ address: peer.address, exportName: "disk", tls: true, tlsParameters });
    const device = await connectNbd({ ...parseNbdUri(uri), connectTimeoutMs: 5000 });
    devices.push(device);
    return device;
  }

  async function refusal(tlsParameters: TlsParameters): Promise<string> {
    const error = await failureOf(connect(tlsParameters));
    expect(error).to.be.instanceOf(NegotiationError).with.property("code", "tls-failed");
    return error.message;
  }

  async function readBackWhatIsWritten(device: NbdDevice): Promise<void> {
    const random = new Random(SEED);
    const expected = random.bytes(4 * MEBIBYTE);
    const pieces = Array.from({ length: 64 }, (_, i) => i * 65536);
    await Promise.all(pieces.map((at) => device.write(at, expected.subarray(at, at + 65536), Flag.None)));
    await device.flush();
    const back = Buffer.alloc(expected.length);
    await Promise.all(pieces.map((at) => device.read(at, back.subarray(at, at + 65536))));
    expect(back.equals(expected)).to.equal(true);
  }

  const nbdkit = (directory: string, ...options: string[]): Promise<NbdPeer> =>
    startNbdkitOnTcp("--tls=require", `--tls-certificates=${directory}`, ...options, "memory", "8M");

  describe("of nbdkit, by certificates", () => {
    it("reads and writes, and shows its own when it is asked for", async () => {
      peer = await nbdkit(certs.pki, "--tls-verify-peer");
      await readBackWhatIsWritten(await connect({ certificates: certs.pki }));
    });

    it("is refused without a certificate where one is demanded", async () => {
      peer = await nbdkit(certs.pki, "--tls-verify-peer");
      const error = await failureOf(connect({ certificates: await certs.authority.issue({}) }));
      expect(error).to.satisfy((e: Error) => e instanceof NegotiationError || e instanceof LinkError);
      expect(error.message).to.match(/certificate|hung up|closed the connection/);
    });

    it("refuses a server of another CA", async () => {
      peer = await nbdkit(await certs.stranger.issue());
      expect(await refusal({ certificates: certs.pki })).to.include("unknown CA");
    });

    it("refuses a server that the CAs of Node.js don't know, when it is given no other", async () => {
      peer = await nbdkit(certs.pki);
      expect(await refusal({})).to.include("unknown CA");
    });

    it("refuses an expired certificate", async () => {
      peer = await nbdkit(await certs.authority.issue({ server: { isExpired: true } }));
      expect(await refusal({ certificates: certs.pki })).to.include("its certificate has expired");
    });

    it("refuses a certificate that its CA has revoked", async () => {
      const [own, revoked] = [await certs.authority.issue(), await certs.authority.issue()];
      await certs.authority.revoke(revoked, "server", own);
      peer = await nbdkit(revoked);
      expect(await refusal({ certificates: own })).to.include("its certificate was revoked");
      await connect({ certificates: revoked });
    });

    it("refuses a certificate for another host, unless it is told the name", async () => {
      peer = await nbdkit(await certs.authority.issue({ server: { alternatives: "DNS:replica.example" } }));
      expect(await refusal({ certificates: certs.pki })).to.include(
        "for another host: IP: 127.0.0.1 is not in the cert's list: reach it by a name that this has, or say that name by tls-hostname",
      );
      await connect({ certificates: certs.pki, hostname: "replica.example" });
    });

    it("takes any certificate with tls-verify-peer=0", async () => {
      peer = await nbdkit(await certs.stranger.issue());
      await readBackWhatIsWritten(await connect({ certificates: certs.pki, verifyPeer: false }));
    });

    it("never goes on without TLS", async () => {
      peer = await startNbdkitOnTcp("--tls=off", "memory", "8M");
      const error = await failureOf(connect({ certificates: certs.pki }));
      expect(error).to.be.instanceOf(NegotiationError).with.property("code", "tls-refused");
      expect(error.message).to.include("the server refuses TLS, which is demanded");
    });

    it("never goes on without TLS where the server is too old for it", async () => {
      peer = await startNbdkitOnTcp("--mask-handshake=0", "memory", "8M");
      const error = await failureOf(connect({ certificates: certs.pki }));
      expect(error).to.be.instanceOf(NegotiationError).with.property("code", "tls-refused");
    });
  });

  describe("of nbdkit, by pre-shared keys", () => {
    const start = async (): Promise<string> => {
      const file = await writePskFile(join(certs.pki, "keys.psk"), { alice: PSK, bob: "aa".repeat(16) });
      peer = await startNbdkitOnTcp("--tls=require", `--tls-psk=${file}`, "memory", "8M");
      return file;
    };

    it("reads and writes as the user of the URI, or as the only one of the file", async () => {
      const pskFile = await start();
      await readBackWhatIsWritten(await connect({ pskFile, username: "bob" }));
      const alone = await writePskFile(join(certs.pki, "alice.psk"), { alice: PSK });
      await readBackWhatIsWritten(await connect({ pskFile: alone }));
    });

    it("asks for a user where the file has several and none is named, nor is ours among them", async () => {
      const pskFile = await start();
      const error = await failureOf(connect({ pskFile }));
      expect(error.message).to.equal(
        `"${pskFile}" has no pre-shared key of the user "${userInfo().username}": name one that it has, as in nbds://alice@HOST, or give a file with one key`,
      );
    });

    it("is refused with another key, and as another user", async () => {
      await start();
      for (const [user, key] of [
        ["alice", "bb".repeat(32)],
        ["mallory", PSK],
      ] as const) {
        const pskFile = await writePskFile(join(certs.pki, "wrong.psk"), { [user]: key });
        expect(await failureOf(connect({ pskFile }))).to.be.instanceOf(NegotiationError);
      }
    });

    it("does not take a certificate instead of the key", async () => {
      peer = await nbdkit(certs.pki);
      const pskFile = await writePskFile(join(certs.pki, "alice.psk"), { alice: PSK });
      expect(await failureOf(connect({ pskFile }))).to.be.instanceOf(NegotiationError);
    });
  });

  describe("of qemu-nbd", () => {
    const start = async (object: string): Promise<void> => {
      const directory = await NbdPeer.makeDirectory();
      const image = join(directory, "image");
      await createImage(image, "raw", 8 * MEBIBYTE);
      peer = await startQemuNbd(directory, image, "raw", "--object", object, "--tls-creds", "tls0");
    };

    it("reads and writes by certificates, on a unix socket", async () => {
      await start(`tls-creds-x509,id=tls0,endpoint=server,dir=${certs.pki},verify-peer=on`);
      await readBackWhatIsWritten(await connect({ certificates: certs.pki, hostname: "localhost" }));
      expect(await refusal({ certificates: certs.pki, hostname: "elsewhere" })).to.include("elsewhere");
    });

    for (const [version, priority] of [
      ["the newest TLS", ""],
      ["TLS 1.2", ",priority=NORMAL:-VERS-ALL:+VERS-TLS1.2"],
    ] as const) {
      it(`reads and writes by a pre-shared key, by ${version}`, async () => {
        const directory = await certs.authority.issue({});
        await writeFile(join(directory, "keys.psk"), `qemu:${PSK}\n`);
        await start(`tls-creds-psk,id=tls0,endpoint=server,dir=${directory}${priority}`);
        await readBackWhatIsWritten(await connect({ pskFile: join(directory, "keys.psk") }));
      });
    }
  });
});
