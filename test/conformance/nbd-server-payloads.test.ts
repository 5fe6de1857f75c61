/** Payloads lie where they were received until the device is done: nothing that arrives later may touch them. */
import { expect } from "chai";

import { payloadBuffers } from "../../src/block/buffer-pool.js";
import { leftSlabBytes } from "../../src/nbd/server/receive-buffer.js";
import { Command } from "../../src/nbd/wire/constants.js";
import { FailingDevice } from "../tools/failing-device.js";
import { MemoryDevice } from "../tools/memory-device.js";
import type { NbdServerHarness } from "../tools/nbd-server-harness.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { RawNbdClient, requestBytes } from "../tools/raw-nbd-client.js";
import { Random, SEED } from "../tools/seed.js";

const SIZE_BYTES = 8 * 1024 * 1024;
const ROUNDS = 12;
const LONELY_WRITES = 120;
const FILLER_BYTES = 300_000;

describe(`NBD server, payloads of writes under way (SEED=${SEED})`, () => {
  let harness: NbdServerHarness;
  let memory: MemoryDevice;
  let device: FailingDevice;
  let client: RawNbdClient;

  beforeEach(async () => {
    harness = await startNbdServer();
    memory = new MemoryDevice(SIZE_BYTES);
    device = new FailingDevice(memory);
    harness.add("disk0", device);
    client = await RawNbdClient.transmitting(harness.address, "disk0");
  });

  afterEach(async () => {
    client.destroy();
    await harness.close();
  });

  it("are written as they were sent, however long the device takes and whatever comes behind them", async () => {
    const random = new Random(SEED);
    const expected = Buffer.alloc(SIZE_BYTES);
    for (let round = 0; round < ROUNDS; round++) {
      const held = device.hold({ operation: "write" });
      const requests: Buffer[] = [];
      let writes = 0;
      for (let at = random.below(50_000); at < SIZE_BYTES && writes < 100;) {
        // Short ones that share a buffer, long ones that get one of their own, and some that are cut by its end.
        const lengthBytes = Math.min(
          SIZE_BYTES - at,
          1 + random.below(random.below(8) === 0 ? 300_000 : 9000),
        );
        const payload = random.bytes(lengthBytes);
        payload.copy(expected, at);
        requests.push(requestBytes(Command.Write, { cookie: writes, offset: at, lengthBytes }), payload);
        at += lengthBytes + random.below(20_000);
        writes++;
      }
      // In pieces that end anywhere.
      const bytes = Buffer.concat(requests);
      for (let at = 0; at < bytes.length;) {
        const pieceBytes = 1 + random.below(200_000);
        client.send(bytes.subarray(at, at + pieceBytes));
        at += pieceBytes;
        await new Promise((resolve) => setImmediate(resolve));
      }
      await held.arrived(Math.min(writes, 20));
      held.release();
      for (let i = 0; i < writes; i++) expect((await client.reply()).errorNumber).to.equal(0);
      expect(memory.contents().equals(expected), `round ${round}`).to.equal(true);
    }
  });

  it("keep no more memory than is said, also where each lies alone in what was received", async () => {
    const held = device.hold({ operation: "write" });
    const expected = Buffer.alloc(SIZE_BYTES);
    const rest = Buffer.alloc(FILLER_BYTES);
    for (let write = 0; write < LONELY_WRITES; write++) {
      expected[write] = 1 + (write % 255);
      client.send(requestBytes(Command.Write, { cookie: write, offset: write, lengthBytes: 1 }));
      client.send(expected.subarray(write, write + 1));
      // Refused, and received all the same.
      const refused = { cookie: LONELY_WRITES, offset: SIZE_BYTES, lengthBytes: rest.length };
      client.send(requestBytes(Command.Write, refused));
      client.send(rest);
      expect((await client.reply()).cookie).to.equal(LONELY_WRITES);
    }
    await held.arrived(LONELY_WRITES);
    expect(leftSlabBytes()).to.be.within(1024 * 1024, 17 * 1024 * 1024);
    held.release();
    for (let i = 0; i < LONELY_WRITES; i++) expect((await client.reply()).errorNumber).to.equal(0);
    expect(memory.contents().equals(expected)).to.equal(true);
    expect(leftSlabBytes(), "all is given back").to.equal(0);
  });
});

describe("NBD server, buffers of a connection", () => {
  let harness: NbdServerHarness;
  let device: FailingDevice;
  const inUse = new Set<Buffer>();
  const take = payloadBuffers.take.bind(payloadBuffers);
  const give = payloadBuffers.give.bind(payloadBuffers);

  beforeEach(async () => {
    payloadBuffers.take = (lengthBytes) => {
      const buffer = take(lengthBytes);
      inUse.add(buffer);
      return buffer;
    };
    payloadBuffers.give = (buffer) => {
      inUse.delete(buffer);
      give(buffer);
    };
    harness = await startNbdServer();
    device = new FailingDevice(new MemoryDevice(SIZE_BYTES));
    harness.add("disk0", device);
  });

  afterEach(async () => {
    device.clear();
    await harness.close();
    payloadBuffers.take = take;
    payloadBuffers.give = give;
  });

  const untilInUse = async (count: number): Promise<void> => {
    while (inUse.size !== count) await new Promise(setImmediate);
  };

  it("are given back as soon as a client has its answers to short reads: an idle one keeps what it receives into", async () => {
    const client = await RawNbdClient.transmitting(harness.address, "disk0");
    await untilInUse(1);
    const held = device.hold({ operation: "read" });
    for (let cookie = 0; cookie < 3; cookie++) client.request(Command.Read, { cookie, lengthBytes: 512 });
    await held.arrived(3);
    expect(inUse.size).to.equal(2);
    held.release();
    for (let count = 0; count < 3; count++) expect((await client.reply(512)).errorNumber).to.equal(0);
    await untilInUse(1);
    client.destroy();
    await untilInUse(0);
  });

  it("are given back, with all else, when a client has hung up before its answers", async () => {
    const client = await RawNbdClient.transmitting(harness.address, "disk0");
    const held = device.hold({ operation: "read" });
    client.request(Command.Read, { lengthBytes: 512 });
    await held.arrived(1);
    client.destroy();
    await new Promise(setImmediate);
    held.release();
    await untilInUse(0);
  });

  it("are given back when a client's connection is reset in the middle of its payload", async () => {
    const tcp = await harness.server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
    const client = await RawNbdClient.transmitting(tcp, "disk0");
    client.request(Command.Write, { lengthBytes: FILLER_BYTES }, Buffer.alloc(FILLER_BYTES / 2));
    await untilInUse(2);
    client.socket.resetAndDestroy();
    await untilInUse(0);
  });
});
