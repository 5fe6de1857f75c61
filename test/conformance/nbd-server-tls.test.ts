/** NBD_OPT_STARTTLS as the document has it, byte by byte against a real server, and whom it lets in. */
import { expect } from "chai";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { Socket } from "node:net";
import { Duplex } from "node:stream";
import { connect, type ConnectionOptions } from "node:tls";

import { TlsAcceptor } from "../../src/net/tls/acceptor.js";
import type { TlsAcceptorOptions, TlsSession } from "../../src/net/tls/acceptor.js";
import { ChunkType, Command, Option, OptionReplyType } from "../../src/nbd/wire/constants.js";
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption } from "../../src/nbd/wire/option.js";
import { PSK, useAuthorities, writePskFile } from "../tools/certificates.js";
import { FailingDevice } from "../tools/failing-device.js";
import { MemoryDevice } from "../tools/memory-device.js";
import type { NbdServerHarness } from "../tools/nbd-server-harness.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { failureOf } from "../tools/outcome.js";
import type { OptionReply } from "../tools/raw-nbd-client.js";
import { RawNbdClient } from "../tools/raw-nbd-client.js";
import { waitFor } from "../tools/wait-for.js";

const MEBIBYTE = 1024 * 1024;
const { Ack, Info, ErrInvalid, ErrPolicy, ErrTlsReqd } = OptionReplyType;

const types = (replies: readonly OptionReply[]): number[] => replies.map((reply) => reply.type);
const go = encodeInfoRequest({ exportName: "disk0", infoTypes: [] });

/** What a client sends first. */
function clientHello(): Promise<Buffer> {
  return new Promise((resolve) => {
    const wire = new Duplex({
      read: () => undefined,
      write: (chunk: Buffer) => {
        resolve(chunk);
      },
    });
    connect({ socket: wire });
  });
}

