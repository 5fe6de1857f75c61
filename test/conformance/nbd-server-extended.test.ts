/** NBD_OPT_EXTENDED_HEADERS: 32-byte headers both ways, 64-bit lengths, and BLOCK_STATUS that names its contexts. */
import { expect } from "chai";

import type { MetadataContext } from "../../src/nbd/server/exports.js";
import {
  CHUNK_ERROR_BIT,
  ChunkFlag,
  ChunkType,
  Command,
  CommandFlag,
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REQUEST_MAGIC,
  Option,
  OptionReplyType,
  TransmissionFlag,
} from "../../src/nbd/wire/constants.js";
import { errorNumberOf } from "../../src/nbd/wire/error-number.js";
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption } from "../../src/nbd/wire/option.js";
import { decodeErrorChunk } from "../../src/nbd/wire/structured-reply.js";
import { FailingDevice } from "../tools/failing-device.js";
import { MemoryDevice } from "../tools/memory-device.js";
import type { NbdServerHarness } from "../tools/nbd-server-harness.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { RawNbdClient } from "../tools/raw-nbd-client.js";

const SIZE = 1024 * 1024;
const COOKIE = 0xfeed_f00d_0000_0000n;
const EXPORT = "disk0";
const DIRTY = "qemu:dirty-bitmap:test";

interface Chunk {
  readonly flags: number;
  readonly type: number;
  readonly cookie: bigint;
  readonly offset: bigint;
  readonly payload: Buffer;
}

const dirtyHalf: MetadataContext = {
  name: DIRTY,
  describe: (offset, lengthBytes) => Promise.resolve([{ lengthBytes, status: offset < SIZE / 2 ? 1 : 0 }]),
};

