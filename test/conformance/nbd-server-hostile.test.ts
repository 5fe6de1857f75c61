/** Clients that mean harm, or have lost their minds: each costs its own connection, and the others are served. */
import { expect } from "chai";
import { setTimeout as sleep } from "node:timers/promises";

import {
  Command,
  EXTENDED_REQUEST_MAGIC,
  Option,
  OptionReplyType,
  REQUEST_MAGIC,
} from "../../src/nbd/wire/constants.js";
import { errorNumberOf } from "../../src/nbd/wire/error-number.js";
import { encodeClientFlags } from "../../src/nbd/wire/handshake.js";
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption } from "../../src/nbd/wire/option.js";
import {
  DEFAULT_MAX_CONNECTIONS_PER_PEER,
  DEVICE_REQUESTS,
  DEVICE_WAIT_MS,
  SERVER_PAYLOAD_BYTES,
} from "../../src/nbd/server/limits.js";
import { payloadBuffers } from "../../src/block/buffer-pool.js";
import { FailingDevice } from "../tools/failing-device.js";
import { MemoryDevice } from "../tools/memory-device.js";
import type { NbdServerHarness } from "../tools/nbd-server-harness.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { RawNbdClient, requestBytes } from "../tools/raw-nbd-client.js";

const MEBIBYTE = 1024 * 1024;
const SIZE = 64 * MEBIBYTE;
const EXPORT = "disk0";
const EMPTY = Buffer.alloc(0);