describe("NBD server, TLS", () => {
  const certs = useAuthorities();
  let harness: NbdServerHarness | null = null;
  const clients: RawNbdClient[] = [];

  afterEach(async () => {
    for (const client of clients.splice(0)) client.destroy();
    await harness?.close();
    harness = null;
  });

  async function start(
    mode: "on" | "require" | "off",
    options: Partial<TlsAcceptorOptions> = {},
    handshakeTimeoutMs = 10_000,
  ): Promise<NbdServerHarness> {
    const acceptor = new TlsAcceptor({
      credentials: { kind: "certificates", directory: certs.pki },
      verifyPeer: false,
      allowedNames: [],
      ...options,
    });
    harness = await startNbdServer({
      handshakeTimeoutMs,
      ...(mode !== "off" && { tls: { mode, acceptor } }),
    });
    harness.add("disk0", new MemoryDevice(MEBIBYTE));
    return harness;
  }

  async function negotiate(flags?: number): Promise<RawNbdClient> {
    if (harness === null) throw new Error("no server was started");
    const client = await RawNbdClient.negotiating(harness.address, flags);
    clients.push(client);
    return client;
  }

  /** What a client with the certificates of this directory says, or with none. */
  async function identity(directory: string | null): Promise<ConnectionOptions> {
    const ca = await readFile(certs.authority.caFile);
    if (directory === null) return { ca, servername: "localhost" };
    const cert = await readFile(join(directory, "client-cert.pem"));
    return { ca, cert, key: await readFile(join(directory, "client-key.pem")), servername: "localhost" };
  }

  async function secure(options?: ConnectionOptions): Promise<RawNbdClient> {
    const client = await (await negotiate()).startTls(options ?? (await identity(null)));
    clients.push(client);
    return client;
  }

  async function enterTransmission(client: RawNbdClient): Promise<void> {
    expect(types(await client.option(Option.Go, go))).to.deep.equal([Info, Info, Ack]);
    expect((await client.ask(Command.Read, { lengthBytes: 4096 })).errorNumber).to.equal(0);
  }

  const sessions = (): (TlsSession | null)[] => harness?.server.connections().map(({ tls }) => tls) ?? [];

  /** The one line that tells why the client was refused. */
  async function refusal(): Promise<string> {
    const warnings = (): string[] =>
      (harness?.log ?? []).filter(({ level }) => level === 40).map(({ msg }) => msg);
    const [first = "", ...rest] = await waitFor("a warning", warnings, ({ length }) => length > 0);
    expect(rest).to.deep.equal([]);
    return first;
  }

  describe("off", () => {
    it("refuses STARTTLS by policy, and serves", async () => {
      await start("off");
      const client = await negotiate();
      expect(types(await client.option(Option.StartTls))).to.deep.equal([ErrPolicy]);
      await enterTransmission(client);
    });
  });

  describe("on", () => {
    it("serves with TLS and without", async () => {
      await start("on");
      await enterTransmission(await secure());
      await enterTransmission(await negotiate());
      expect(sessions()).to.deep.equal([{ version: "TLSv1.3", user: null }, null]);
    });

    it("refuses STARTTLS with data, and once TLS is in use, and stays in step", async () => {
      await start("on");
      const plain = await negotiate();
      expect(types(await plain.option(Option.StartTls, Buffer.alloc(3)))).to.deep.equal([ErrInvalid]);
      const secured = await plain.startTls(await identity(null));
      clients.push(secured);
      expect(types(await secured.option(Option.StartTls))).to.deep.equal([ErrInvalid]);
      await enterTransmission(secured);
    });

    it("forgets what was agreed on before TLS", async () => {
      await start("on");
      const contexts = encodeMetaContextRequest({ exportName: "disk0", queries: ["base:allocation"] });
      const plain = await negotiate();
      await plain.option(Option.StructuredReply);
      expect(types(await plain.option(Option.SetMetaContext, contexts)).at(-1)).to.equal(Ack);
      const secured = await plain.startTls(await identity(null));
      clients.push(secured);
      expect(types(await secured.option(Option.SetMetaContext, contexts))).to.deep.equal([ErrInvalid]);
      expect(types(await secured.option(Option.Go, go)).at(-1)).to.equal(Ack);
      const reply = await secured.ask(Command.Read, { lengthBytes: 1 });
      expect(reply.chunks?.map(({ type }) => type)).to.deep.equal([-1], "a simple reply");
    });

    it("forgets extended headers that were agreed on before TLS", async () => {
      await start("on");
      const plain = await negotiate();
      expect(types(await plain.option(Option.ExtendedHeaders))).to.deep.equal([Ack]);
      const secured = await plain.startTls(await identity(null));
      clients.push(secured);
      // Else it would be ERR_EXT_HEADER_REQD.
      expect(types(await secured.option(Option.StructuredReply))).to.deep.equal([Ack]);
      expect(types(await secured.option(Option.Go, go)).at(-1)).to.equal(Ack);
      const reply = await secured.ask(Command.Read, { lengthBytes: 1 });
      expect(reply.chunks?.map(({ type }) => type)).to.deep.equal([ChunkType.OffsetData]);
    });

    it("drops a client whose plaintext came behind STARTTLS, in one packet or in the next", async () => {
      await start("on");
      for (const isOnePacket of [true, false]) {
        const client = await negotiate();
        const injected = encodeOption(Option.List, Buffer.alloc(0));
        const startTls = encodeOption(Option.StartTls, Buffer.alloc(0));
        if (isOnePacket) client.send(startTls, injected);
        else {
          client.send(startTls);
          expect(types(await client.optionReplies(Option.StartTls))).to.deep.equal([Ack]);
          client.send(injected);
        }
        const rest = await client.readToEnd();
        // A TLS alert at most: no answer to the option.
        expect(rest.includes(Buffer.from("disk0"))).to.equal(false);
      }
      const codes = (): (string | undefined)[] => (harness?.log ?? []).flatMap(({ code }) => code ?? []);
      await waitFor("both refusals", codes, ({ length }) => length === 2);
      expect(codes()).to.deep.equal(["plaintext-injection", "tls-failed"]);
    });

    for (const version of ["TLSv1.2", "TLSv1.3"] as const) {
      it(`speaks ${version}`, async () => {
        await start("on");
        const client = await secure({ ...(await identity(null)), minVersion: version, maxVersion: version });
        await enterTransmission(client);
      });
    }

    for (const version of ["TLSv1", "TLSv1.1"] as const) {
      it(`does not speak ${version}`, async () => {
        await start("on");
        const old = { minVersion: version, maxVersion: version, ciphers: "DEFAULT@SECLEVEL=0" } as const;
        const error = await failureOf(secure({ ...(await identity(null)), ...old }));
        expect(error).to.have.property("code", "ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION");
        expect(await refusal()).to.equal("connection closed: no TLS session: it offers no TLS 1.2 or 1.3");
      });
    }

    it("ends a TLS handshake that stalls or never begins, while others are served", async () => {
      await start("on", {}, 300);
      const client = await negotiate();
      const startTls = encodeOption(Option.StartTls, Buffer.alloc(0));
      client.send(startTls);
      await client.optionReplies(Option.StartTls);
      // The beginning of a record that says it is 512 bytes long.
      client.send(Buffer.from([0x16, 3, 1, 2, 0, 1, 0]));
      await enterTransmission(await secure());
      await client.readToEnd();
      expect(await refusal()).to.equal("connection closed: no export chosen within 300 ms");
    });

    it("logs once why it ended a TLS handshake in which nothing comes any more", async () => {
      await start("on", {}, 300);
      const client = await negotiate();
      await client.option(Option.StartTls);
      client.send(await clientHello());
      expect(await client.readToEnd(), "the server's part of the handshake").to.not.have.length(0);
      await waitFor(
        "its end",
        () => harness?.server.connections().length,
        (count) => count === 0,
      );
      expect(await refusal()).to.equal("connection closed: no export chosen within 300 ms");
    });

    it("outlives clients that hang up at each step of the TLS handshake", async () => {
      await start("on");
      const startTls = encodeOption(Option.StartTls, Buffer.alloc(0));
      for (const bytes of [[], [0x16], [0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0], [0x80, 0x80, 1, 3, 1]]) {
        const client = await negotiate();
        client.send(startTls);
        if (bytes.length > 0) await client.optionReplies(Option.StartTls);
        client.send(Buffer.from(bytes));
        client.destroy();
      }
      await waitFor(
        "all gone",
        () => harness?.server.connections().length,
        (count) => count === 0,
      );
      await enterTransmission(await secure());
    });

    it("ends at once the TLS handshake of a client that ends its side in the middle of it", async () => {
      await start("on");
      const client = await negotiate();
      await client.option(Option.StartTls);
      client.send(await clientHello());
      client.socket.end();
      await client.readToEnd();
      expect(await refusal()).to.equal("connection closed: no TLS session: it hung up in the middle of it");
    });

    it("answers a client that sends its requests and then ends its side of the session", async () => {
      await start("on");
      const device = new FailingDevice(new MemoryDevice(MEBIBYTE));
      harness?.add("slow", device);
      const client = await secure();
      await client.option(Option.Go, encodeInfoRequest({ exportName: "slow", infoTypes: [] }));
      const held = device.hold({ operation: "read" });
      client.request(Command.Read, { cookie: 7, lengthBytes: 512 });
      client.socket.end();
      await held.arrived(1);
      held.release();
      expect((await client.reply(512)).cookie).to.equal(7);
      expect(await client.readToEnd()).to.have.length(0);
    });

    it("leaves a client alone whose session is there when another one's handshake fails", async () => {
      await start("on");
      const client = await secure();
      await enterTransmission(client);
      await failureOf(secure({ ...(await identity(null)), maxVersion: "TLSv1.1", minVersion: "TLSv1" }));
      await refusal();
      expect((await client.ask(Command.Read, { lengthBytes: 4096 })).errorNumber).to.equal(0);
    });

    it("shakes no hands over a socket that is closed already", async () => {
      const acceptor = new TlsAcceptor({
        credentials: { kind: "certificates", directory: certs.pki },
        verifyPeer: false,
        allowedNames: [],
      });
      const error = await failureOf(acceptor.secure(new Socket().destroy()));
      expect(error.message).to.equal("no TLS session: it hung up before it began");
    });

    it("takes a TLS handshake that comes byte by byte", async () => {
      await start("on");
      const client = await negotiate();
      const { socket } = client;
      const write = socket.write.bind(socket);
      const dripping = (chunk: Buffer | string): boolean => {
        for (const byte of Buffer.from(chunk)) write(Buffer.of(byte));
        return true;
      };
      await client.option(Option.StartTls);
      socket.write = dripping;
      const secured = await client.shakeTlsHands(await identity(null));
      clients.push(secured);
      await enterTransmission(secured);
    });

    it("hangs up at once on what is not TLS, and says so", async () => {
      await start("on");
      const client = await negotiate();
      await client.option(Option.StartTls);
      client.send(Buffer.from([0x99]));
      expect(await client.readToEnd()).to.have.length(0);
      expect(await refusal()).to.equal("connection closed: no TLS session: what it sends is not TLS");
    });

    it("carries 32 MiB requests and hundreds of small ones", async () => {
      await start("on");
      harness?.add("large", new MemoryDevice(64 * MEBIBYTE));
      const client = await secure();
      const request = encodeInfoRequest({ exportName: "large", infoTypes: [] });
      expect(types(await client.option(Option.Go, request)).at(-1)).to.equal(Ack);
      const payload = Buffer.alloc(32 * MEBIBYTE, 0x5a);
      expect((await client.ask(Command.Write, { offset: MEBIBYTE }, payload)).errorNumber).to.equal(0);
      const back = await client.ask(Command.Read, { offset: MEBIBYTE, lengthBytes: payload.length });
      expect(back.chunks?.[0]?.payload.equals(payload)).to.equal(true);
      for (let cookie = 0; cookie < 500; cookie++) client.request(Command.Read, { cookie, lengthBytes: 512 });
      const cookies = new Set<number>();
      for (let i = 0; i < 500; i++) cookies.add((await client.reply(512)).cookie);
      expect(cookies.size).to.equal(500);
    });
  });

  describe("require", () => {
    it("answers ERR_TLS_REQD to whatever comes before TLS, and logs it once", async () => {
      await start("require");
      const client = await negotiate();
      for (const option of [Option.List, Option.Info, Option.Go, Option.StructuredReply, 0x1234]) {
        const data = option === Option.Info || option === Option.Go ? go : Buffer.alloc(0);
        expect(types(await client.option(option, data))).to.deep.equal([ErrTlsReqd]);
      }
      expect(await refusal()).to.equal("client refused: no TLS, which is required");
      const secured = await client.startTls(await identity(null));
      clients.push(secured);
      await enterTransmission(secured);
    });

    it("acknowledges ABORT before TLS", async () => {
      await start("require");
      const client = await negotiate();
      expect(types(await client.option(Option.Abort))).to.deep.equal([Ack]);
      expect(await client.readToEnd()).to.have.length(0);
    });

    for (const [what, flags] of [
      ["EXPORT_NAME before TLS", 3],
      ["a client without fixed newstyle", 0],
    ] as const) {
      it(`closes the connection to ${what}`, async () => {
        await start("require");
        const client = await negotiate(flags);
        client.send(encodeOption(Option.ExportName, Buffer.from("disk0")));
        expect(await client.readToEnd()).to.have.length(0);
        expect(await refusal()).to.equal("connection closed: a client without TLS, which is required");
      });
    }

    it("takes EXPORT_NAME over TLS", async () => {
      await start("require");
      const client = await secure();
      client.send(encodeOption(Option.ExportName, Buffer.from("disk0")));
      expect((await client.read(10)).readBigUInt64BE()).to.equal(BigInt(MEBIBYTE));
    });
  });

  describe("with client certificates demanded", () => {
    it("takes one of its CA's", async () => {
      await start("require", { verifyPeer: true });
      await enterTransmission(await secure(await identity(certs.pki)));
    });

    for (const [what, directory, reason] of [
      ["none", () => Promise.resolve(null), "it has no certificate"],
      ["another CA's", () => certs.stranger.issue(), "unknown CA: its certificate is not from ours"],
      [
        "an expired one",
        () => certs.authority.issue({ client: { isExpired: true } }),
        "its certificate has expired",
      ],
    ] as const) {
      it(`refuses ${what}, and logs why`, async () => {
        await start("require", { verifyPeer: true });
        const options = await identity(await directory());
        const error = await failureOf(secure(options).then((client) => client.option(Option.List)));
        expect(error).to.be.instanceOf(Error);
        expect(await refusal()).to.equal(`connection closed: no TLS session: ${reason}`);
        await enterTransmission(await secure(await identity(certs.pki)));
      });
    }

    it("refuses one that its CA has revoked, and logs why", async () => {
      const [own, revoked] = [await certs.authority.issue(), await certs.authority.issue({ client: {} })];
      await certs.authority.revoke(revoked, "client", own);
      const credentials = { kind: "certificates", directory: own } as const;
      await start("require", { verifyPeer: true, credentials });
      await enterTransmission(await secure(await identity(own)));
      const options = await identity(revoked);
      await failureOf(secure(options).then((client) => client.option(Option.List)));
      expect(await refusal()).to.equal("connection closed: no TLS session: its certificate was revoked");
    });

    it("lets in only the names that are allowed", async () => {
      await start("require", { verifyPeer: true, allowedNames: ["guest-host", "primary.example"] });
      const named = (name: string, alternatives: string): Promise<string> =>
        certs.authority.issue({ client: { name, alternatives } });
      await enterTransmission(await secure(await identity(await named("guest-host", "DNS:x"))));
      expect(sessions()).to.deep.equal([{ version: "TLSv1.3", user: "guest-host" }]);
      await enterTransmission(
        await secure(await identity(await named("c", "DNS:a.example,DNS:primary.example"))),
      );
      const refused = await identity(await named("other", "DNS:xprimary.example"));
      await failureOf(secure(refused).then((client) => client.option(Option.List)));
      expect(await refusal()).to.equal(
        'connection closed: no TLS session: its certificate is for "other", "xprimary.example", which is not allowed',
      );
    });

    it("takes no part of a certificate but its common name and DNS names for a name", async () => {
      await start("require", { verifyPeer: true, allowedNames: ["guest-host"] });
      const client = { subject: "/OU=CN=guest-host", alternatives: "IP:127.0.0.1,email:guest-host" };
      const nameless = await identity(await certs.authority.issue({ client }));
      await failureOf(secure(nameless).then((secured) => secured.option(Option.List)));
      expect(await refusal()).to.equal(
        "connection closed: no TLS session: its certificate has neither a common name nor a DNS name, and not everybody is allowed",
      );
    });
  });

  describe("with pre-shared keys", () => {
    const keyFile = (): string => join(certs.pki, "keys.psk");
    const psk = (identity: string, key: string): ConnectionOptions => ({
      ciphers: "TLS_AES_128_GCM_SHA256:PSK",
      checkServerIdentity: () => undefined,
      pskCallback: () => ({ identity, psk: Buffer.from(key, "hex") }),
    });

    beforeEach(async () => {
      await writePskFile(keyFile(), { alice: PSK, bob: "aa".repeat(16) });
    });

    afterEach(() => rm(keyFile()));

    const credentials = (): TlsAcceptorOptions["credentials"] => ({ kind: "psk", file: keyFile() });

    for (const maxVersion of ["TLSv1.2", "TLSv1.3"] as const) {
      it(`takes the users that it knows, by ${maxVersion}`, async () => {
        await start("require", { credentials: credentials() });
        await enterTransmission(await secure({ ...psk("alice", PSK), maxVersion }));
        await enterTransmission(await secure({ ...psk("bob", "aa".repeat(16)), maxVersion }));
        expect(sessions()).to.deep.equal(["alice", "bob"].map((user) => ({ version: maxVersion, user })));
      });

      for (const [what, user, key, reason] of [
        ["an unknown user", "mallory", PSK, 'its user, "mallory", is not among the pre-shared keys'],
        ["a wrong key", "alice", "bb".repeat(32), ""],
      ] as const) {
        it(`refuses ${what}, by ${maxVersion}`, async () => {
          await start("require", { credentials: credentials() });
          await failureOf(secure({ ...psk(user, key), maxVersion }));
          const said = await refusal();
          expect(said).to.match(/^connection closed: no TLS session: /);
          expect(said).to.include(reason);
        });
      }
    }

    it("refuses a client that wants a certificate", async () => {
      await start("require", { credentials: credentials() });
      await failureOf(secure(await identity(null)));
      expect(await refusal()).to.include("it offers none of the pre-shared keys");
    });

    it("lets in only the users that are allowed", async () => {
      await start("require", { credentials: credentials(), allowedNames: ["bob"] });
      await failureOf(secure(psk("alice", PSK)));
      expect(await refusal()).to.equal(
        'connection closed: no TLS session: its user, "alice", is not allowed',
      );
      await enterTransmission(await secure(psk("bob", "aa".repeat(16))));
    });
  });
});