describe("NBD server, extended headers", () => {
  let harness: NbdServerHarness;
  let memory: MemoryDevice;
  let device: FailingDevice;
  let client: RawNbdClient;
  let transmissionFlags = 0;

  const request = (
    type: number,
    flags: number,
    offset: bigint,
    lengthBytes: bigint,
    payload: Buffer = Buffer.alloc(0),
  ): void => {
    const header = Buffer.alloc(32);
    header.writeUInt32BE(EXTENDED_REQUEST_MAGIC, 0);
    header.writeUInt16BE(flags, 4);
    header.writeUInt16BE(type, 6);
    header.writeBigUInt64BE(COOKIE, 8);
    header.writeBigUInt64BE(offset, 16);
    header.writeBigUInt64BE(lengthBytes, 24);
    client.send(header, payload);
  };

  const chunk = async (): Promise<Chunk> => {
    const header = await client.read(32);
    expect(header.readUInt32BE(0)).to.equal(EXTENDED_REPLY_MAGIC);
    return {
      flags: header.readUInt16BE(4),
      type: header.readUInt16BE(6),
      cookie: header.readBigUInt64BE(8),
      offset: header.readBigUInt64BE(16),
      payload: await client.read(Number(header.readBigUInt64BE(24))),
    };
  };

  /** The only chunk of an answer; its errno, 0 for success. */
  const outcome = async (offset: bigint): Promise<number> => {
    const { flags, type, cookie, offset: echoed, payload } = await chunk();
    expect([flags, cookie, echoed]).to.deep.equal([ChunkFlag.Done, COOKIE, offset]);
    return (type & CHUNK_ERROR_BIT) === 0 ? 0 : payload.readUInt32BE(0);
  };

  /** The stream is in sync: the next request is understood. */
  const expectInSync = async (): Promise<void> => {
    request(Command.Flush, 0, 0n, 0n);
    expect(await outcome(0n)).to.equal(0);
  };

  beforeEach(async () => {
    harness = await startNbdServer();
    memory = new MemoryDevice(SIZE);
    device = new FailingDevice(memory);
    harness.add(EXPORT, device, { contexts: [dirtyHalf] });
    client = await RawNbdClient.negotiating(harness.address);
    expect((await client.option(Option.ExtendedHeaders)).at(-1)?.type).to.equal(OptionReplyType.Ack);
    const queries = ["base:allocation", DIRTY];
    await client.option(Option.SetMetaContext, encodeMetaContextRequest({ exportName: EXPORT, queries }));
    const infos = await client.option(Option.Go, encodeInfoRequest({ exportName: EXPORT, infoTypes: [] }));
    transmissionFlags = infos.find(({ data }) => data.length === 12)?.data.readUInt16BE(10) ?? 0;
  });

  afterEach(async () => {
    client.destroy();
    await harness.close();
  });

  it("advertises the filter of contexts to those who selected some", () => {
    expect(transmissionFlags & TransmissionFlag.BlockStatusPayload).not.to.equal(0);
    expect(transmissionFlags & TransmissionFlag.SendDf).not.to.equal(0);
  });

  it("answers each command with extended chunks that repeat cookie and offset", async () => {
    const content = Buffer.alloc(4096, 0x5a);
    request(Command.Write, CommandFlag.PayloadLen, 8192n, 4096n, content);
    expect(await outcome(8192n)).to.equal(0);
    request(Command.Read, 0, 8192n, 4096n);
    const { type, offset, payload } = await chunk();
    expect([type, offset]).to.deep.equal([ChunkType.OffsetData, 8192n]);
    expect(payload.readBigUInt64BE(0)).to.equal(8192n);
    expect(payload.subarray(8).equals(content)).to.equal(true);
    for (const command of [Command.Trim, Command.WriteZeroes, Command.Cache]) {
      request(command, 0, 8192n, 4096n);
      expect(await outcome(8192n), `command ${command}`).to.equal(0);
    }
    request(Command.Read, 0, 0n, 0n);
    expect(await outcome(0n)).to.equal(0);
  });

  it("tells the offset at which the device failed", async () => {
    device.fail({ operation: "read" }, "EIO", 8300);
    request(Command.Read, 0, 8192n, 4096n);
    const { flags, type, offset, payload } = await chunk();
    expect([flags, type, offset]).to.deep.equal([ChunkFlag.Done, ChunkType.ErrorOffset, 8192n]);
    const { errorNumber, message, offset: failedAt } = decodeErrorChunk(type, payload);
    expect([errorNumber, failedAt]).to.deep.equal([errorNumberOf("EIO"), 8300]);
    expect(message).to.include("injected EIO");
    await expectInSync();
  });

  it("refuses lengths and offsets of up to 64 bits by errno, echoes them, and stays in sync", async () => {
    const huge = 2n ** 64n - 1n;
    const cases: [number, number][] = [
      [Command.Read, errorNumberOf("EINVAL")],
      [Command.Trim, errorNumberOf("EINVAL")],
      [Command.WriteZeroes, errorNumberOf("ENOSPC")],
      [Command.BlockStatus, errorNumberOf("EINVAL")],
      [Command.Cache, errorNumberOf("EINVAL")],
    ];
    for (const [command, errno] of cases) {
      for (const [offset, lengthBytes] of [
        [0n, huge],
        [huge, 512n],
        [huge, huge],
        [2n ** 63n, 2n ** 63n],
        [512n, BigInt(SIZE)],
      ] as const) {
        request(command, 0, offset, lengthBytes);
        expect(await outcome(offset), `command ${command} at ${offset}+${lengthBytes}`).to.equal(errno);
      }
    }
    await expectInSync();
  });

  it("trims and zeroes more than 4 GiB by one request", async () => {
    const large = 2 ** 33;
    harness.add("large", new MemoryDevice(large));
    client.destroy();
    client = await RawNbdClient.negotiating(harness.address);
    await client.option(Option.ExtendedHeaders);
    await client.option(Option.Go, encodeInfoRequest({ exportName: "large", infoTypes: [] }));
    for (const command of [Command.Trim, Command.WriteZeroes]) {
      request(command, 0, 0n, BigInt(large));
      expect(await outcome(0n)).to.equal(0);
    }
  });

  it("swallows a payload that the command does not take", async () => {
    const payload = Buffer.alloc(100_000, 0x25);
    for (const command of [
      Command.Read,
      Command.Trim,
      Command.Flush,
      Command.Cache,
      Command.WriteZeroes,
      Command.Resize,
      99,
    ]) {
      request(command, CommandFlag.PayloadLen, 0n, BigInt(payload.length), payload);
      expect(await outcome(0n), `command ${command}`).to.equal(errorNumberOf("EINVAL"));
    }
    await expectInSync();
  });

  it("takes a write without the payload flag for one without payload, and refuses it", async () => {
    request(Command.Write, 0, 0n, 4096n);
    expect(await outcome(0n)).to.equal(errorNumberOf("EINVAL"));
    await expectInSync();
  });

  it("swallows the payload of a refused write", async () => {
    request(Command.Write, CommandFlag.PayloadLen, BigInt(SIZE), 4096n, Buffer.alloc(4096, 1));
    expect(await outcome(BigInt(SIZE))).to.equal(errorNumberOf("ENOSPC"));
    await expectInSync();
  });

  for (const [command, payloadBytes] of [
    [Command.Write, 2n ** 25n + 1n],
    [Command.Write, 2n ** 32n],
    [Command.Flush, 2n ** 64n - 1n],
  ] as const) {
    it(`hangs up on a payload of more than 32 MiB: of ${payloadBytes} bytes, command ${command}`, async () => {
      request(command, CommandFlag.PayloadLen, 0n, payloadBytes);
      expect((await client.readToEnd()).length).to.equal(0);
      expect(harness.log.at(-1)?.code).to.equal("payload-too-long");
    });
  }

  it("swallows a payload of 32 MiB that is refused, and takes one that is not", async () => {
    const payload = Buffer.alloc(2 ** 25, 0x25);
    request(Command.Write, CommandFlag.PayloadLen, 0n, BigInt(payload.length), payload);
    expect(await outcome(0n)).to.equal(errorNumberOf("ENOSPC"));
    await expectInSync();
    const large = new MemoryDevice(2 ** 25);
    harness.add("large", large);
    client.destroy();
    client = await RawNbdClient.negotiating(harness.address);
    await client.option(Option.ExtendedHeaders);
    await client.option(Option.Go, encodeInfoRequest({ exportName: "large", infoTypes: [] }));
    request(Command.Write, CommandFlag.PayloadLen, 0n, BigInt(payload.length), payload);
    expect(await outcome(0n)).to.equal(0);
    const back = Buffer.alloc(payload.length);
    await large.read(0, back);
    expect(back.equals(payload)).to.equal(true);
  });

  it("takes no filter of contexts, advertises none, where no context is selected", async () => {
    client.destroy();
    client = await RawNbdClient.negotiating(harness.address);
    await client.option(Option.ExtendedHeaders);
    const infos = await client.option(Option.Go, encodeInfoRequest({ exportName: EXPORT, infoTypes: [] }));
    const flags = infos.find(({ data }) => data.length === 12)?.data.readUInt16BE(10) ?? 0xffff;
    expect(flags & TransmissionFlag.BlockStatusPayload).to.equal(0);
    request(Command.BlockStatus, CommandFlag.PayloadLen, 0n, 12n, Buffer.alloc(12, 1));
    expect(await outcome(0n)).to.equal(errorNumberOf("EINVAL"));
    request(Command.BlockStatus, 0, 0n, 4096n);
    expect(await outcome(0n)).to.equal(errorNumberOf("EINVAL"));
    await expectInSync();
  });

  it("describes more than 4 GiB by one descriptor", async () => {
    const large = 2 ** 40;
    harness.add("large", new MemoryDevice(large));
    client.destroy();
    client = await RawNbdClient.negotiating(harness.address);
    await client.option(Option.ExtendedHeaders);
    const contexts = encodeMetaContextRequest({ exportName: "large", queries: ["base:allocation"] });
    await client.option(Option.SetMetaContext, contexts);
    await client.option(Option.Go, encodeInfoRequest({ exportName: "large", infoTypes: [] }));
    request(Command.BlockStatus, CommandFlag.ReqOne, 4096n, BigInt(large - 4096));
    const { type, flags, payload } = await chunk();
    expect([type, flags]).to.deep.equal([ChunkType.BlockStatusExt, ChunkFlag.Done]);
    expect(payload.readBigUInt64BE(8)).to.equal(BigInt(large - 4096));
  });

  it("sends 64-bit descriptors, one chunk for each selected context", async () => {
    request(Command.BlockStatus, 0, 0n, BigInt(SIZE));
    const chunks = [await chunk(), await chunk()];
    expect(chunks.map(({ type, flags }) => [type, flags])).to.deep.equal([
      [ChunkType.BlockStatusExt, 0],
      [ChunkType.BlockStatusExt, ChunkFlag.Done],
    ]);
    const dirty = chunks[1]?.payload ?? Buffer.alloc(0);
    expect([dirty.readUInt32BE(0), dirty.readUInt32BE(4)]).to.deep.equal([2, 1]);
    expect([dirty.readBigUInt64BE(8), dirty.readBigUInt64BE(16)]).to.deep.equal([BigInt(SIZE), 1n]);
    await expectInSync();
  });

  it("sends only the contexts that a BLOCK_STATUS with a payload names", async () => {
    const payload = Buffer.alloc(12);
    payload.writeBigUInt64BE(4096n, 0);
    payload.writeUInt32BE(2, 8);
    request(Command.BlockStatus, CommandFlag.PayloadLen, 8192n, 12n, payload);
    const only = await chunk();
    expect([only.type, only.flags]).to.deep.equal([ChunkType.BlockStatusExt, ChunkFlag.Done]);
    expect(only.payload.readUInt32BE(0)).to.equal(2);
    expect(only.payload.readBigUInt64BE(8)).to.equal(4096n);
    await expectInSync();
  });

  it("refuses a list of contexts that is malformed, unknown, doubled or out of range", async () => {
    const filter = (lengthBytes: bigint, ...ids: number[]): Buffer => {
      const bytes = Buffer.alloc(8 + 4 * ids.length);
      bytes.writeBigUInt64BE(lengthBytes, 0);
      for (const [index, id] of ids.entries()) bytes.writeUInt32BE(id, 8 + 4 * index);
      return bytes;
    };
    const wrong = [
      filter(4096n),
      filter(4096n, 3),
      filter(4096n, 1, 1),
      filter(0n, 1),
      filter(BigInt(SIZE) + 1n, 1),
      filter(2n ** 64n - 1n, 1),
      Buffer.alloc(13, 1),
      Buffer.alloc(4, 1),
      Buffer.alloc(100_000, 1),
    ];
    for (const payload of wrong) {
      request(Command.BlockStatus, CommandFlag.PayloadLen, 0n, BigInt(payload.length), payload);
      expect(await outcome(0n), payload.subarray(0, 20).toString("hex")).to.equal(errorNumberOf("EINVAL"));
    }
    await expectInSync();
  });

  it("swallows the same payload when it comes byte by byte", async () => {
    const before = client.socket.setNoDelay(true);
    const bytes = Buffer.alloc(32 + 5);
    bytes.writeUInt32BE(EXTENDED_REQUEST_MAGIC, 0);
    bytes.writeUInt16BE(CommandFlag.PayloadLen, 4);
    bytes.writeUInt16BE(Command.Read, 6);
    bytes.writeBigUInt64BE(COOKIE, 8);
    bytes.writeBigUInt64BE(5n, 24);
    for (const byte of bytes) {
      before.write(Buffer.of(byte));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(await outcome(0n)).to.equal(errorNumberOf("EINVAL"));
    await expectInSync();
  });
});

describe("NBD server, the extended headers option", () => {
  let harness: NbdServerHarness;
  let client: RawNbdClient;

  beforeEach(async () => {
    harness = await startNbdServer();
    harness.add(EXPORT, new MemoryDevice(SIZE));
    client = await RawNbdClient.negotiating(harness.address);
  });

  afterEach(async () => {
    client.destroy();
    await harness.close();
  });

  it("takes no data, may come twice and after structured replies, which can't follow it", async () => {
    const finalType = async (option: number, data = Buffer.alloc(0)): Promise<number | undefined> =>
      (await client.option(option, data)).at(-1)?.type;
    expect(await finalType(Option.ExtendedHeaders, Buffer.alloc(3))).to.equal(OptionReplyType.ErrInvalid);
    expect(await finalType(Option.StructuredReply)).to.equal(OptionReplyType.Ack);
    expect(await finalType(Option.ExtendedHeaders)).to.equal(OptionReplyType.Ack);
    expect(await finalType(Option.ExtendedHeaders)).to.equal(OptionReplyType.Ack);
    expect(await finalType(Option.StructuredReply)).to.equal(OptionReplyType.ErrExtHeaderReqd);
  });

  it("rules out NBD_OPT_EXPORT_NAME, which ends the session", async () => {
    await client.option(Option.ExtendedHeaders);
    client.send(encodeOption(Option.ExportName, Buffer.from(EXPORT)));
    expect((await client.readToEnd()).length).to.equal(0);
  });
});
