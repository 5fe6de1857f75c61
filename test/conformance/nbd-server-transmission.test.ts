/** The transmission phase as the NBD document has it, request by request against a real server. */
import { expect } from "chai";

import { ChunkFlag, ChunkType, Command, CommandFlag, Option } from "../../src/nbd/wire/constants.js";
import { errorNumberOf } from "../../src/nbd/wire/error-number.js";
import { encodeInfoRequest, encodeMetaContextRequest } from "../../src/nbd/wire/option.js";
import { decodeBlockStatus, decodeOffsetHole } from "../../src/nbd/wire/structured-reply.js";
import type { RequestHeader } from "../../src/nbd/wire/request.js";
import type { Operation } from "../tools/failing-device.js";
import { FailingDevice } from "../tools/failing-device.js";
import { MemoryDevice } from "../tools/memory-device.js";
import type { NbdServerHarness } from "../tools/nbd-server-harness.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { isSettled, turns } from "../tools/outcome.js";
import type { Reply } from "../tools/raw-nbd-client.js";
import { RawNbdClient, requestBytes } from "../tools/raw-nbd-client.js";
import { waitFor } from "../tools/wait-for.js";

const MEBIBYTE = 1024 * 1024;
const SIZE = 4 * MEBIBYTE;
const ALL_COMMANDS = [
  Command.Read,
  Command.Write,
  Command.Flush,
  Command.Trim,
  Command.Cache,
  Command.WriteZeroes,
  Command.BlockStatus,
];

const pattern = (lengthBytes: number, seed = 1): Buffer =>
  Buffer.from(Uint8Array.from({ length: lengthBytes }, (_, i) => (i * 31 + seed * 7 + (i >> 8)) & 0xff));
/** The content of a read, whatever kinds of chunks brought it. */
const contentOf = (reply: Reply, offset: number, lengthBytes: number): Buffer => {
  const content = Buffer.alloc(lengthBytes, 0xee);
  for (const { type, payload } of reply.chunks ?? []) {
    if (type === -1) payload.copy(content);
    else if (type === ChunkType.OffsetData)
      payload.copy(content, Number(payload.readBigUInt64BE(0)) - offset, 8);
    else if (type === ChunkType.OffsetHole) {
      const hole = decodeOffsetHole(payload);
      content.fill(0, hole.offset - offset, hole.offset - offset + hole.holeBytes);
    }
  }
  return content;
};

