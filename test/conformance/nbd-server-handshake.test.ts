/** The handshake as the NBD document has it, byte by byte against a real server. */
import { expect } from "chai";

import {
  ClientFlag,
  Command,
  InfoType,
  Option,
  OptionReplyType,
  TransmissionFlag,
} from "../../src/nbd/wire/constants.js";
import { decodeExportNameReply, encodeClientFlags } from "../../src/nbd/wire/handshake.js";
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption } from "../../src/nbd/wire/option.js";
import { decodeInfoItem, decodeMetaContext, decodeServerEntry } from "../../src/nbd/wire/option-reply.js";
import { MemoryDevice } from "../tools/memory-device.js";
import type { NbdServerHarness } from "../tools/nbd-server-harness.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import type { OptionReply } from "../tools/raw-nbd-client.js";
import { RawNbdClient } from "../tools/raw-nbd-client.js";

const MEBIBYTE = 1024 * 1024;
const FLAGS_OF_WRITABLE =
  TransmissionFlag.HasFlags |
  TransmissionFlag.SendFlush |
  TransmissionFlag.SendFua |
  TransmissionFlag.SendTrim |
  TransmissionFlag.SendWriteZeroes |
  TransmissionFlag.CanMultiConn |
  TransmissionFlag.SendCache |
  TransmissionFlag.SendFastZero;

const types = (replies: readonly OptionReply[]): number[] => replies.map((reply) => reply.type);
const { Ack, Server, Info, MetaContext, ErrUnsup, ErrInvalid, ErrUnknown, ErrPolicy, ErrTooBig } =
  OptionReplyType;

