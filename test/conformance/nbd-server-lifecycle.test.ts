/** Beginning and end of connections, listeners and servers, and what a client may cost. */
import { expect } from "chai";
import { rename, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";

import { pino } from "pino";

import { ReplError } from "../../src/errors.js";
import type { Address } from "../../src/net/address.js";
import { connectNbd } from "../../src/nbd/client/connect.js";
import { NbdServer } from "../../src/nbd/server/server.js";
import { Command, Option, OptionReplyType } from "../../src/nbd/wire/constants.js";
import { errorNumberOf } from "../../src/nbd/wire/error-number.js";
import { encodeInfoRequest, encodeOption } from "../../src/nbd/wire/option.js";
import { FailingDevice } from "../tools/failing-device.js";
import { MemoryDevice } from "../tools/memory-device.js";
import type { NbdServerHarness } from "../tools/nbd-server-harness.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { failureOf } from "../tools/outcome.js";
import { RawNbdClient, requestBytes } from "../tools/raw-nbd-client.js";
import { stopThisProcess } from "../tools/stopped-process.js";

const MEBIBYTE = 1024 * 1024;
const SIZE = 64 * MEBIBYTE;
const LONG_MS = 60_000;
const ESHUTDOWN = errorNumberOf("ESHUTDOWN");

describe("NBD server, life cycle", () => {
  let harness: NbdServerHarness;
  let memory: MemoryDevice;
  let device: FailingDevice;
  let clients: RawNbdClient[];

  const start = async (options: Parameters<typeof startNbdServer>[0] = {}): Promise<void> => {
    harness = await startNbdServer(options);
    memory = new MemoryDevice(SIZE);
    device = new FailingDevice(memory);
    harness.add("disk0", device);
    clients = [];
  };
  const connect = async (): Promise<RawNbdClient> => {
    const client = await RawNbdClient.transmitting(harness.address, "disk0");
    clients.push(client);
    return client;
  };
  const negotiate = async (): Promise<RawNbdClient> => {
    const client = await RawNbdClient.negotiating(harness.address);
    clients.push(client);
    return client;
  };
  /** Resolves when the server has told about this many connections. */
  const summaries = async (count: number): Promise<NbdServerHarness["summaries"]> => {
    while (harness.summaries.length < count) await new Promise(setImmediate);
    return harness.summaries;
  };
  const until = async (condition: () => boolean): Promise<void> => {
    while (!condition()) await new Promise(setImmediate);
  };

  beforeEach(() => start());

  afterEach(async () => {
    for (const client of clients) client.destroy();
    device.clear();
    await harness.close();
  });

  it("answers what is in flight at NBD_CMD_DISC, then closes cleanly", async () => {
    const client = await connect();
    const held = device.hold({});
    client.request(Command.Write, { cookie: 1, lengthBytes: 512 }, Buffer.alloc(512, 1));
    client.request(Command.Flush, { cookie: 2 });
    client.disconnect();
    await held.arrived(2);
    held.release();
    expect([(await client.reply()).cookie, (await client.reply()).cookie]).to.have.members([1, 2]);
    expect(await client.readToEnd()).to.have.length(0);
    const [summary] = await summaries(1);
    expect(summary).to.include({ clean: true, writes: 1, unansweredWrites: 0, failedWrites: 0 });
  });

  it("has no limit of time where it is told none", async () => {
    await harness.close();
    await start({ handshakeTimeoutMs: Infinity, stallTimeoutMs: 2 ** 31 });
    const { address } = harness;
    const disk = await connectNbd({ address, exportName: "disk0", connectTimeoutMs: Infinity });
    const waiting = await negotiate();
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(await waiting.option(Option.List)).to.have.length(2);
    const held = device.hold({});
    const read = disk.read(0, Buffer.alloc(512));
    await held.arrived(1);
    const closed = harness.server.close(Infinity);
    await new Promise((resolve) => setTimeout(resolve, 20));
    held.release();
    await read;
    await closed;
  });

  it("goes on listening nowhere when listen() fails", async () => {
    const sink = { info: () => expect.fail("the log is full") };
    const log = Object.assign(pino({ level: "silent" }), sink);
    const server = new NbdServer({ exports: harness.exports, log });
    const path = join(harness.directory, "other.sock");
    await failureOf(server.listen({ kind: "unix", path }));
    expect(server.addresses).to.deep.equal([]);
    await failureOf(RawNbdClient.connect({ kind: "unix", path }));
    await server.close(0);
  });

  it("answers a client that sends its requests and then FIN", async () => {
    const client = await connect();
    const held = device.hold({});
    client.request(Command.Read, { cookie: 7, lengthBytes: 512 });
    client.socket.end();
    await held.arrived(1);
    held.release();
    expect((await client.reply(512)).cookie).to.equal(7);
    expect(await client.readToEnd()).to.have.length(0);
    expect((await summaries(1))[0]).to.include({ clean: false, reads: 1, writes: 0, unansweredWrites: 0 });
  });

  it("counts a write whose payload is cut off by FIN as unanswered, and never hands it to the device", async () => {
    const client = await connect();
    client.request(Command.Write, { lengthBytes: 512 }, Buffer.alloc(100));
    client.socket.end();
    expect(await client.readToEnd()).to.have.length(0);
    expect((await summaries(1))[0]).to.include({ clean: false, writes: 1, unansweredWrites: 1 });
    expect(device.log).to.deep.equal([]);
  });

  it("counts writes that were in flight when the client vanished, once they have settled", async () => {
    const client = await connect();
    const held = device.hold({ operation: "write" });
    client.request(Command.Write, { lengthBytes: 512 }, Buffer.alloc(512));
    client.request(Command.Trim, { lengthBytes: 512 });
    await client.reply();
    await held.arrived(1);
    client.destroy();
    await until(() => harness.server.connections()[0]?.requestsInFlight === 1);
    // The server has seen the end when a whole handshake has gone by.
    await connect();
    expect(harness.summaries).to.deep.equal([]);
    expect(harness.server.connections()).to.have.length(2);
    held.release();
    expect((await summaries(1))[0]).to.include({ clean: false, writes: 2, unansweredWrites: 1 });
  });

  it("does not call a connection clean that broke after NBD_CMD_DISC, before everything was answered", async () => {
    const client = await connect();
    const held = device.hold({ operation: "write" });
    client.request(Command.Write, { lengthBytes: 512 }, Buffer.alloc(512));
    await held.arrived(1);
    client.disconnect();
    client.destroy();
    await connect();
    held.release();
    expect((await summaries(1))[0]).to.include({ clean: false, writes: 1, unansweredWrites: 1 });
  });

  it("counts writes answered with an error as failed", async () => {
    const client = await connect();
    device.fail({ operation: "write", count: 1 });
    await client.ask(Command.Write, {}, Buffer.alloc(512));
    await client.ask(Command.Write, {}, Buffer.alloc(512));
    await client.ask(Command.Write, { offset: SIZE }, Buffer.alloc(512));
    client.disconnect();
    expect((await summaries(1))[0]).to.include({
      clean: true,
      writes: 3,
      unansweredWrites: 0,
      failedWrites: 2,
    });
  });

  it("refuses each write of a client that may not write, with EPERM, and stays in step with it", async () => {
    const observed = new FailingDevice(new MemoryDevice(MEBIBYTE));
    harness.add("refused", observed, { connected: () => ({ firstWrite: () => "somebody else writes" }) });
    const client = await RawNbdClient.transmitting(harness.address, "refused");
    for (let turn = 0; turn < 2; turn++) {
      expect((await client.ask(Command.Write, {}, Buffer.alloc(512, 1))).errorNumber).to.equal(1);
      expect((await client.ask(Command.WriteZeroes, { lengthBytes: 512 })).errorNumber).to.equal(1);
      expect((await client.ask(Command.Read, { lengthBytes: 512 })).errorNumber).to.equal(0);
    }
    expect(observed.log.filter(({ operation }) => operation === "write")).to.deep.equal([]);
    client.disconnect();
    await client.readToEnd();
  });

  it("tells of the first write before the device sees it, and of no other", async () => {
    const events: string[] = [];
    const observed = new FailingDevice(new MemoryDevice(MEBIBYTE));
    harness.add("observed", observed, {
      connected: ({ peer }) => {
        events.push(`connected ${peer.slice(0, 5)}`);
        return {
          firstWrite: () => {
            events.push(`first write, device saw ${observed.log.length} requests`);
            return null;
          },
          closed: () => events.push("closed"),
        };
      },
    });
    const client = await RawNbdClient.transmitting(harness.address, "observed");
    await client.ask(Command.Read, { lengthBytes: 512 });
    await client.ask(Command.Write, { offset: MEBIBYTE }, Buffer.alloc(512));
    // Writes nothing.
    expect((await client.ask(Command.Write)).errorNumber).to.equal(0);
    expect(events).to.deep.equal(["connected unix:"]);
    await client.ask(Command.Write, {}, Buffer.alloc(512));
    await client.ask(Command.Write, {}, Buffer.alloc(512));
    client.disconnect();
    await client.readToEnd();
    expect(events).to.deep.equal(["connected unix:", "first write, device saw 1 requests", "closed"]);
  });

  it("answers new requests with ESHUTDOWN while an export is disconnected, and those in flight", async () => {
    const client = await connect();
    const other = await connect();
    const held = device.hold({ operation: "write" });
    client.request(Command.Write, { cookie: 1, lengthBytes: 512 }, Buffer.alloc(512, 9));
    await held.arrived(1);
    let disconnected = false;
    const done = harness.server.disconnect("disk0", LONG_MS).then(() => {
      disconnected = true;
    });
    expect(await other.readToEnd()).to.have.length(0);
    for (const type of [Command.Read, Command.Write]) {
      const payload = type === Command.Write ? Buffer.alloc(512) : undefined;
      expect((await client.ask(type, { cookie: 2, lengthBytes: 512 }, payload)).errorNumber).to.equal(
        ESHUTDOWN,
      );
    }
    expect(disconnected).to.be.false;
    held.release();
    expect(await client.reply()).to.include({ cookie: 1, errorNumber: 0 });
    expect(await client.readToEnd()).to.have.length(0);
    await done;
    expect(memory.contents(0, 512).equals(Buffer.alloc(512, 9))).to.be.true;
    expect(harness.summaries).to.have.length(2);
  });

  it("leaves connections to other exports alone when one is disconnected", async () => {
    harness.add("disk1", new MemoryDevice(MEBIBYTE));
    const other = await RawNbdClient.transmitting(harness.address, "disk1");
    await connect();
    await harness.server.disconnect("disk0", LONG_MS);
    expect((await other.ask(Command.Read, { lengthBytes: 512 })).errorNumber).to.equal(0);
    other.destroy();
  });

  it("closes the socket at the deadline, but waits for the device", async () => {
    const client = await connect();
    const held = device.hold({ operation: "write" });
    client.request(Command.Write, { lengthBytes: 512 }, Buffer.alloc(512));
    await held.arrived(1);
    let disconnected = false;
    const done = harness.server.disconnect("disk0", 1).then(() => {
      disconnected = true;
    });
    expect(await client.readToEnd()).to.have.length(0);
    await connect();
    expect(disconnected).to.be.false;
    held.release();
    await done;
    expect(harness.summaries[0]).to.include({ clean: false, unansweredWrites: 1 });
  });

  it("answers options with ERR_SHUTDOWN while it closes, ABORT excepted, and removes its socket", async () => {
    const busy = await connect();
    const [late, later] = [await negotiate(), await negotiate()];
    await late.option(Option.List);
    await later.option(Option.List);
    const held = device.hold({});
    busy.request(Command.Read, { lengthBytes: 512 });
    await held.arrived(1);
    const closed = harness.server.close(LONG_MS);
    const go = await late.option(Option.Go, encodeInfoRequest({ exportName: "disk0", infoTypes: [] }));
    expect(go.map((reply) => reply.type)).to.deep.equal([OptionReplyType.ErrShutdown]);
    expect((await late.option(Option.Abort)).map((reply) => reply.type)).to.deep.equal([OptionReplyType.Ack]);
    // This option can't be refused otherwise.
    later.send(encodeOption(Option.ExportName, Buffer.from("disk0")));
    expect(await later.readToEnd()).to.have.length(0);
    held.release();
    await busy.reply(512);
    await closed;
    expect(
      await stat(harness.path).catch((error: unknown) => (error as NodeJS.ErrnoException).code),
    ).to.equal("ENOENT");
    expect(harness.server.addresses).to.deep.equal([]);
  });

  it("reports its connections", async () => {
    const client = await connect();
    await client.ask(Command.Write, {}, Buffer.alloc(1000));
    await client.ask(Command.Read, { lengthBytes: 300 });
    const held = device.hold({});
    client.request(Command.Flush);
    await held.arrived(1);
    const [info] = harness.server.connections();
    expect(info).to.deep.include({
      exportName: "disk0",
      tls: null,
      requestsInFlight: 1,
      bytesRead: 300,
      bytesWritten: 1000,
    });
    expect(info?.peer).to.match(/^unix:.*#1$/);
    held.release();
  });

  it("listens on TCP and unix at once, resolves port 0, and adds and removes listeners", async () => {
    const tcp = await harness.server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
    expect(harness.server.addresses).to.deep.equal([harness.address, tcp]);
    const client = await RawNbdClient.transmitting(tcp, "disk0");
    expect([harness.address, tcp].map((address) => harness.server.clientsOf(address))).to.deep.equal([0, 1]);
    await harness.server.unlisten(tcp);
    expect((await client.ask(Command.Read, { lengthBytes: 512 })).errorNumber).to.equal(0);
    const refused = await RawNbdClient.connect(tcp).catch(
      (error: unknown) => (error as NodeJS.ErrnoException).code,
    );
    expect(refused).to.equal("ECONNREFUSED");
    expect(harness.server.addresses).to.deep.equal([harness.address]);
    client.destroy();
  });

  const errorOfListen = async (address: Address): Promise<unknown> =>
    harness.server.listen(address).then(
      () => null,
      (error: unknown) => error,
    );

  it("refuses an address in use, naming it", async () => {
    const tcp = await harness.server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
    for (const address of [tcp, harness.address]) {
      const error = await errorOfListen(address);
      expect(error).to.be.instanceOf(ReplError).with.property("code", "address-in-use");
      expect(String(error)).to.contain(address.kind === "tcp" ? String(address.port) : harness.path);
    }
  });

  it("replaces a socket file that nobody listens on, but no other file", async () => {
    const path = join(harness.directory, "stale.sock");
    const moved = join(harness.directory, "moved.sock");
    const crashed = createServer();
    await new Promise<void>((resolve) => crashed.listen(moved, resolve));
    // Closing unlinks the name it was bound to; what was moved away stays, as after a crash.
    await rename(moved, path);
    await new Promise((resolve) => crashed.close(resolve));
    expect(await errorOfListen({ kind: "unix", path })).to.be.null;
    const client = await RawNbdClient.transmitting({ kind: "unix", path }, "disk0");
    client.destroy();
    const file = join(harness.directory, "file");
    await writeFile(file, "precious");
    expect(await errorOfListen({ kind: "unix", path: file })).to.have.property("code", "address-in-use");
    expect((await stat(file)).size).to.equal(8);
  });

  it("closes connections above its cap at once and accepts again below it", async () => {
    await harness.close();
    await start({ maxConnections: 2 });
    const first = await connect();
    await connect();
    const third = await RawNbdClient.connect(harness.address);
    expect(await third.readToEnd()).to.have.length(0);
    first.disconnect();
    await first.readToEnd();
    first.destroy();
    await until(() => harness.server.connections().length === 1);
    const fourth = await connect();
    expect((await fourth.ask(Command.Read, { lengthBytes: 512 })).errorNumber).to.equal(0);
  });

  it("closes a client that does not finish its handshake in time, and no other", async () => {
    await harness.close();
    await start({ handshakeTimeoutMs: 100 });
    const prompt = await connect();
    const slow = await negotiate();
    slow.send(encodeOption(Option.Go, Buffer.alloc(100)).subarray(0, 50));
    expect(await slow.readToEnd()).to.have.length(0);
    expect(harness.log.map((line) => line.code)).to.include("handshake-timeout");
    expect((await prompt.ask(Command.Read, { lengthBytes: 512 })).errorNumber).to.equal(0);
  });

  it("goes on with a handshake whose bytes came while the server was stopped for longer than it may take", async () => {
    await harness.close();
    await start({ handshakeTimeoutMs: 1000 });
    const client = await negotiate();
    const answer = client.option(Option.List);
    stopThisProcess(1500);
    expect(await answer).to.have.length.above(0);
  });

  it("stops reading requests from a client that does not read, and serves others", async () => {
    const deaf = await connect();
    const other = await connect();
    deaf.socket.pause();
    const request = requestBytes(Command.Read, { lengthBytes: 4 * MEBIBYTE });
    for (let i = 0; i < 40; i++) deaf.send(request);
    await until(() => memory.counts.read >= 2);
    for (let i = 0; i < 50; i++) {
      expect((await other.ask(Command.Read, { lengthBytes: 512 })).errorNumber).to.equal(0);
    }
    const reads = device.log.filter((logged) => logged.lengthBytes === 4 * MEBIBYTE).length;
    expect(reads).to.be.within(2, 8);
    deaf.socket.resume();
    for (let i = 0; i < 40; i++) await deaf.reply(4 * MEBIBYTE);
  });

  it("closes a client that leaves its replies unread for too long", async () => {
    await harness.close();
    await start({ stallTimeoutMs: 100 });
    const deaf = await connect();
    deaf.socket.pause();
    deaf.request(Command.Read, { lengthBytes: 16 * MEBIBYTE });
    await summaries(1);
    expect(harness.log.map((line) => line.code)).to.include("reply-stalled");
  });

  it("keeps the number of requests in flight below its bound and answers all in the end", async () => {
    const client = await connect();
    const held = device.hold({ operation: "read" });
    const count = 1000;
    const all = Array.from({ length: count }, (_, cookie) =>
      requestBytes(Command.Read, { cookie, lengthBytes: 1 }),
    );
    client.send(Buffer.concat(all));
    await held.arrived(256);
    expect(harness.server.connections()[0]?.requestsInFlight).to.equal(256);
    held.release();
    const cookies = new Set<number>();
    for (let i = 0; i < count; i++) cookies.add((await client.reply(1)).cookie);
    expect(cookies.size).to.equal(count);
    expect(held.taken).to.equal(256);
  });

  it("stops at its bound of payload in flight, one request past it at most", async () => {
    const client = await connect();
    const held = device.hold({ operation: "write" });
    const payload = Buffer.alloc(6 * MEBIBYTE, 3);
    for (let cookie = 0; cookie < 8; cookie++) {
      client.request(
        Command.Write,
        { cookie, offset: cookie * payload.length, lengthBytes: payload.length },
        payload,
      );
    }
    await held.arrived(3);
    expect(harness.server.connections()[0]?.requestsInFlight).to.equal(3);
    held.release();
    for (let i = 0; i < 8; i++) expect((await client.reply()).errorNumber).to.equal(0);
    expect(memory.contents(0, 8 * payload.length).equals(Buffer.alloc(8 * payload.length, 3))).to.be.true;
  });
});