for (const structured of [false, true]) {
  const kind = structured ? "structured" : "simple";
  const errno = errorNumberOf;

  describe(`NBD server, transmission with ${kind} replies`, () => {
    let harness: NbdServerHarness;
    let memory: MemoryDevice;
    let device: FailingDevice;
    let client: RawNbdClient;

    beforeEach(async () => {
      harness = await startNbdServer();
      memory = new MemoryDevice(SIZE);
      device = new FailingDevice(memory);
      harness.add("disk0", device);
      harness.add("image", new MemoryDevice(SIZE), { readOnly: true });
      const contexts = structured ? { contexts: ["base:allocation"] } : {};
      client = await RawNbdClient.transmitting(harness.address, "disk0", { structured, ...contexts });
    });

    afterEach(async () => {
      client.destroy();
      await harness.close();
    });

    const ask = (type: number, fields: Partial<RequestHeader> = {}, payload?: Buffer): Promise<Reply> =>
      client.ask(type, fields, payload);
    const stillInSync = async (): Promise<void> => {
      const reply = await ask(Command.Read, { offset: 512, lengthBytes: 512 });
      expect(reply.errorNumber).to.equal(0);
      expect(contentOf(reply, 512, 512).equals(memory.contents(512, 512))).to.be.true;
    };

    it("reads back what was written, at any offset and length", async () => {
      for (const [offset, lengthBytes] of [
        [0, 1],
        [4095, 2],
        [SIZE - 3, 3],
        [100_000, 300_000],
      ] as const) {
        const data = pattern(lengthBytes, offset);
        expect((await ask(Command.Write, { offset }, data)).errorNumber).to.equal(0);
        expect(memory.contents(offset, lengthBytes).equals(data)).to.be.true;
        const reply = await ask(Command.Read, { offset, lengthBytes });
        expect(contentOf(reply, offset, lengthBytes).equals(data)).to.be.true;
      }
    });

    it("answers a 4 KiB read of a hole in one piece, with data", async () => {
      const reply = await ask(Command.Read, { offset: 4096, lengthBytes: 4096 });
      const types = reply.chunks?.map((chunk) => [chunk.type, chunk.flags]);
      expect(types).to.deep.equal([structured ? [ChunkType.OffsetData, ChunkFlag.Done] : [-1, 0]]);
      expect(contentOf(reply, 4096, 4096).equals(Buffer.alloc(4096))).to.be.true;
      expect(device.log.map((request) => request.operation)).to.deep.equal(["read"]);
    });

    it("accepts requests of length 0 without asking the device", async () => {
      for (const type of [Command.Read, Command.Write, Command.Trim, Command.WriteZeroes, Command.Cache]) {
        expect((await ask(type, { offset: SIZE })).errorNumber).to.equal(0);
        expect((await ask(type, { offset: SIZE + 1 })).errorNumber).to.not.equal(0);
      }
      expect(device.log).to.deep.equal([]);
    });

    it("zeroes and trims the whole export in one request", async () => {
      memory.fill(0, pattern(SIZE));
      expect((await ask(Command.WriteZeroes, { lengthBytes: SIZE })).errorNumber).to.equal(0);
      expect(memory.contents().equals(Buffer.alloc(SIZE))).to.be.true;
      expect(memory.allocatedBytes).to.equal(0);
      expect((await ask(Command.Trim, { lengthBytes: SIZE })).errorNumber).to.equal(0);
    });

    it("keeps the range allocated when zeroes are written with NO_HOLE", async () => {
      const fields = { lengthBytes: MEBIBYTE, flags: CommandFlag.NoHole };
      expect((await ask(Command.WriteZeroes, fields)).errorNumber).to.equal(0);
      expect(memory.allocatedBytes).to.equal(MEBIBYTE);
    });

    it("answers FAST_ZERO that would not be fast with ENOTSUP and leaves the data", async () => {
      const slow = new MemoryDevice(MEBIBYTE, { zero: "none" });
      slow.fill(0, pattern(MEBIBYTE));
      harness.add("slow", slow);
      const other = await RawNbdClient.transmitting(harness.address, "slow", { structured });
      const fast = { lengthBytes: MEBIBYTE, flags: CommandFlag.FastZero };
      expect((await other.ask(Command.WriteZeroes, fast)).errorNumber).to.equal(errno("ENOTSUP"));
      expect(slow.contents().equals(pattern(MEBIBYTE))).to.be.true;
      const plain = await other.ask(Command.WriteZeroes, { lengthBytes: MEBIBYTE });
      expect(plain.errorNumber).to.equal(0);
      expect(slow.contents().equals(Buffer.alloc(MEBIBYTE))).to.be.true;
      other.destroy();
    });

    it("passes FUA on, and accepts it on every command", async () => {
      await ask(Command.Write, { flags: CommandFlag.Fua }, pattern(512));
      await ask(Command.Trim, { flags: CommandFlag.Fua, lengthBytes: 512 });
      await ask(Command.WriteZeroes, { flags: CommandFlag.Fua | CommandFlag.NoHole, lengthBytes: 512 });
      expect(device.log.map(({ operation, flags }) => [operation, flags])).to.deep.equal([
        ["write", 1],
        ["trim", 1],
        ["zero", 3],
      ]);
      for (const type of [Command.Read, Command.Cache, Command.Flush]) {
        const lengthBytes = type === Command.Flush ? 0 : 512;
        expect((await ask(type, { flags: CommandFlag.Fua, lengthBytes })).errorNumber).to.equal(0);
      }
    });

    it("accepts each flag on its own command only", async () => {
      const owners: Record<number, readonly number[]> = {
        [CommandFlag.NoHole]: [Command.WriteZeroes],
        [CommandFlag.FastZero]: [Command.WriteZeroes],
        [CommandFlag.Df]: structured ? [Command.Read] : [],
        [CommandFlag.ReqOne]: structured ? [Command.BlockStatus] : [],
        [CommandFlag.PayloadLen]: [],
        [1 << 6]: [],
        [1 << 15]: [],
      };
      for (const [flag, commands] of Object.entries(owners)) {
        for (const type of ALL_COMMANDS) {
          const lengthBytes = type === Command.Flush ? 0 : 512;
          const payload = type === Command.Write ? pattern(512) : undefined;
          const reply = await ask(type, { flags: Number(flag), lengthBytes }, payload);
          expect(reply.errorNumber, `flag ${flag} on command ${type}`).to.equal(
            commands.includes(type) ? 0 : errno("EINVAL"),
          );
        }
      }
      await stillInSync();
    });

    it("answers unknown commands with EINVAL", async () => {
      for (const type of [8, 9, 77, 0xffff]) {
        const reply = await ask(type, { lengthBytes: 0 });
        expect(reply.errorNumber).to.equal(errno("EINVAL"));
        if (structured) expect(reply.message).to.equal("unknown command");
      }
      await stillInSync();
    });

    it("answers a flush with an offset or a length with EINVAL", async () => {
      expect((await ask(Command.Flush, { offset: 1 })).errorNumber).to.equal(errno("EINVAL"));
      client.request(Command.Flush, { lengthBytes: 1 });
      expect((await client.reply()).errorNumber).to.equal(errno("EINVAL"));
      expect(memory.counts.flush).to.equal(0);
    });

    const outside = [
      ["one byte past the end", { offset: SIZE - 511 }],
      ["at the end", { offset: SIZE }],
      ["at 2^53", { offset: Number.POSITIVE_INFINITY, hex: "0020000000000000" }],
      ["at 2^63", { offset: Number.POSITIVE_INFINITY, hex: "8000000000000000" }],
      ["around 2^64", { offset: Number.POSITIVE_INFINITY, hex: "fffffffffffffe00" }],
    ] as const;
    for (const [where, place] of outside) {
      it(`answers a request ${where} with EINVAL, a writing one with ENOSPC`, async () => {
        for (const type of ALL_COMMANDS.filter((command) => command !== Command.Flush)) {
          const header = requestBytes(type, { offset: "hex" in place ? 0 : place.offset, lengthBytes: 512 });
          if ("hex" in place) header.write(place.hex, 16, "hex");
          client.send(header, type === Command.Write ? pattern(512) : Buffer.alloc(0));
          const isWriting = type === Command.Write || type === Command.WriteZeroes;
          const reply = await client.reply();
          expect(reply.errorNumber, `command ${type}`).to.equal(errno(isWriting ? "ENOSPC" : "EINVAL"));
        }
        expect(device.log).to.deep.equal([]);
        await stillInSync();
      });
    }

    it("answers what would change a read-only export with EPERM and swallows the payload", async () => {
      const other = await RawNbdClient.transmitting(harness.address, "image", { structured });
      for (const type of [Command.Write, Command.WriteZeroes, Command.Trim]) {
        const payload = type === Command.Write ? pattern(100_000) : undefined;
        const reply = await other.ask(type, { lengthBytes: 100_000 }, payload);
        expect(reply.errorNumber).to.equal(errno("EPERM"));
      }
      expect((await other.ask(Command.Read, { lengthBytes: 512 })).errorNumber).to.equal(0);
      other.destroy();
    });

    it("serves payloads of 32 MiB and refuses longer ones, swallowing them", async () => {
      const size = 64 * MEBIBYTE;
      const large = new MemoryDevice(size);
      harness.add("large", large);
      const other = await RawNbdClient.transmitting(harness.address, "large", { structured });
      const data = Buffer.alloc(32 * MEBIBYTE, pattern(4096));
      expect((await other.ask(Command.Write, { offset: 4096 }, data)).errorNumber).to.equal(0);
      expect(large.contents(4096, data.length).equals(data)).to.be.true;
      const reply = await other.ask(Command.Read, { offset: 4096, lengthBytes: data.length });
      expect(contentOf(reply, 4096, data.length).equals(data)).to.be.true;
      const longer = Buffer.alloc(data.length + 1);
      expect((await other.ask(Command.Write, {}, longer)).errorNumber).to.equal(errno("EINVAL"));
      other.request(Command.Read, { lengthBytes: longer.length });
      expect((await other.reply()).errorNumber).to.equal(errno(structured ? "EOVERFLOW" : "EINVAL"));
      expect((await other.ask(Command.Read, { lengthBytes: 512 })).errorNumber).to.equal(0);
      other.destroy();
    });

    it("answers 128 pipelined requests once each, in whatever order they finish, with their cookies", async () => {
      const held = device.hold({ operation: "read" });
      const requests = Array.from({ length: 128 }, (_, index) =>
        requestBytes(Command.Read, {
          cookieHigh: 0xdead_beef,
          cookie: index * 3,
          offset: index,
          lengthBytes: 1,
        }),
      );
      memory.fill(0, pattern(128));
      client.send(Buffer.concat(requests));
      await held.arrived(128);
      while (held.requests.length > 0) held.releaseOne(held.requests.length - 1);
      const cookies: number[] = [];
      for (let i = 0; i < 128; i++) {
        const reply = await client.reply(1);
        const index = reply.cookie / 3;
        expect(contentOf(reply, index, 1).equals(pattern(128).subarray(index, index + 1))).to.be.true;
        cookies.push(index);
      }
      expect(cookies).to.deep.equal(Array.from({ length: 128 }, (_, index) => 127 - index));
    });

    it("passes a device's error on, with its text where replies are structured", async () => {
      device.fail({ operation: "read", count: 1 }, "EIO");
      const read = await ask(Command.Read, { lengthBytes: 512 });
      expect(read.errorNumber).to.equal(errno("EIO"));
      expect(read.message).to.contain(structured ? "injected EIO" : "");
      device.fail({ operation: "write", count: 1 }, "ENOSPC");
      expect((await ask(Command.Write, {}, pattern(512))).errorNumber).to.equal(errno("ENOSPC"));
      device.fail({ operation: "trim", count: 1 }, "ENOTSUP");
      expect((await ask(Command.Trim, { lengthBytes: 512 })).errorNumber).to.equal(errno("EINVAL"));
      await stillInSync();
      const lines = harness.log.filter((line) => line.msg.startsWith("request failed"));
      expect(lines).to.have.length(1);
      expect(JSON.stringify(lines), "no stack").to.not.include("stack");
    });

    it("tells the offset at which the device failed, where replies are structured and the request covers it", async () => {
      const ranged = { offset: 8192, lengthBytes: 4096 };
      const requests: (readonly [Operation, () => Promise<Reply>])[] = [
        ["read", () => ask(Command.Read, ranged)],
        ["write", () => ask(Command.Write, ranged, pattern(4096))],
        ["trim", () => ask(Command.Trim, ranged)],
        ["zero", () => ask(Command.WriteZeroes, ranged)],
        ["flush", () => ask(Command.Flush)],
        ...(structured ? [["extents", () => ask(Command.BlockStatus, ranged)] as const] : []),
      ];
      for (const [operation, request] of requests) {
        for (const failedAt of [null, 0, 8191, 8192, 9000, 12_287, 12_288, SIZE]) {
          device.fail({ operation, count: 1 }, "EIO", failedAt);
          const reply = await request();
          const isCovered = failedAt !== null && failedAt >= 8192 && failedAt < 12_288;
          const isTold = structured && operation !== "flush" && isCovered;
          expect(reply.errorNumber).to.equal(errno("EIO"));
          expect(reply.failedAt, `${operation} failed at ${failedAt}`).to.equal(isTold ? failedAt : null);
          expect(reply.message).to.contain(structured ? "injected EIO" : "");
        }
      }
      await stillInSync();
    });

    it("reads what CACHE names, in pieces, and answers when that is done or has failed", async () => {
      const range = { offset: 4096, lengthBytes: MEBIBYTE + 100 };
      expect((await ask(Command.Cache, range)).errorNumber).to.equal(0);
      let at = range.offset;
      for (const { operation, offset, lengthBytes } of device.log) {
        expect([operation, offset]).to.deep.equal(["read", at]);
        expect(lengthBytes).to.be.at.most(MEBIBYTE / 4);
        at += lengthBytes;
      }
      expect(at).to.equal(range.offset + range.lengthBytes);
      const held = device.hold({ operation: "read", offset: MEBIBYTE, lengthBytes: 1 });
      const answer = ask(Command.Cache, range);
      await held.arrived(1);
      expect(await isSettled(answer)).to.equal(false);
      held.failOne("EIO");
      const { errorNumber, failedAt } = await answer;
      expect(errorNumber).to.equal(errno("EIO"));
      if (structured) expect(failedAt).to.be.within(MEBIBYTE - MEBIBYTE / 4, MEBIBYTE);
      held.release();
      expect((await ask(Command.Cache, range)).errorNumber, "the next one").to.equal(0);
      await stillInSync();
    });

    it("reads the beginning of what a long CACHE names, one after the other, and serves other requests meanwhile", async () => {
      const slow = new FailingDevice(new MemoryDevice(1024 * 1024 * MEBIBYTE));
      harness.add("large", slow);
      const other = await RawNbdClient.transmitting(harness.address, "large", { structured });
      const held = slow.hold({ operation: "read" });
      for (let cookie = 1; cookie <= 8; cookie++)
        other.request(Command.Cache, { cookie, lengthBytes: 0xffff_f000 });
      expect((await other.ask(Command.Flush, { cookie: 9 })).cookie).to.equal(9);
      await stillInSync();
      expect(held.requests).to.have.length(1);
      held.release();
      for (let cookie = 1; cookie <= 8; cookie++) {
        const reply = await other.reply();
        expect([reply.cookie, reply.errorNumber]).to.deep.equal([cookie, 0]);
      }
      const reads = slow.log.filter(({ operation }) => operation === "read");
      expect(reads.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0)).to.equal(8 * 32 * MEBIBYTE);
      other.destroy();
    });

    for (const [how, leave] of [
      [
        "disconnects",
        (other: RawNbdClient) => {
          other.disconnect();
        },
      ],
      [
        "hangs up",
        (other: RawNbdClient) => {
          other.destroy();
        },
      ],
    ] as const) {
      it(`stops reading what CACHE names when the client ${how}`, async () => {
        const other = await RawNbdClient.transmitting(harness.address, "disk0", { structured });
        const held = device.hold({ operation: "read" });
        for (let cookie = 1; cookie <= 8; cookie++)
          other.request(Command.Cache, { cookie, lengthBytes: SIZE });
        await held.arrived(1);
        leave(other);
        await turns(50);
        held.release();
        await waitFor(
          "its end",
          () => harness.summaries.length,
          (count) => count === 1,
        );
        expect(device.log).to.have.length(1);
        expect(harness.summaries[0]?.clean).to.equal(how === "disconnects");
      });
    }

    it("closes on a wrong request magic, this client only", async () => {
      const other = await RawNbdClient.transmitting(harness.address, "disk0", { structured });
      client.send(Buffer.alloc(28, 0x42));
      expect(await client.readToEnd()).to.have.length(0);
      expect((await other.ask(Command.Read, { lengthBytes: 512 })).errorNumber).to.equal(0);
      expect(harness.log.filter((line) => line.code === "bad-request-magic")).to.have.length(1);
      other.destroy();
    });

    it("understands requests that arrive byte by byte", async () => {
      const bytes = Buffer.concat([
        requestBytes(Command.Write, { cookie: 1, offset: 10, lengthBytes: 20 }),
        pattern(20),
        requestBytes(Command.Read, { cookie: 2, offset: 10, lengthBytes: 20 }),
      ]);
      for (const byte of bytes) {
        client.send(Buffer.from([byte]));
        await new Promise(setImmediate);
      }
      expect((await client.reply()).cookie).to.equal(1);
      expect(contentOf(await client.reply(20), 10, 20).equals(pattern(20))).to.be.true;
    });

    it("answers a block status request without a context with EINVAL", async () => {
      const bare = await RawNbdClient.transmitting(harness.address, "disk0", { structured });
      const reply = await bare.ask(Command.BlockStatus, { lengthBytes: 512 });
      expect(reply.errorNumber).to.equal(errno("EINVAL"));
      bare.destroy();
    });

    if (structured) {
      it("sends the zeroes of a long read as hole chunks", async () => {
        memory.fill(65_536, pattern(4096));
        memory.fill(131_072, pattern(8192, 2));
        const reply = await ask(Command.Read, { lengthBytes: 262_144 });
        expect(reply.chunks?.map(({ type, flags }) => [type, flags])).to.deep.equal([
          [ChunkType.OffsetHole, 0],
          [ChunkType.OffsetData, 0],
          [ChunkType.OffsetHole, 0],
          [ChunkType.OffsetData, 0],
          [ChunkType.OffsetHole, ChunkFlag.Done],
        ]);
        expect(contentOf(reply, 0, 262_144).equals(memory.contents(0, 262_144))).to.be.true;
      });

      it("sends what lies behind the extents that it looks up of a long read as data", async () => {
        for (let at = 0; at < 262_144; at += 16_384) memory.fill(at, pattern(4096, at / 16_384));
        const reply = await ask(Command.Read, { lengthBytes: 262_144 });
        expect(reply.chunks?.at(-1)?.type).to.equal(ChunkType.OffsetData);
        expect(contentOf(reply, 0, 262_144).equals(memory.contents(0, 262_144))).to.be.true;
      });

      it("sends one data chunk when DF is set, zeroes included", async () => {
        memory.fill(65_536, pattern(4096));
        const reply = await ask(Command.Read, { lengthBytes: 262_144, flags: CommandFlag.Df });
        expect(reply.chunks?.map(({ type }) => type)).to.deep.equal([ChunkType.OffsetData]);
        expect(contentOf(reply, 0, 262_144).equals(memory.contents(0, 262_144))).to.be.true;
      });

      it("answers a sparse read that fails in part with one error chunk, which tells where that part begins", async () => {
        memory.fill(65_536, pattern(4096));
        memory.fill(131_072, pattern(4096));
        device.fail({ operation: "read", offset: 131_072, lengthBytes: 1 }, "EIO");
        const reply = await ask(Command.Read, { lengthBytes: 262_144 });
        expect(reply.chunks?.map(({ type }) => type)).to.deep.equal([ChunkType.ErrorOffset]);
        expect([reply.errorNumber, reply.failedAt]).to.deep.equal([errno("EIO"), 131_072]);
      });

      it("answers a sparse read that fails in part when its other parts are done, which use its memory", async () => {
        memory.fill(65_536, pattern(4096));
        memory.fill(131_072, pattern(4096));
        const held = device.hold({ operation: "read", offset: 65_536, lengthBytes: 1 });
        device.fail({ operation: "read", offset: 131_072, lengthBytes: 1 }, "EIO");
        client.request(Command.Read, { cookie: 1, lengthBytes: 262_144 });
        await held.arrived(1);
        client.request(Command.Flush, { cookie: 2 });
        expect((await client.reply()).cookie).to.equal(2);
        held.release();
        expect((await client.reply()).cookie).to.equal(1);
      });

      it("describes allocation as base:allocation has it, one descriptor for REQ_ONE", async () => {
        memory.fill(4096, pattern(8192));
        const whole = await ask(Command.BlockStatus, { offset: 100, lengthBytes: SIZE - 100 });
        expect(whole.chunks?.map(({ type }) => type)).to.deep.equal([ChunkType.BlockStatus]);
        expect(decodeBlockStatus(whole.chunks?.[0]?.payload ?? Buffer.alloc(0))).to.deep.equal({
          contextId: 1,
          descriptors: [
            { lengthBytes: 3996, status: 3 },
            { lengthBytes: 8192, status: 0 },
            { lengthBytes: SIZE - 12_288, status: 3 },
          ],
        });
        const one = await ask(Command.BlockStatus, { lengthBytes: SIZE, flags: CommandFlag.ReqOne });
        expect(decodeBlockStatus(one.chunks?.[0]?.payload ?? Buffer.alloc(0)).descriptors).to.deep.equal([
          { lengthBytes: 4096, status: 3 },
        ]);
        expect((await ask(Command.BlockStatus, { lengthBytes: 0 })).errorNumber).to.equal(errno("EINVAL"));
      });

      for (const [what, option] of [
        [
          "for another export",
          encodeMetaContextRequest({ exportName: "image", queries: ["base:allocation"] }),
        ],
        [
          "before a later one that selected nothing",
          encodeMetaContextRequest({ exportName: "disk0", queries: [] }),
        ],
        ["before a later one that failed", Buffer.from("malformed")],
      ] as const) {
        it(`knows no context that was selected ${what}`, async () => {
          const other = await RawNbdClient.negotiating(harness.address);
          await other.option(Option.StructuredReply);
          const right = encodeMetaContextRequest({ exportName: "disk0", queries: ["base:allocation"] });
          await other.option(Option.SetMetaContext, right);
          await other.option(Option.SetMetaContext, option);
          await other.option(Option.Go, encodeInfoRequest({ exportName: "disk0", infoTypes: [] }));
          const reply = await other.ask(Command.BlockStatus, { lengthBytes: 512 });
          expect(reply.errorNumber).to.equal(errno("EINVAL"));
          other.destroy();
        });
      }
    }
  });
}
