/** The server around devices, hooks and contexts of others, which may do anything. */
import { expect } from "chai";

import type { BlockDevice, Extent } from "../../src/block/device.js";
import { DeviceError, type Errno, errnoOf } from "../../src/errors.js";
import { connectNbd } from "../../src/nbd/client/connect.js";
import type { NbdExport } from "../../src/nbd/server/exports.js";
import { Command, InfoType, Option } from "../../src/nbd/wire/constants.js";
import { encodeInfoRequest, encodeOption } from "../../src/nbd/wire/option.js";
import { errorNumberOf } from "../../src/nbd/wire/error-number.js";
import type { BlockDescriptor } from "../../src/nbd/wire/structured-reply.js";
import { MemoryDevice } from "../tools/memory-device.js";
import type { NbdServerHarness } from "../tools/nbd-server-harness.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { RawNbdClient } from "../tools/raw-nbd-client.js";

const SIZE = 1024 * 1024;
const EIO = errorNumberOf("EIO");
const COMMANDS = ["Read", "Write", "Flush", "Trim", "WriteZeroes", "Cache"] as const;

/** Whatever is asked of it does this. */
function deviceThat(does: () => unknown): BlockDevice {
  const device = new MemoryDevice(SIZE);
  for (const operation of ["read", "write", "zero", "trim", "flush", "extents"]) {
    Object.assign(device, { [operation]: does });
  }
  return device;
}

function throwing(reason: unknown): () => never {
  return () => {
    throw reason;
  };
}

