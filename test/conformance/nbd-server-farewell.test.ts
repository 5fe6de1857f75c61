/**
 * How a server takes leave of clients that connect again, QEMU's with reconnect-delay among them: an error, ESHUTDOWN too, is their
 * guest's, and what was not answered they ask for again.
 */
import { expect } from "chai";

import { AskAgainError } from "../../src/errors.js";
import { Command } from "../../src/nbd/wire/constants.js";
import { FailingDevice } from "../tools/failing-device.js";
import { MemoryDevice } from "../tools/memory-device.js";
import { type NbdServerHarness, startNbdServer } from "../tools/nbd-server-harness.js";
import { RawNbdClient } from "../tools/raw-nbd-client.js";

const MEBIBYTE = 1024 * 1024;
const LONG_MS = 60_000;
const SECTOR_BYTES = 512;

/** Another node has it now. */
class MovedDevice extends MemoryDevice {
  override write(): Promise<void> {
    return Promise.reject(new AskAgainError("it is elsewhere"));
  }
}

/** Resolves when the server, which is in this process, has taken up what was sent to it. */
async function taken(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
}

describe("NBD server, farewell to clients that connect again", () => {
  let harness: NbdServerHarness;
  beforeEach(async () => {
    harness = await startNbdServer();
  });
  afterEach(() => harness.close());

  it("closed so, it answers what is in flight, nothing that comes then, and ends the connection", async () => {
    const device = new FailingDevice(new MemoryDevice(MEBIBYTE));
    harness.add("disk0", device);
    const client = await RawNbdClient.transmitting(harness.address, "disk0");
    const held = device.hold({ operation: "write" });
    client.request(Command.Write, { cookie: 1, lengthBytes: SECTOR_BYTES }, Buffer.alloc(SECTOR_BYTES, 9));
    await held.arrived(1);
    const closed = harness.server.close(LONG_MS, "ignore");
    client.request(Command.Read, { cookie: 2, lengthBytes: SECTOR_BYTES });
    client.request(Command.Write, { cookie: 3, lengthBytes: SECTOR_BYTES }, Buffer.alloc(SECTOR_BYTES, 7));
    await taken();
    held.release();
    expect(await client.reply()).to.include({ cookie: 1, errorNumber: 0 });
    expect(await client.readToEnd()).to.have.length(0);
    await closed;
    expect(device.log.map(({ operation }) => operation)).to.deep.equal(["write"]);
  });

  it("closed so, it ends a connection as soon as the write that came half has come whole", async () => {
    const device = new FailingDevice(new MemoryDevice(MEBIBYTE));
    harness.add("disk0", device);
    const client = await RawNbdClient.transmitting(harness.address, "disk0");
    const held = device.hold({ operation: "read" });
    client.request(Command.Read, { cookie: 1, lengthBytes: SECTOR_BYTES });
    await held.arrived(1);
    const closed = harness.server.close(LONG_MS, "ignore");
    client.request(Command.Write, { lengthBytes: SECTOR_BYTES }, Buffer.alloc(SECTOR_BYTES - 1));
    await taken();
    held.release();
    expect(await client.reply(SECTOR_BYTES)).to.include({ cookie: 1, errorNumber: 0 });
    client.send(Buffer.alloc(1));
    expect(await client.readToEnd()).to.have.length(0);
    await closed;
    expect(device.log.map(({ operation }) => operation)).to.deep.equal(["read"]);
  });

  for (const { name, offset } of [
    { name: "a request", offset: 0 },
    { name: "a request that is done by parts", offset: 1 },
  ]) {
    it(`${name} that the device wants asked again elsewhere is not answered: what is in flight is, and the connection ends`, async () => {
      const device = new FailingDevice(new MovedDevice(MEBIBYTE, { minimumBytes: SECTOR_BYTES }));
      harness.add("disk0", device);
      const client = await RawNbdClient.transmitting(harness.address, "disk0");
      const held = device.hold({ operation: "read", offset: MEBIBYTE / 2 });
      client.request(Command.Read, { cookie: 1, offset: MEBIBYTE / 2, lengthBytes: SECTOR_BYTES });
      await held.arrived(1);
      client.request(
        Command.Write,
        { cookie: 2, offset, lengthBytes: SECTOR_BYTES },
        Buffer.alloc(SECTOR_BYTES),
      );
      await taken();
      client.request(Command.Flush, { cookie: 3 });
      await taken();
      held.release();
      expect(await client.reply(SECTOR_BYTES)).to.include({ cookie: 1, errorNumber: 0 });
      expect(await client.readToEnd()).to.have.length(0);
      expect(harness.summaries[0]).to.include({ failedWrites: 0, unansweredWrites: 1 });
    });
  }
});