describe("NBD server, hostile clients", () => {
  let harness: NbdServerHarness;
  let device: FailingDevice;
  let witness: RawNbdClient;
  const clients: RawNbdClient[] = [];

  const start = async (options: Parameters<typeof startNbdServer>[0] = {}): Promise<void> => {
    harness = await startNbdServer(options);
    device = new FailingDevice(new MemoryDevice(SIZE));
    harness.add(EXPORT, device);
    witness = await RawNbdClient.transmitting(harness.address, EXPORT);
  };
  const connect = async (): Promise<RawNbdClient> => {
    const client = await RawNbdClient.transmitting(harness.address, EXPORT);
    clients.push(client);
    return client;
  };
  const until = async (condition: () => boolean): Promise<void> => {
    while (!condition()) await new Promise(setImmediate);
  };
  /** The well-behaved client is served as ever. */
  const expectServed = async (): Promise<void> => {
    expect((await witness.ask(Command.Read, { lengthBytes: 512 })).errorNumber).to.equal(0);
  };
  const openRequests = (): number =>
    harness.server.connections().reduce((sum, { requestsInFlight }) => sum + requestsInFlight, 0);
  /** The witness alone is left. */
  const othersGone = (): Promise<void> => until(() => harness.server.connections().length === 1);

  beforeEach(() => start());

  afterEach(async () => {
    for (const client of clients.splice(0)) client.destroy();
    device.clear();
    witness.destroy();
    await harness.close();
  });

  /** A whole session with one request of each kind. */
  const session = (): Buffer => {
    const contexts = { exportName: EXPORT, queries: ["base:allocation"] };
    const payload = Buffer.alloc(300, 0x5a);
    return Buffer.concat([
      encodeClientFlags(3),
      encodeOption(Option.StructuredReply, EMPTY),
      encodeOption(Option.SetMetaContext, encodeMetaContextRequest(contexts)),
      encodeOption(Option.Go, encodeInfoRequest({ exportName: EXPORT, infoTypes: [3] })),
      requestBytes(Command.Write, { cookie: 1, offset: 1000, lengthBytes: payload.length }),
      payload,
      requestBytes(Command.Read, { cookie: 2, lengthBytes: 4096 }),
      requestBytes(Command.BlockStatus, { cookie: 3, lengthBytes: SIZE }),
      requestBytes(Command.Flush, { cookie: 4 }),
      requestBytes(Command.Disconnect),
    ]);
  };

  it("survives a disconnect at every byte of an exchange, and carries out no write that was cut", async () => {
    const bytes = session();
    const payloadEnd = bytes.indexOf(Buffer.alloc(300, 0x5a)) + 300;
    for (let cut = 0; cut <= bytes.length; cut++) {
      const client = await RawNbdClient.connect(harness.address);
      client.send(bytes.subarray(0, cut));
      client.socket.end();
      await client.readToEnd();
      client.destroy();
      const written = device.log.filter(({ operation }) => operation === "write").length;
      expect(written, `cut after ${cut} bytes`).to.equal(Math.max(0, cut - payloadEnd + 1));
      if (cut % 50 === 0) await expectServed();
    }
    await othersGone();
    await expectServed();
  });

  it("survives a reset at every byte of an exchange, whatever it was about to answer", async () => {
    const bytes = session();
    const tcp = await harness.server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
    for (let cut = 0; cut <= bytes.length; cut += 3) {
      const client = await RawNbdClient.connect(tcp);
      client.send(bytes.subarray(0, cut));
      if (cut % 2 === 0) await new Promise(setImmediate);
      client.socket.resetAndDestroy();
    }
    await othersGone();
    await expectServed();
  });

  it("answers each of several requests with the same cookie, once each", async () => {
    const client = await connect();
    const held = device.hold({ operation: "read" });
    for (let i = 0; i < 5; i++) client.request(Command.Read, { cookie: 7, offset: i, lengthBytes: 1 });
    await held.arrived(5);
    held.release();
    for (let i = 0; i < 5; i++) {
      expect(await client.reply(1)).to.include({ cookie: 7, errorNumber: 0 });
    }
    client.disconnect();
    expect(await client.readToEnd()).to.have.length(0);
  });

  it("lets half-open clients go that never speak, at the handshake's deadline", async () => {
    witness.destroy();
    await harness.close();
    await start({ handshakeTimeoutMs: 100 });
    const silent = await Promise.all(Array.from({ length: 30 }, () => RawNbdClient.connect(harness.address)));
    await expectServed();
    for (const client of silent) await client.readToEnd();
    await othersGone();
    await expectServed();
    for (const client of silent) client.destroy();
  });

  it("ends a handshake at its deadline although options keep coming", async () => {
    witness.destroy();
    await harness.close();
    await start({ handshakeTimeoutMs: 200 });
    const chatty = await RawNbdClient.negotiating(harness.address);
    clients.push(chatty);
    const end = chatty.readToEnd().then(() => true);
    while (!(await Promise.race([end, sleep(5, false)]))) chatty.send(encodeOption(Option.List, EMPTY));
    expect(harness.log.map(({ code }) => code)).to.include("handshake-timeout");
    await expectServed();
  });

  it("takes no more options than fit on their way while nobody reads the answers, and cuts the client off in the end", async () => {
    witness.destroy();
    await harness.close();
    await start({ stallTimeoutMs: 1500 });
    const greedy = await RawNbdClient.negotiating(harness.address);
    clients.push(greedy);
    greedy.socket.pause();
    const flood = Buffer.concat(Array.from({ length: 2000 }, () => encodeOption(Option.List, EMPTY)));
    let taken = 0;
    for (let i = 0; i < 100; i++) greedy.socket.write(flood, (error) => (taken += error ? 0 : 1));
    await othersGone();
    expect(harness.log.map(({ code }) => code)).to.include("reply-stalled");
    // The kernel's buffers, ours, and those options whose answers fit into them.
    expect(taken).to.be.below(40);
    await expectServed();
  });

  for (const [what, flood] of [
    ["reads", { operation: "read", bytes: requestBytes(Command.Read, { lengthBytes: 1 }) }],
    ["flushes", { operation: "flush", bytes: requestBytes(Command.Flush) }],
  ] as const) {
    it(`takes up a single request before all of a flood of ${what} that came first`, async () => {
      const flooders = await Promise.all(Array.from({ length: 10 }, connect));
      device.log.splice(0);
      for (const each of flooders) each.send(Buffer.concat(Array.from({ length: 250 }, () => flood.bytes)));
      await until(() => device.log.length > 0);
      await expectServed();
      const ofFlood = (entries: typeof device.log): number =>
        entries.filter(({ operation, lengthBytes }) => operation === flood.operation && lengthBytes < 512)
          .length;
      const at = device.log.findIndex(({ lengthBytes }) => lengthBytes === 512);
      expect(at).to.be.above(-1);
      expect(ofFlood(device.log.slice(0, at))).to.be.below(2500);
      await until(() => ofFlood(device.log) === 2500);
    });
  }

  it("bounds the requests that all clients together have under way at a disk, and answers all in the end", async () => {
    const each = 250;
    const floods = [
      requestBytes(Command.Flush),
      requestBytes(Command.Trim, { lengthBytes: MEBIBYTE }),
      requestBytes(77),
    ];
    const held = device.hold({ operation: ["flush", "trim"] });
    const greedy = await Promise.all(Array.from({ length: 30 }, connect));
    for (const [index, client] of greedy.entries()) {
      const request = floods[index % floods.length] ?? EMPTY;
      client.send(Buffer.concat(Array.from({ length: each }, () => request)));
    }
    const underWay = (): number =>
      harness.server.connections().reduce((sum, { requestsInFlight }) => sum + requestsInFlight, 0);
    await until(() => underWay() >= DEVICE_REQUESTS);
    for (let turn = 0; turn < 500; turn++) await new Promise(setImmediate);
    // And one of each client that had none.
    expect(underWay()).to.be.at.most(DEVICE_REQUESTS + greedy.length);
    await expectServed();
    const [gone] = greedy.splice(0, 1);
    gone?.destroy();
    held.release();
    for (const client of greedy) {
      for (let count = 0; count < each; count++) await client.reply();
    }
  });

  it("serves whoever asks for several things at a time while all that the disk takes stands still", async () => {
    const held = device.hold({ operation: "flush" });
    const each = DEVICE_REQUESTS / 2;
    for (const client of [await connect(), await connect()])
      client.send(Buffer.concat(Array.from({ length: each }, () => requestBytes(Command.Flush))));
    await held.arrived(DEVICE_REQUESTS);
    const reads = Array.from({ length: 8 }, () => requestBytes(Command.Read, { lengthBytes: 512 }));
    witness.send(Buffer.concat(reads));
    for (let count = 0; count < reads.length; count++)
      expect((await witness.reply(512)).errorNumber).to.equal(0);
    held.release();
  });

  it("serves whoever asks for several things at a time as well as those, more than the disk takes, who ask for one after the other", async () => {
    const held = device.hold({ operation: "flush" });
    const many: RawNbdClient[] = [];
    while (many.length < DEVICE_REQUESTS + 20) many.push(await connect());
    for (const client of many) client.send(requestBytes(Command.Flush));
    await until(() => openRequests() === many.length);
    const reads = Array.from({ length: 100 }, () => requestBytes(Command.Read, { lengthBytes: 512 }));
    witness.send(Buffer.concat(reads));
    const startMs = performance.now();
    for (let count = 0; count < reads.length; count++)
      expect((await witness.reply(512)).errorNumber).to.equal(0);
    expect(performance.now() - startMs).to.be.below((reads.length * DEVICE_WAIT_MS) / 4);
    held.release();
  });

  it("lets no queue of CACHE requests take up the places at a disk, nor the memory, that others need", async () => {
    const held = device.hold({ operation: "read", offset: 0, lengthBytes: 1 });
    const greedy = await Promise.all([1, 2, 3].map(connect));
    const cache = requestBytes(Command.Cache, { lengthBytes: 32 * MEBIBYTE });
    for (const client of greedy) client.send(Buffer.concat(Array.from({ length: 250 }, () => cache)));
    await held.arrived(greedy.length);
    const client = await connect();
    const count = 64;
    const together = device.hold({ operation: "read", offset: 40 * MEBIBYTE, lengthBytes: 4096 });
    const read = requestBytes(Command.Read, { offset: 40 * MEBIBYTE, lengthBytes: 4096 });
    client.send(Buffer.concat(Array.from({ length: count }, () => read)));
    await together.arrived(count);
    together.release();
    for (let index = 0; index < count; index++) {
      expect((await client.reply(4096)).errorNumber).to.equal(0);
    }
    held.release();
  });

  it("allocates nothing for names and queries of 4 GiB in an option of a few bytes", async () => {
    const client = await RawNbdClient.negotiating(harness.address);
    clients.push(client);
    await client.option(Option.StructuredReply);
    const huge = Buffer.alloc(12);
    huge.writeUInt32BE(0xffff_ffff, 0);
    const manyQueries = Buffer.alloc(8);
    manyQueries.writeUInt32BE(0xffff_ffff, 4);
    for (const [option, data] of [
      [Option.Go, huge],
      [Option.Info, huge],
      [Option.ListMetaContext, huge],
      [Option.SetMetaContext, manyQueries],
    ] as const) {
      const replies = await client.option(option, data);
      expect(replies.map(({ type }) => type)).to.deep.equal([OptionReplyType.ErrInvalid]);
    }
    await expectServed();
  });

  for (const [what, bytes] of [
    ["not UTF-8", Buffer.from("disk\xff", "latin1")],
    ["of a NUL", Buffer.from("disk0\0")],
    ["of 4097 bytes", Buffer.alloc(4097, "x")],
  ] as const) {
    it(`answers export names ${what} with ERR_INVALID, and stays in sync`, async () => {
      const client = await RawNbdClient.negotiating(harness.address);
      clients.push(client);
      const data = Buffer.alloc(4 + bytes.length + 2);
      data.writeUInt32BE(bytes.length, 0);
      bytes.copy(data, 4);
      for (const option of [Option.Info, Option.Go]) {
        const replies = await client.option(option, data);
        expect(replies.map(({ type }) => type)).to.deep.equal([OptionReplyType.ErrInvalid]);
      }
      expect((await client.option(Option.List)).at(-1)?.type).to.equal(OptionReplyType.Ack);
    });
  }

  it("refuses every offset and length that overflows, compact and extended, by errno and in sync", async () => {
    const einval = errorNumberOf("EINVAL");
    const enospc = errorNumberOf("ENOSPC");
    const client = await connect();
    const edges = [
      [0xffff_ffff, 0xffff_ffff, 1],
      [0xffff_ffff, 0xffff_ffff, 0xffff_ffff],
      [0x8000_0000, 0, 512],
      [0x0020_0000, 0, 512],
      [0, SIZE - 1, 2],
      [0, 0xffff_ffff, 0xffff_ffff],
    ] as const;
    for (const type of [Command.Read, Command.Trim, Command.WriteZeroes, Command.Cache]) {
      for (const [high, low, lengthBytes] of edges) {
        const header = requestBytes(type, { cookie: 9, lengthBytes });
        header.writeUInt32BE(high, 16);
        header.writeUInt32BE(low, 20);
        client.send(header);
        const expected = type === Command.WriteZeroes ? enospc : einval;
        expect(await client.reply(), `${type} ${high} ${low} ${lengthBytes}`).to.include({
          cookie: 9,
          errorNumber: expected,
        });
      }
    }
    expect((await client.ask(Command.Read, { lengthBytes: 1 })).errorNumber).to.equal(0);
  });

  it("does not mix up headers of the other kind: they cost the connection", async () => {
    const compact = await connect();
    const extendedHeader = Buffer.alloc(32);
    extendedHeader.writeUInt32BE(EXTENDED_REQUEST_MAGIC);
    compact.send(extendedHeader);
    expect(await compact.readToEnd()).to.have.length(0);
    const extended = await RawNbdClient.negotiating(harness.address);
    clients.push(extended);
    await extended.option(Option.ExtendedHeaders);
    await extended.option(Option.Go, encodeInfoRequest({ exportName: EXPORT, infoTypes: [] }));
    const compactHeader = Buffer.alloc(32);
    compactHeader.writeUInt32BE(REQUEST_MAGIC);
    extended.send(compactHeader);
    expect(await extended.readToEnd()).to.have.length(0);
    expect(harness.log.filter(({ code }) => code === "bad-request-magic")).to.have.length(2);
    await expectServed();
  });

  it("serves others while many clients announce 32 MiB each and send one byte of it", async () => {
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 60; i++) {
      const client = await connect();
      client.request(Command.Write, { lengthBytes: 32 * MEBIBYTE }, Buffer.alloc(1));
    }
    for (let i = 0; i < 20; i++) await expectServed();
    // Nobody has touched the rest of those payloads.
    expect(process.memoryUsage().rss - before).to.be.below(300 * MEBIBYTE);
    expect(device.log.filter(({ operation }) => operation === "write")).to.deep.equal([]);
  });

  it("cuts off those who hold the server's memory and don't move, as soon as somebody else needs it", async () => {
    for (let i = 0; i < 4; i++) {
      const hoarder = await connect();
      hoarder.request(Command.Write, { lengthBytes: 32 * MEBIBYTE }, Buffer.alloc(70_000));
      const deaf = await connect();
      deaf.socket.pause();
      deaf.request(Command.Read, { lengthBytes: 32 * MEBIBYTE });
    }
    // Small requests never wait for that memory.
    for (let i = 0; i < 20; i++) await expectServed();
    const honest = await connect();
    const payload = Buffer.alloc(8 * MEBIBYTE, 0x77);
    expect((await honest.ask(Command.Write, {}, payload)).errorNumber).to.equal(0);
    expect(await honest.ask(Command.Read, { lengthBytes: payload.length })).to.include({ errorNumber: 0 });
    expect(harness.log.map(({ code }) => code)).to.include("memory-short");
    expect(harness.server.connections().some(({ bytesWritten }) => bytesWritten === payload.length)).to.equal(
      true,
    );
  });

  it("serves requests of 128 KiB, one at a time, while others wait for all memory there is", async () => {
    const payload = Buffer.alloc(128 * 1024, 0x77);
    // So that it has moved as much before.
    expect((await witness.ask(Command.Write, {}, payload)).errorNumber).to.equal(0);
    for (let i = 0; i < 20; i++) {
      const hoarder = await connect();
      hoarder.request(Command.Write, { lengthBytes: 32 * MEBIBYTE }, Buffer.alloc(70_000));
    }
    await until(() => openRequests() === 20);
    for (let i = 0; i < 20; i++) {
      expect((await witness.ask(Command.Write, {}, payload)).errorNumber).to.equal(0);
      const { chunks } = await witness.ask(Command.Read, { lengthBytes: payload.length });
      expect(chunks?.[0]?.payload.equals(payload)).to.equal(true);
    }
    expect(harness.log.map(({ code }) => code)).to.not.include("memory-short");
  });

  it("serves reads of a client one of whose writes stands still, while others' that do have all memory there is", async () => {
    const payload = Buffer.alloc(128 * 1024, 0x77);
    // So that it has moved as much before.
    expect((await witness.ask(Command.Write, {}, payload)).errorNumber).to.equal(0);
    const held = device.hold({ operation: "write" });
    witness.request(Command.Write, { offset: MEBIBYTE, lengthBytes: 512 }, payload.subarray(0, 512));
    await held.arrived(1);
    for (let i = 0; i < 4; i++) {
      const other = await connect();
      for (let count = 0; count < 12; count++)
        other.request(Command.Write, { lengthBytes: MEBIBYTE }, Buffer.alloc(MEBIBYTE));
    }
    await held.arrived(SERVER_PAYLOAD_BYTES / MEBIBYTE);
    const reads = Array.from({ length: 4 }, () =>
      requestBytes(Command.Read, { lengthBytes: payload.length }),
    );
    witness.send(Buffer.concat(reads));
    for (let count = 0; count < reads.length; count++) {
      const { chunks } = await witness.reply(payload.length);
      expect(chunks?.[0]?.payload.equals(payload)).to.equal(true);
    }
    held.release();
    expect((await witness.reply()).errorNumber).to.equal(0);
  });

  it("carries out a write of 32 MiB that had to wait for memory", async () => {
    const hoarder = await connect();
    hoarder.request(Command.Write, { lengthBytes: 32 * MEBIBYTE }, Buffer.alloc(70_000));
    await until(() => openRequests() === 1);
    const honest = await connect();
    const payload = Buffer.alloc(32 * MEBIBYTE, 0x77);
    const written = honest.ask(Command.Write, {}, payload);
    await until(() => openRequests() === 2);
    hoarder.destroy();
    expect((await written).errorNumber).to.equal(0);
    const { chunks } = await honest.ask(Command.Read, { lengthBytes: payload.length });
    expect(chunks?.[0]?.payload.equals(payload)).to.equal(true);
  });

  it("uses the buffers of answers that were never read again", async () => {
    const longBytes = 8 * MEBIBYTE;
    const held = new Set<Buffer>();
    const take = payloadBuffers.take.bind(payloadBuffers);
    const give = payloadBuffers.give.bind(payloadBuffers);
    payloadBuffers.take = (lengthBytes) => {
      const buffer = take(lengthBytes);
      if (lengthBytes >= longBytes) held.add(buffer);
      return buffer;
    };
    payloadBuffers.give = (buffer) => {
      held.delete(buffer);
      give(buffer);
    };
    try {
      const deaf = await connect();
      deaf.socket.pause();
      const reads = device.hold({ operation: "read" });
      deaf.send(
        Buffer.concat([1, 2].map((cookie) => requestBytes(Command.Read, { cookie, lengthBytes: longBytes }))),
      );
      await reads.arrived(2);
      expect(held.size).to.equal(2);
      reads.release();
      await until(() => device.log.length >= 2);
      deaf.socket.destroy();
      await othersGone();
      await until(() => held.size === 0);
    } finally {
      payloadBuffers.take = take;
      payloadBuffers.give = give;
    }
    await expectServed();
  });

  it("forgets clients that hung up while they waited for memory", async () => {
    for (let i = 0; i < 20; i++) {
      const client = await connect();
      client.request(Command.Write, { lengthBytes: 32 * MEBIBYTE }, Buffer.alloc(600_000));
    }
    await until(() => openRequests() === 20);
    for (const client of clients.splice(0)) client.destroy();
    await othersGone();
    expect(harness.log.map(({ code }) => code)).to.not.include("memory-short");
  });

  it("lets in no more from one address than it may have, though they come at once, and others when they have gone", async () => {
    const { server } = harness;
    const address = await server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
    for (let round = 0; round < 3; round++) {
      const all = await Promise.all(Array.from({ length: 100 }, () => RawNbdClient.connect(address)));
      const greetings = await Promise.all(all.map((client) => client.read(18).catch(() => null)));
      expect(greetings.filter((greeting) => greeting !== null)).to.have.length(
        DEFAULT_MAX_CONNECTIONS_PER_PEER,
      );
      await expectServed();
      for (const client of all) client.destroy();
      await othersGone();
    }
  });

  it("tells of a flood of clients that it cuts off in a few lines", async () => {
    for (let i = 0; i < 50; i++) (await connect()).send(Buffer.alloc(28, 0x99));
    await othersGone();
    const told = harness.log.filter(({ code }) => code === "bad-request-magic");
    expect(told).to.have.length(10);
    await harness.server.close(1000);
    expect(harness.log.at(-1)).to.include({
      code: "bad-request-magic",
      count: 40,
      msg: "40 more of these within 10 s",
    });
  });

  it("cuts a client that ignores the end of its export, after a deadline", async () => {
    const stubborn = await connect();
    const done = harness.server.disconnect(EXPORT, 60_000);
    await stubborn.readToEnd();
    await done;
    // It never says FIN; the server lingers, then closes.
    await until(() => harness.server.connections().length === 0);
    expect(stubborn.socket.writableEnded).to.equal(false);
  });
});