describe("NBD server around others' code", () => {
  let harness: NbdServerHarness;
  let clients: RawNbdClient[];

  beforeEach(async () => {
    harness = await startNbdServer();
    harness.add("good", new MemoryDevice(SIZE));
    clients = [];
  });

  afterEach(async () => {
    for (const client of clients) client.destroy();
    await harness.close();
  });

  /** Exports the device as it is, not wrapped by checked(). */
  const serve = (device: BlockDevice, options: Partial<NbdExport> = {}): void => {
    harness.exports.add({ name: "odd", readOnly: false, device, ...options });
  };
  const enter = async (name = "odd", structuredReplies = false): Promise<RawNbdClient> => {
    const client = await RawNbdClient.negotiating(harness.address);
    clients.push(client);
    if (structuredReplies) await client.option(Option.StructuredReply);
    await client.option(Option.Go, encodeInfoRequest({ exportName: name, infoTypes: [] }));
    return client;
  };
  const expectAlive = async (): Promise<void> => {
    const witness = await enter("good");
    expect(await witness.ask(Command.Read, { cookie: 5, lengthBytes: 512 })).to.include({ errorNumber: 0 });
  };

  describe("answers each request with EIO when a device", () => {
    const manners: [string, () => unknown][] = [
      ["throws", throwing(new Error("thrown"))],
      ["throws what has no text", throwing(Object.create(null))],
      // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors
      ["rejects with what has no text", () => Promise.reject(Object.create(null))],
      [
        "rejects with an error whose message is none",
        () => Promise.reject(Object.assign(new Error("odd"), { message: { odd: true } })),
      ],
    ];
    for (const [manner, does] of manners) {
      for (const structuredReplies of [false, true]) {
        it(`${manner}, ${structuredReplies ? "structured" : "simple"} replies`, async () => {
          serve(deviceThat(does));
          const client = await enter("odd", structuredReplies);
          for (const [cookie, command] of COMMANDS.entries()) {
            const lengthBytes = command === "Flush" ? 0 : 512;
            const payload = command === "Write" ? Buffer.alloc(512) : undefined;
            const reply = await client.ask(Command[command], { cookie, lengthBytes }, payload);
            expect(reply, command).to.include({ cookie, errorNumber: EIO });
          }
          const long = await client.ask(Command.Read, { cookie: 77, lengthBytes: SIZE });
          expect(long).to.include({ cookie: 77, errorNumber: EIO });
          await expectAlive();
        });
      }
    }
  });

  it("answers with EIO when a device fails with an errno that NBD doesn't know", async () => {
    for (const errno of ["ENOENT", undefined]) {
      harness.exports.remove("odd");
      serve(deviceThat(() => Promise.reject(new DeviceError(errno as Errno, "odd"))));
      const client = await enter();
      expect(await client.ask(Command.Read, { lengthBytes: 512 })).to.include({ errorNumber: EIO });
    }
  });

  it("answers with the errno when a device tells where it failed by what is no number of a byte", async () => {
    for (const offset of [100n, 100.5, "100", Number.NaN]) {
      harness.exports.remove("odd");
      const error = new DeviceError("ENOMEM", "odd", { offset: offset as number });
      serve(deviceThat(() => Promise.reject(error)));
      const client = await enter("odd", true);
      const reply = await client.ask(Command.Read, { lengthBytes: 512 });
      expect(reply, String(offset)).to.include({ errorNumber: errorNumberOf("ENOMEM") });
      const lines = harness.log.filter(({ code }) => code === "request-failed");
      expect(lines.at(-1)).to.include({ errno: "ENOMEM", failedAt: null });
    }
    await expectAlive();
  });

  it("answers with ENOSPC when a device fails with an error of Node's that tells of a full disk", async () => {
    for (const code of ["ENOSPC", "EDQUOT", "EFBIG"]) {
      harness.exports.remove("odd");
      serve(deviceThat(() => Promise.reject(Object.assign(new Error("full"), { code }))));
      const client = await enter();
      const reply = await client.ask(Command.Write, {}, Buffer.alloc(512));
      expect(reply.errorNumber, code).to.equal(errorNumberOf("ENOSPC"));
    }
  });

  it("takes a device that returns no promise for one that is done", async () => {
    serve(deviceThat(() => undefined));
    const client = await enter();
    for (const [cookie, command] of COMMANDS.entries()) {
      const lengthBytes = command === "Flush" ? 0 : 512;
      const payload = command === "Write" ? Buffer.alloc(512) : undefined;
      if (command === "Cache") continue;
      const reply = await client.ask(Command[command], { cookie, lengthBytes }, payload);
      expect(reply, command).to.include({ cookie, errorNumber: 0 });
    }
  });

  it("tells one extent to a client that asks for one, whatever a context of an export tells", async () => {
    const describe = (): Promise<BlockDescriptor[]> =>
      Promise.resolve([
        { lengthBytes: 512, status: 5 },
        { lengthBytes: 512, status: 6 },
      ]);
    serve(new MemoryDevice(SIZE), { contexts: [{ name: "x:odd", describe }] });
    const client = await connectNbd({ address: harness.address, exportName: "odd", metaContexts: ["x:odd"] });
    expect(await client.blockStatus("x:odd", 0, SIZE, 1)).to.deep.equal([{ lengthBytes: 512, status: 5 }]);
    await client.close();
  });

  it("tells of a device that knows no extents that all of it is data", async () => {
    const device = new MemoryDevice(SIZE);
    Object.assign(device, {
      info: { ...device.info, extents: "none" },
      extents: throwing(new Error("unasked")),
    });
    serve(device);
    const client = await connectNbd({ address: harness.address, exportName: "odd" });
    expect(await client.blockStatus("base:allocation", 0, SIZE, 9)).to.deep.equal([
      { lengthBytes: SIZE, status: 0 },
    ]);
    await client.close();
  });

  describe("tells a client that asks for block status nothing malformed where a device has", () => {
    const whole = { lengthBytes: SIZE, hole: true, zero: true };
    const answers: [string, Extent[], string | { lengthBytes: number; status: number }[]][] = [
      ["no extent", [], "EIO"],
      ["an empty extent", [{ ...whole, lengthBytes: 0 }], "EIO"],
      [
        "an extent that goes past the range",
        [{ ...whole, lengthBytes: 2 * SIZE }],
        [{ lengthBytes: SIZE, status: 3 }],
      ],
      ["extents behind the range", [whole, { ...whole, hole: false }], [{ lengthBytes: SIZE, status: 3 }]],
      ["an extent of half a byte", [{ ...whole, lengthBytes: 0.5 }], "EIO"],
    ];
    for (const [what, extents, told] of answers) {
      it(what, async () => {
        const device = new MemoryDevice(SIZE);
        device.fill(0, Buffer.alloc(SIZE, 7));
        device.extents = () => Promise.resolve(extents);
        serve(device);
        for (const extendedHeaders of [false, true]) {
          const client = await connectNbd({ address: harness.address, exportName: "odd", extendedHeaders });
          const status = await client.blockStatus("base:allocation", 0, SIZE, 9).catch(errnoOf);
          expect(status).to.deep.equal(told);
          const read = await client.read(0, Buffer.alloc(SIZE)).then(() => "done", errnoOf);
          expect(read).to.equal(told === "EIO" && extents.length > 0 ? "EIO" : "done");
          // It has not hung up.
          await client.flush();
          await client.close();
        }
      });
    }
  });

  it("refuses requests that do not begin and end with blocks, but for the end of the export", async () => {
    const device = new MemoryDevice(1124, { minimumBytes: 512 });
    harness.exports.add({ name: "blocks", readOnly: false, device });
    const client = await RawNbdClient.negotiating(harness.address);
    const infoTypes = [InfoType.BlockSize];
    await client.option(Option.Go, encodeInfoRequest({ exportName: "blocks", infoTypes }));
    for (const [offset, lengthBytes, errorNumber] of [
      [512, 512, 0],
      [1024, 100, 0],
      [100, 412, 22],
      [512, 100, 22],
      [1024, 50, 22],
    ] as const) {
      const reply = await client.ask(Command.Read, { offset, lengthBytes });
      expect(reply.errorNumber, `${lengthBytes} bytes at ${offset}`).to.equal(errorNumber);
    }
    client.destroy();
  });

  it("advertises no preferred block size above the maximum, and a power of two", async () => {
    serve(new MemoryDevice(SIZE, { preferredBytes: 65536, maximumBytes: 40_000 }));
    const client = await connectNbd({ address: harness.address, exportName: "odd" });
    expect(client.info.blockSize).to.deep.equal({
      minimumBytes: 1,
      preferredBytes: 32768,
      maximumBytes: 40_000,
    });
    await client.close();
  });

  it("tells the lower 32 bits of a longer status, and what the contexts beside it tell", async () => {
    const describe = (_offset: number, lengthBytes: number): Promise<BlockDescriptor[]> =>
      Promise.resolve([{ lengthBytes, status: 2 ** 33 + 5 }]);
    serve(new MemoryDevice(SIZE), { contexts: [{ name: "x:long", describe }] });
    for (const extendedHeaders of [false, true]) {
      const options = { exportName: "odd", extendedHeaders, metaContexts: ["x:long"] };
      const client = await connectNbd({ address: harness.address, ...options });
      const statuses = await client.blockStatuses(["base:allocation", "x:long"], 0, SIZE, 9);
      expect(statuses.get("base:allocation")).to.deep.equal([{ lengthBytes: SIZE, status: 3 }]);
      expect(statuses.get("x:long")).to.deep.equal([{ lengthBytes: SIZE, status: 5 }]);
      await client.close();
    }
  });

  describe("closes the connection at hand, with one line in the log, when an export's hook throws:", () => {
    const hooks: Record<string, Partial<NbdExport>> = {
      "refusal()": { refusal: throwing(new Error("boom")) },
      "connected()": { connected: throwing(new Error("boom")) },
      "firstWrite()": { connected: () => ({ firstWrite: throwing(new Error("boom")) }) },
      "closed()": { connected: () => ({ closed: throwing(new Error("boom")) }) },
      "closed(), by rejection": {
        connected: () => ({ closed: () => Promise.reject(new Error("boom")) }),
      },
    };
    for (const [name, hook] of Object.entries(hooks)) {
      it(name, async () => {
        serve(new MemoryDevice(SIZE), hook);
        const witness = await enter("good");
        const client = await RawNbdClient.negotiating(harness.address);
        clients.push(client);
        client.send(encodeOption(Option.Go, encodeInfoRequest({ exportName: "odd", infoTypes: [] })));
        client.request(Command.Write, { lengthBytes: 512 }, Buffer.alloc(512));
        client.disconnect();
        await client.readToEnd();
        client.socket.end();
        while (harness.server.connections().length > 1) await new Promise(setImmediate);
        expect(await witness.ask(Command.Read, { lengthBytes: 512 })).to.include({ errorNumber: 0 });
        const lines = harness.log.filter(({ code }) => code === "internal-error");
        expect(lines.map(({ msg }) => msg)).to.have.length(1);
        expect(lines[0]?.msg).to.include("boom");
      });
    }
  });
});
