import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { DeviceError } from "../../../src/errors.js";
import { ChunkFlag, Command, CommandFlag, TransmissionFlag } from "../../../src/nbd/wire/constants.js";
import { errorNumberOf } from "../../../src/nbd/wire/error-number.js";
import { readRequestHeader } from "../../../src/nbd/wire/request.js";
import { encodeBlockStatusChunk, encodeErrorChunk } from "../../../src/nbd/wire/structured-reply.js";
import { ALL_FLAGS, offsetData, simpleReply } from "./scripted-server.js";
import { failureOf } from "../../tools/outcome.js";
import { useScriptedServer } from "./scripted-suite.js";

const GIBIBYTE = 2 ** 30;
const WITH_DF = ALL_FLAGS | TransmissionFlag.SendDf;
const EIO = 5;
const EPERM = 1;

describe("NbdDevice", () => {
  const suite = useScriptedServer();

  describe("requests", () => {
    it("carry offset, length, flags and content as they are", async () => {
      const { disk, seen } = await suite.openAgreeable({ sizeBytes: 2 ** 50 });
      await disk.write(2 ** 49 + 512, Buffer.alloc(1024), Flag.Fua);
      await disk.write(0, Buffer.alloc(1), Flag.None);
      await disk.zero(4096, 8192, Flag.Fua | Flag.NoHole | Flag.FastZero);
      await disk.zero(4096, 8192, Flag.None);
      await disk.trim(1, 2, Flag.Fua);
      await disk.trim(1, 2, Flag.None);
      await disk.trim(1, 2, Flag.NoHole | Flag.FastZero);
      await disk.flush();
      await disk.read(7, Buffer.alloc(9));
      await disk.close();
      expect(seen).to.deep.equal([
        [Command.Write, CommandFlag.Fua, 2 ** 49 + 512, 1024],
        [Command.Write, 0, 0, 1],
        [Command.WriteZeroes, CommandFlag.Fua | CommandFlag.NoHole | CommandFlag.FastZero, 4096, 8192],
        [Command.WriteZeroes, 0, 4096, 8192],
        [Command.Trim, CommandFlag.Fua, 1, 2],
        [Command.Trim, 0, 1, 2],
        [Command.Trim, 0, 1, 2],
        [Command.Flush, 0, 0, 0],
        [Command.Read, 0, 7, 9],
        [Command.Disconnect, 0, 0, 0],
      ]);
    });

    it("without a range that there can be are refused, and take nobody's place", async () => {
      const { disk, seen } = await suite.openAgreeable({
        extendedHeaders: true,
        transmissionFlags: WITH_DF | TransmissionFlag.SendCache,
      });
      const one = Buffer.alloc(1);
      const odd: unknown[] = [NaN, Infinity, -1, 0.5, 1n, "0", undefined, 2 ** 53];
      for (const value of odd) {
        const number = value as number;
        const requests = [
          disk.read(number, one),
          disk.readWhole(number, one),
          disk.write(number, one, Flag.None),
          disk.zero(number, 1, Flag.None),
          disk.zero(0, number, Flag.None),
          disk.trim(number, 1, Flag.None),
          disk.trim(0, number, Flag.None),
          disk.cache(number, 1),
        ];
        for (const request of requests) {
          expect(await failureOf(request), String(value))
            .to.be.instanceOf(DeviceError)
            .with.property("errno", "EINVAL");
        }
      }
      expect(disk.inFlight).to.equal(0);
      await disk.flush();
      expect(seen).to.deep.equal([[Command.Flush, 0, 0, 0]]);
    });

    it("take any bytes, those of a plain Uint8Array too", async () => {
      const seen: Buffer[] = [];
      const disk = await suite.open({}, async (peer) => {
        for (const request of await peer.requests(2)) {
          seen.push(request.payload);
          peer.send(simpleReply(request, 0, Buffer.from(request.type === Command.Read ? [7, 8] : [])));
        }
      });
      const bytes = Uint8Array.of(0, 1, 2, 0);
      const into = new Uint8Array(4);
      await Promise.all([
        disk.write(0, bytes.subarray(1, 3) as Buffer, Flag.None),
        disk.read(0, into.subarray(1, 3) as Buffer),
      ]);
      expect(seen[0]).to.deep.equal(Buffer.from([1, 2]));
      expect([...into]).to.deep.equal([0, 7, 8, 0]);
    });

    it("of one turn of the event loop arrive whole and in order, content included", async () => {
      const contents = Array.from({ length: 20 }, (_, i) => Buffer.alloc(i * 1000 + 1, i));
      const received: Buffer[] = [];
      const disk = await suite.open({}, async (peer) => {
        for (const request of await peer.requests(contents.length)) {
          received.push(request.payload);
          peer.send(simpleReply(request, 0));
        }
      });
      await Promise.all(contents.map((content) => disk.write(0, content, Flag.None)));
      expect(received).to.deep.equal(contents);
    });

    for (const structuredReplies of [true, false]) {
      it(`for content in one piece say so ${structuredReplies ? "where replies are structured" : "only there: simple replies are whole"}`, async () => {
        const flags: number[] = [];
        const transmissionFlags = structuredReplies ? WITH_DF : ALL_FLAGS;
        const disk = await suite.open({ structuredReplies, transmissionFlags }, async (peer) => {
          for (const request of await peer.requests(2)) {
            flags.push(request.flags);
            const content = Buffer.alloc(request.lengthBytes, 7);
            if (structuredReplies) peer.send(offsetData(request, ChunkFlag.Done, request.offset, content));
            else peer.send(simpleReply(request, 0, content));
          }
        });
        const [whole, plain] = [Buffer.alloc(512), Buffer.alloc(512)];
        await Promise.all([disk.readWhole(4096, whole), disk.read(4096, plain)]);
        expect(flags).to.deep.equal([structuredReplies ? CommandFlag.Df : 0, 0]);
        expect([whole, plain]).to.deep.equal([Buffer.alloc(512, 7), Buffer.alloc(512, 7)]);
      });
    }

    it("for content in one piece are refused where the server may send several, and told what it refuses", async () => {
      const without = await suite.open({ structuredReplies: true, transmissionFlags: ALL_FLAGS }, () =>
        Promise.resolve(),
      );
      expect(await failureOf(without.readWhole(0, Buffer.alloc(512)))).to.include({ errno: "ENOTSUP" });
      await without.close();
      const disk = await suite.open({ structuredReplies: true, transmissionFlags: WITH_DF }, async (peer) => {
        const request = await peer.request();
        peer.send(encodeErrorChunk(request, ChunkFlag.Done, errorNumberOf("EOVERFLOW"), "too much in one"));
      });
      const error = await failureOf(disk.readWhole(0, Buffer.alloc(128 * 1024)));
      expect(error).to.be.instanceOf(DeviceError).and.to.include({ errno: "EOVERFLOW" });
    });

    it("of no length are not sent", async () => {
      const { disk, seen } = await suite.openAgreeable({});
      await disk.read(0, Buffer.alloc(0));
      await disk.write(0, Buffer.alloc(0), Flag.None);
      await disk.zero(0, 0, Flag.None);
      await disk.trim(0, 0, Flag.None);
      await disk.close();
      expect(seen).to.deep.equal([[Command.Disconnect, 0, 0, 0]]);
    });

    it("longer than 32 bits tell are cut into legal ones that cover the range", async () => {
      const { disk, seen } = await suite.openAgreeable({ sizeBytes: 2 ** 40 });
      await disk.zero(512, 5 * GIBIBYTE, Flag.NoHole);
      await disk.trim(0, GIBIBYTE + 1, Flag.None);
      expect(seen).to.deep.equal([
        ...[0, 1, 2, 3, 4].map((i) => [
          Command.WriteZeroes,
          CommandFlag.NoHole,
          512 + i * GIBIBYTE,
          GIBIBYTE,
        ]),
        [Command.Trim, 0, 0, GIBIBYTE],
        [Command.Trim, 0, GIBIBYTE, 1],
      ]);
    });

    it("of any length go in one piece with extended headers, and writes announce their payload", async () => {
      const { disk, seen } = await suite.openAgreeable({ sizeBytes: 2 ** 50, extendedHeaders: true });
      expect(disk.hasExtendedHeaders).to.equal(true);
      await disk.zero(512, 2 ** 49, Flag.NoHole);
      await disk.trim(2 ** 40, 2 ** 45 + 1, Flag.None);
      await disk.write(2 ** 49, Buffer.alloc(4096, 1), Flag.Fua);
      await disk.flush();
      await disk.close();
      expect(seen).to.deep.equal([
        [Command.WriteZeroes, CommandFlag.NoHole, 512, 2 ** 49],
        [Command.Trim, 0, 2 ** 40, 2 ** 45 + 1],
        [Command.Write, CommandFlag.Fua | CommandFlag.PayloadLen, 2 ** 49, 4096],
        [Command.Flush, 0, 0, 0],
        [Command.Disconnect, 0, 0, 0],
      ]);
    });

    it("that fail in one piece fail as a whole, and tell where that piece begins", async () => {
      const disk = await suite.open({ sizeBytes: 2 ** 40 }, async (peer) => {
        peer.send(simpleReply(await peer.request(), 0));
        peer.send(simpleReply(await peer.request(), EIO));
      });
      const error = await failureOf(disk.zero(0, 4 * GIBIBYTE, Flag.None));
      expect(error).to.be.instanceOf(DeviceError).with.property("errno", "EIO");
      expect(error).to.have.property("offset", GIBIBYTE);
    });
  });

  describe("with a server that lacks something", () => {
    const FEW = TransmissionFlag.HasFlags;

    it("makes up for FUA by a flush after the write", async () => {
      const { disk, seen } = await suite.openAgreeable({
        transmissionFlags: ALL_FLAGS & ~TransmissionFlag.SendFua,
      });
      await disk.write(0, Buffer.alloc(4), Flag.Fua);
      await disk.zero(0, 4, Flag.Fua);
      await disk.trim(0, 4, Flag.Fua);
      await disk.write(0, Buffer.alloc(4), Flag.None);
      expect(seen).to.deep.equal([
        [Command.Write, 0, 0, 4],
        [Command.Flush, 0, 0, 0],
        [Command.WriteZeroes, 0, 0, 4],
        [Command.Flush, 0, 0, 0],
        [Command.Trim, 0, 0, 4],
        [Command.Flush, 0, 0, 0],
        [Command.Write, 0, 0, 4],
      ]);
    });

    it("takes a write with FUA for done only when the flush after it is", async () => {
      let isDone = false;
      let wasDoneBefore = true;
      const disk = await suite.open(
        { transmissionFlags: ALL_FLAGS & ~TransmissionFlag.SendFua },
        async (peer) => {
          peer.send(simpleReply(await peer.request(), 0));
          const flush = await peer.request();
          wasDoneBefore = isDone;
          peer.send(simpleReply(flush, EIO));
        },
      );
      const written = disk.write(0, Buffer.alloc(4), Flag.Fua).finally(() => {
        isDone = true;
      });
      expect(await failureOf(written))
        .to.be.instanceOf(DeviceError)
        .with.property("errno", "EIO");
      expect(wasDoneBefore).to.equal(false);
    });

    it("flushes nothing where there is no flush, as nothing is volatile", async () => {
      const { disk, seen } = await suite.openAgreeable({ transmissionFlags: FEW });
      await disk.flush();
      await disk.write(0, Buffer.alloc(4), Flag.Fua);
      expect(seen).to.deep.equal([[Command.Write, 0, 0, 4]]);
    });

    it("refuses zero, fast zero, trim and extents with ENOTSUP, sending nothing", async () => {
      const { disk, seen } = await suite.openAgreeable({ transmissionFlags: FEW });
      const attempts = [disk.zero(0, 1, Flag.None), disk.trim(0, 1, Flag.None), disk.extents(0, 1, 1)];
      for (const attempt of attempts) {
        const error = await failureOf(attempt);
        expect(error).to.be.instanceOf(DeviceError).with.property("errno", "ENOTSUP");
      }
      expect(seen).to.deep.equal([]);
    });

    it("refuses fast zero with ENOTSUP, where zero itself is fine", async () => {
      const flags = FEW | TransmissionFlag.SendWriteZeroes;
      const { disk, seen } = await suite.openAgreeable({ transmissionFlags: flags });
      const error = await failureOf(disk.zero(0, 1, Flag.FastZero));
      expect(error).to.be.instanceOf(DeviceError).with.property("errno", "ENOTSUP");
      await disk.zero(0, 1, Flag.None);
      expect(seen).to.deep.equal([[Command.WriteZeroes, 0, 0, 1]]);
    });
  });

  describe("replies", () => {
    it("settle the right requests in any order", async () => {
      const disk = await suite.open({}, async (peer) => {
        const requests = await peer.requests(3);
        for (const request of requests.reverse()) {
          peer.send(simpleReply(request, 0, Buffer.alloc(request.lengthBytes, request.offset)));
        }
      });
      const order: number[] = [];
      await Promise.all(
        [1, 2, 3].map(async (i) => {
          const into = Buffer.alloc(100 * i);
          await disk.read(i, into);
          order.push(i);
          expect(into).to.deep.equal(Buffer.alloc(100 * i, i));
        }),
      );
      expect(order).to.deep.equal([3, 2, 1]);
    });

    it("of a read fill the caller's buffer in place, whatever the size", async () => {
      const content = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * 31) % 253));
      const disk = await suite.open({ structuredReplies: true, transmissionFlags: WITH_DF }, async (peer) => {
        const request = await peer.request();
        peer.send(
          offsetData(request, 0, 200_000, content.subarray(200_000)),
          offsetData(request, 1, 0, content.subarray(0, 200_000)),
        );
      });
      const around = Buffer.alloc(content.length + 20, 0xaa);
      await disk.read(0, around.subarray(10, 10 + content.length));
      expect(
        around.equals(Buffer.concat([Buffer.alloc(10, 0xaa), content, Buffer.alloc(10, 0xaa)])),
      ).to.equal(true);
    });

    it("with an error reject with DeviceError; the connection lives", async () => {
      const disk = await suite.open({}, async (peer) => {
        peer.send(simpleReply(await peer.request(), EPERM));
        peer.send(simpleReply(await peer.request(), 0));
      });
      const error = await failureOf(disk.write(0, Buffer.alloc(1), Flag.None));
      expect(error).to.be.instanceOf(DeviceError).with.property("errno", "EPERM");
      await disk.flush();
    });

    it("of a block status are asked for one extent alone where one is enough", async () => {
      const flags: number[] = [];
      const disk = await suite.open(
        { structuredReplies: true, contextId: 3, sizeBytes: 2 ** 40 },
        async (peer) => {
          for (const request of [await peer.request(), await peer.request()]) {
            flags.push(request.flags, request.lengthBytes);
            // Bits of a later document tell nothing of the extent.
            peer.send(encodeBlockStatusChunk(request, 1, 3, [{ lengthBytes: 512, status: 0xf3 }]));
          }
        },
      );
      const both = [disk.extents(0, 2 ** 40, 1), disk.extents(0, 4096, 2)];
      for (const extents of both) {
        expect(await extents).to.deep.equal([{ lengthBytes: 512, hole: true, zero: true }]);
      }
      expect(flags).to.deep.equal([CommandFlag.ReqOne, GIBIBYTE, 0, 4096]);
    });

    it("that refuse a write before it was read keep the caller's buffer lent until it is sent", async () => {
      // More than the socket's buffers hold, so that the rest waits for the server to read it.
      const content = Buffer.alloc(2 * 1024 * 1024, 0x77);
      let letRead: () => void = () => undefined;
      const mayRead = new Promise<void>((resolve) => (letRead = resolve));
      let received: Buffer = Buffer.alloc(0);
      const disk = await suite.open({}, async (peer) => {
        const header = readRequestHeader(await peer.read(28), 0);
        peer.socket.pause();
        peer.send(simpleReply(header, EPERM));
        await mayRead;
        peer.socket.resume();
        received = await peer.read(header.lengthBytes);
        peer.send(simpleReply(await peer.request(), 0));
      });
      let settled = false;
      const before = disk.bytesReceived;
      const refused = failureOf(disk.write(0, content, Flag.None)).finally(() => (settled = true));
      while (disk.bytesReceived < before + 16) await new Promise((resolve) => setImmediate(resolve));
      expect(settled).to.equal(false);
      letRead();
      expect(await refused)
        .to.be.instanceOf(DeviceError)
        .with.property("errno", "EPERM");
      await disk.flush();
      expect(received.equals(content)).to.equal(true);
    });
  });
});