describe("NBD server, handshake", () => {
  let harness: NbdServerHarness;
  let client: RawNbdClient;

  beforeEach(async () => {
    harness = await startNbdServer();
    harness.add("disk0", new MemoryDevice(MEBIBYTE), { description: "the first" });
    harness.add("disk1", new MemoryDevice(2 * MEBIBYTE));
    client = await RawNbdClient.negotiating(harness.address);
  });

  afterEach(async () => {
    client.destroy();
    await harness.close();
  });

  const infoOf = (name: string, infoTypes: number[] = []): Buffer =>
    encodeInfoRequest({ exportName: name, infoTypes });
  const contextsOf = (name: string, queries: string[]): Buffer =>
    encodeMetaContextRequest({ exportName: name, queries });
  const stillInSync = async (): Promise<void> => {
    expect(types(await client.option(Option.Info, infoOf("disk0")))).to.deep.equal([Info, Info, Ack]);
  };

  it("greets with NBDMAGIC, IHAVEOPT and both handshake flags", async () => {
    const fresh = await RawNbdClient.connect(harness.address);
    expect((await fresh.read(18)).toString("hex")).to.equal("4e42444d41474943" + "49484156454f5054" + "0003");
    fresh.destroy();
  });

  it("closes on client flags that were not offered", async () => {
    const fresh = await RawNbdClient.negotiating(harness.address, 0x4);
    expect(await fresh.readToEnd()).to.have.length(0);
    expect(harness.log.map((line) => line.code)).to.include("unknown-client-flags");
  });

  for (const [flags, paddingBytes] of [
    [0, 124],
    [ClientFlag.FixedNewstyle, 124],
    [ClientFlag.NoZeroes, 0],
    [ClientFlag.NoZeroes | ClientFlag.FixedNewstyle, 0],
  ] as const) {
    it(`answers EXPORT_NAME with ${paddingBytes} zeroes for client flags ${flags}`, async () => {
      const fresh = await RawNbdClient.negotiating(harness.address, flags);
      fresh.send(encodeOption(Option.ExportName, Buffer.from("disk1")));
      const reply = await fresh.read(10 + paddingBytes);
      expect(decodeExportNameReply(reply)).to.deep.equal({
        sizeBytes: 2 * MEBIBYTE,
        transmissionFlags: FLAGS_OF_WRITABLE,
      });
      expect(reply.subarray(10).equals(Buffer.alloc(paddingBytes))).to.be.true;
      fresh.disconnect();
      expect(await fresh.readToEnd()).to.have.length(0);
    });
  }

  it("closes when a client without fixed newstyle sends anything but EXPORT_NAME", async () => {
    const fresh = await RawNbdClient.negotiating(harness.address, 0);
    fresh.send(encodeOption(Option.List, Buffer.alloc(0)));
    expect(await fresh.readToEnd()).to.have.length(0);
  });

  for (const [what, name] of [
    ["unknown", Buffer.from("disk9")],
    ["longer than 4096 bytes", Buffer.alloc(4097, "x")],
    ["not UTF-8", Buffer.from([0xff, 0xfe])],
  ] as const) {
    it(`closes on EXPORT_NAME with a name that is ${what}`, async () => {
      client.send(encodeOption(Option.ExportName, name));
      expect(await client.readToEnd()).to.have.length(0);
    });
  }

  it("closes on a wrong option magic and serves the next client", async () => {
    client.send(Buffer.alloc(16, 0x41));
    expect(await client.readToEnd()).to.have.length(0);
    client = await RawNbdClient.negotiating(harness.address);
    await stillInSync();
    expect(harness.log.filter((line) => line.code === "bad-option-magic")).to.have.length(1);
  });

  it("answers unknown options with ERR_UNSUP, skips their data and stays in sync", async () => {
    expect(types(await client.option(0x1234, Buffer.alloc(300_000, 1)))).to.deep.equal([ErrUnsup]);
    expect(types(await client.option(Option.PeekExport, Buffer.from("disk0")))).to.deep.equal([ErrUnsup]);
    expect(types(await client.option(Option.StartTls))).to.deep.equal([ErrPolicy]);
    await stillInSync();
  });

  it("serves others while a client sends an option that announces 4 GiB of data, and lets it go", async () => {
    const greedy = await RawNbdClient.negotiating(harness.address);
    const header = encodeOption(Option.Go, Buffer.alloc(0));
    header.writeUInt32BE(0xffff_ffff, 12);
    greedy.send(header, Buffer.alloc(MEBIBYTE));
    await stillInSync();
    greedy.socket.end();
    expect(await greedy.readToEnd()).to.have.length(0);
  });

  it("answers too much option data with ERR_TOO_BIG and stays in sync", async () => {
    expect(types(await client.option(Option.Go, Buffer.alloc(100_000)))).to.deep.equal([ErrTooBig]);
    await stillInSync();
  });

  it("acknowledges ABORT, ignores its data, and closes", async () => {
    expect(types(await client.option(Option.Abort, Buffer.from("bye")))).to.deep.equal([Ack]);
    expect(await client.readToEnd()).to.have.length(0);
  });

  it("lists all exports with their descriptions", async () => {
    const replies = await client.option(Option.List);
    expect(types(replies)).to.deep.equal([Server, Server, Ack]);
    expect(replies.slice(0, 2).map((reply) => decodeServerEntry(reply.data))).to.deep.equal([
      { exportName: "disk0", description: "the first" },
      { exportName: "disk1", description: "" },
    ]);
  });

  it("refuses LIST with data once", async () => {
    expect(types(await client.option(Option.List, Buffer.from("x")))).to.deep.equal([ErrInvalid]);
    await stillInSync();
  });

  it("tells size, flags, block sizes, name and description in answer to INFO", async () => {
    const requested = [InfoType.Name, InfoType.Description, InfoType.BlockSize, 0x7777];
    const replies = await client.option(Option.Info, infoOf("disk0", requested));
    expect(types(replies)).to.deep.equal([Info, Info, Info, Info, Ack]);
    expect(replies.slice(0, -1).map((reply) => decodeInfoItem(reply.data))).to.have.deep.members([
      { kind: "export", sizeBytes: MEBIBYTE, transmissionFlags: FLAGS_OF_WRITABLE },
      { kind: "name", name: "disk0" },
      { kind: "description", description: "the first" },
      { kind: "block-size", minimumBytes: 1, preferredBytes: 4096, maximumBytes: 32 * MEBIBYTE },
    ]);
  });

  it("advertises DF only once structured replies are negotiated", async () => {
    await client.option(Option.StructuredReply);
    const replies = await client.option(Option.Info, infoOf("disk0"));
    const items = replies.slice(0, -1).map((reply) => decodeInfoItem(reply.data));
    const transmissionFlags = FLAGS_OF_WRITABLE | TransmissionFlag.SendDf;
    expect(items).to.deep.include({ kind: "export", sizeBytes: MEBIBYTE, transmissionFlags });
  });

  it("advertises ROTATIONAL for a disk that turns, and for no other", async () => {
    for (const rotational of [true, false]) {
      harness.add(`turns: ${String(rotational)}`, new MemoryDevice(MEBIBYTE, { rotational }));
      const replies = await client.option(Option.Info, infoOf(`turns: ${String(rotational)}`));
      const items = replies.slice(0, -1).map((reply) => decodeInfoItem(reply.data));
      const transmissionFlags = FLAGS_OF_WRITABLE | (rotational ? TransmissionFlag.Rotational : 0);
      expect(items).to.deep.include({ kind: "export", sizeBytes: MEBIBYTE, transmissionFlags });
    }
  });

  it("advertises neither trim nor zeroes on a read-only export", async () => {
    harness.add("image", new MemoryDevice(MEBIBYTE), { readOnly: true });
    const replies = await client.option(Option.Info, infoOf("image"));
    const withoutChanges =
      FLAGS_OF_WRITABLE &
      ~(TransmissionFlag.SendTrim | TransmissionFlag.SendWriteZeroes | TransmissionFlag.SendFastZero);
    const items = replies.slice(0, -1).map((reply) => decodeInfoItem(reply.data));
    const transmissionFlags = withoutChanges | TransmissionFlag.ReadOnly;
    expect(items).to.deep.include({ kind: "export", sizeBytes: MEBIBYTE, transmissionFlags });
  });

  it("answers INFO and GO for an unknown export with ERR_UNKNOWN and goes on", async () => {
    for (const option of [Option.Info, Option.Go]) {
      const replies = await client.option(option, infoOf("disk9"));
      expect(types(replies)).to.deep.equal([ErrUnknown]);
      expect(replies[0]?.data.toString()).to.contain('"disk9"');
    }
    await stillInSync();
  });

  it("answers malformed INFO and GO with ERR_INVALID and stays in sync", async () => {
    const malformed = [
      Buffer.alloc(0),
      Buffer.from([0, 0, 0, 9, 0x64]),
      Buffer.concat([infoOf("disk0"), Buffer.alloc(1)]),
      infoOf("disk0", [1, 2]).subarray(0, -1),
      infoOf("disk\0"),
    ];
    for (const data of malformed) {
      for (const option of [Option.Info, Option.Go]) {
        expect(types(await client.option(option, data))).to.deep.equal([ErrInvalid]);
      }
    }
    await stillInSync();
  });

  for (const extended of [false, true]) {
    it(`tells in answer to GO what it told in answer to INFO, which changes nothing, extended headers: ${String(extended)}`, async () => {
      await client.option(extended ? Option.ExtendedHeaders : Option.StructuredReply);
      const select = contextsOf("disk0", ["base:allocation"]);
      expect(types(await client.option(Option.SetMetaContext, select))).to.deep.equal([MetaContext, Ack]);
      // Neither another export's information nor a list of contexts takes the selection away.
      expect(types(await client.option(Option.Info, infoOf("disk1"))).at(-1)).to.equal(Ack);
      expect(types(await client.option(Option.ListMetaContext, contextsOf("disk1", []))).at(-1)).to.equal(
        Ack,
      );
      const requested = infoOf("disk0", [InfoType.Name, InfoType.BlockSize]);
      const told = await client.option(Option.Info, requested);
      expect(types(told)).to.deep.equal([Info, Info, Info, Ack]);
      expect(await client.option(Option.Go, requested)).to.deep.equal(told);
      const flags = told.map(({ data }) => (data.length === 12 ? data.readUInt16BE(10) : 0));
      const filter = flags.some((each) => (each & TransmissionFlag.BlockStatusPayload) !== 0);
      expect(filter).to.equal(extended);
    });
  }

  it("lets the empty name stand for the only export, or for the default one", async () => {
    expect(types(await client.option(Option.Info, infoOf("")))).to.deep.equal([ErrUnknown]);
    harness.exports.remove("disk1");
    const only = await client.option(Option.Info, infoOf("", [InfoType.Name]));
    expect(only.slice(0, -1).map((reply) => decodeInfoItem(reply.data))).to.deep.include({
      kind: "name",
      name: "disk0",
    });
    harness.add("disk2", new MemoryDevice(MEBIBYTE), { isDefault: true });
    const byDefault = await client.option(Option.Info, infoOf("", [InfoType.Name]));
    expect(byDefault.slice(0, -1).map((reply) => decodeInfoItem(reply.data))).to.deep.include({
      kind: "name",
      name: "disk2",
    });
  });

  it("refuses an export for the reason that it gives, and closes on EXPORT_NAME", async () => {
    harness.add("closed", new MemoryDevice(MEBIBYTE), { refusal: () => "failed over at noon" });
    const replies = await client.option(Option.Go, infoOf("closed"));
    expect(types(replies)).to.deep.equal([ErrPolicy]);
    expect(replies[0]?.data.toString()).to.equal("failed over at noon");
    client.send(encodeOption(Option.ExportName, Buffer.from("closed")));
    expect(await client.readToEnd()).to.have.length(0);
  });

  it("requires clients to ask for a block size above 1, telling it", async () => {
    const device = new MemoryDevice(MEBIBYTE, { minimumBytes: 4096 });
    harness.exports.add({ name: "blocks", readOnly: false, device });
    const replies = await client.option(Option.Go, infoOf("blocks"));
    expect(types(replies)).to.deep.equal([Info, OptionReplyType.ErrBlockSizeReqd]);
    expect(decodeInfoItem(replies[0]?.data ?? Buffer.alloc(0))).to.deep.equal({
      kind: "block-size",
      minimumBytes: 4096,
      preferredBytes: 4096,
      maximumBytes: 32 * MEBIBYTE,
    });
    const older = await RawNbdClient.negotiating(harness.address);
    older.send(encodeOption(Option.ExportName, Buffer.from("blocks")));
    expect(await older.readToEnd(), "it can't be told").to.have.length(0);
    older.destroy();
    const asked = await client.option(Option.Go, infoOf("blocks", [InfoType.BlockSize]));
    expect(types(asked)).to.deep.equal([Info, Info, Ack]);
  });

  it("acknowledges STRUCTURED_REPLY, twice too, and refuses data in it", async () => {
    expect(types(await client.option(Option.StructuredReply, Buffer.from("x")))).to.deep.equal([ErrInvalid]);
    expect(types(await client.option(Option.StructuredReply))).to.deep.equal([Ack]);
    expect(types(await client.option(Option.StructuredReply))).to.deep.equal([Ack]);
  });

  it("refuses metadata contexts before structured replies", async () => {
    for (const option of [Option.ListMetaContext, Option.SetMetaContext]) {
      expect(types(await client.option(option, contextsOf("disk0", [])))).to.deep.equal([ErrInvalid]);
    }
  });

  for (const [queries, names] of [
    [[], ["base:allocation"]],
    [["base:"], ["base:allocation"]],
    [["base:allocation"], ["base:allocation"]],
    [["base:allocation", "base:"], ["base:allocation"]],
    [["base:", "qemu:"], ["base:allocation"]],
    [["base:nothing", "qemu:", "qemu:dirty-bitmap:", "qemu:dirty-bitmap:x", "nocolon", "", ":", "base"], []],
  ] as const) {
    it(`lists ${names.length} metadata contexts for the queries [${queries.join(", ")}]`, async () => {
      await client.option(Option.StructuredReply);
      const replies = await client.option(Option.ListMetaContext, contextsOf("disk0", [...queries]));
      expect(types(replies).at(-1)).to.equal(Ack);
      const listed = replies.slice(0, -1).map((reply) => decodeMetaContext(reply.data));
      expect(listed).to.deep.equal(names.map((name) => ({ id: 0, name })));
    });
  }

  for (const [queries, count] of [
    [[], 0],
    [["base:"], 0],
    [["base:allocation"], 1],
    [["base:allocation", "x-other:y", "base:allocation"], 1],
    [["base:nothing", "qemu:", ":", ""], 0],
  ] as const) {
    it(`selects ${count} metadata contexts for the queries [${queries.join(", ")}]`, async () => {
      await client.option(Option.StructuredReply);
      const replies = await client.option(Option.SetMetaContext, contextsOf("disk0", [...queries]));
      expect(types(replies)).to.deep.equal([...Array<number>(count).fill(MetaContext), Ack]);
    });
  }

  it("answers malformed metadata context requests with ERR_INVALID and stays in sync", async () => {
    await client.option(Option.StructuredReply);
    const right = contextsOf("disk0", ["base:allocation"]);
    const tooMany = Buffer.from(right);
    tooMany.writeUInt32BE(0xffff_ffff, 4 + 5);
    for (const data of [Buffer.alloc(0), right.subarray(0, -1), Buffer.concat([right, right]), tooMany]) {
      for (const option of [Option.ListMetaContext, Option.SetMetaContext]) {
        expect(types(await client.option(option, data))).to.deep.equal([ErrInvalid]);
      }
    }
    expect(types(await client.option(Option.SetMetaContext, contextsOf("disk9", [])))).to.deep.equal([
      ErrUnknown,
    ]);
    await stillInSync();
  });

  it("keeps no selection of metadata contexts behind one that it refused", async () => {
    await client.option(Option.StructuredReply);
    const select = contextsOf("disk0", ["base:allocation"]);
    expect(types(await client.option(Option.SetMetaContext, select))).to.deep.equal([MetaContext, Ack]);
    expect(types(await client.option(Option.SetMetaContext, contextsOf("disk9", [])))).to.deep.equal([
      ErrUnknown,
    ]);
    expect(types(await client.option(Option.Go, infoOf("disk0"))).at(-1)).to.equal(Ack);
    expect(await client.ask(Command.BlockStatus, { lengthBytes: 512 })).to.include({ errorNumber: 22 });
  });

  it("understands a handshake that arrives byte by byte", async () => {
    const fresh = await RawNbdClient.connect(harness.address);
    await fresh.read(18);
    const bytes = Buffer.concat([
      encodeClientFlags(3),
      encodeOption(77, Buffer.from("abc")),
      encodeOption(Option.Go, infoOf("disk0")),
    ]);
    for (const byte of bytes) {
      fresh.send(Buffer.from([byte]));
      await new Promise(setImmediate);
    }
    expect(types(await fresh.optionReplies(77))).to.deep.equal([ErrUnsup]);
    expect(types(await fresh.optionReplies(Option.Go))).to.deep.equal([Info, Info, Ack]);
    fresh.disconnect();
    await fresh.readToEnd();
  });
});
