import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { DeviceError, LinkError, ProtocolError, asError } from "../../../src/errors.js";
import type { Address } from "../../../src/net/address.js";
import { connectNbd } from "../../../src/nbd/client/connect.js";
import type { NbdDevice } from "../../../src/nbd/client/device.js";
import { ChunkType, Command, CommandFlag, TransmissionFlag } from "../../../src/nbd/wire/constants.js";
import { readRequestHeader } from "../../../src/nbd/wire/request.js";
import type { RequestHeader } from "../../../src/nbd/wire/request.js";
import { encodeBlockStatusChunk } from "../../../src/nbd/wire/structured-reply.js";
import { ALL_FLAGS, ScriptedServer, chunk, offsetData, simpleReply } from "./scripted-server.js";
import type { Grants, Peer } from "./scripted-server.js";

const GIBIBYTE = 2 ** 30;
const EIO = 5;
const EPERM = 1;
const ESHUTDOWN = 108;

type Received = RequestHeader & { payload: Buffer };

function brief(request: Received): unknown[] {
  return [request.type, request.flags, request.offset, request.lengthBytes];
}

async function rejection(promise: Promise<unknown>): Promise<Error> {
  const error = await promise.then(
    () => null,
    (reason: unknown) => asError(reason),
  );
  expect(error, "the request was to fail").not.to.equal(null);
  return asError(error);
}

describe("NbdDevice", () => {
  let server: ScriptedServer | null = null;
  let device: NbdDevice | null = null;

  afterEach(async () => {
    device?.destroy(new Error("the test is over"));
    await server?.stop();
    server = null;
    device = null;
  });

  /** A device whose server does the handshake, then what the script says, then waits for the client to go. */
  async function open(
    grants: Grants,
    script: (peer: Peer) => Promise<void>,
    maxInFlight = 128,
    kind: Address["kind"] = "unix",
  ): Promise<NbdDevice> {
    server = await ScriptedServer.start(async (peer) => {
      await peer.handshake(grants);
      await script(peer);
      await peer.hangUp();
    }, kind);
    device = await connectNbd({
      address: server.address,
      exportName: "",
      connectTimeoutMs: 5000,
      maxInFlight,
    });
    return device;
  }

  /** Answers everything with success; `seen` is what came. */
  async function openAgreeable(grants: Grants): Promise<{ disk: NbdDevice; seen: unknown[][] }> {
    const seen: unknown[][] = [];
    const disk = await open(grants, async (peer) => {
      for (let request = await peer.requestOrEnd(); request !== null; request = await peer.requestOrEnd()) {
        seen.push(brief(request));
        if (request.type === Command.Disconnect) return;
        peer.send(
          simpleReply(request, 0, Buffer.alloc(request.type === Command.Read ? request.lengthBytes : 0)),
        );
      }
    });
    return { disk, seen };
  }

  describe("requests", () => {
    it("carry offset, length, flags and content as they are", async () => {
      const { disk, seen } = await openAgreeable({ sizeBytes: 2 ** 50 });
      await disk.write(2 ** 49 + 512, Buffer.alloc(1024), Flag.Fua);
      await disk.write(0, Buffer.alloc(1), Flag.None);
      await disk.zero(4096, 8192, Flag.Fua | Flag.NoHole | Flag.FastZero);
      await disk.zero(4096, 8192, Flag.None);
      await disk.trim(1, 2, Flag.Fua);
      await disk.trim(1, 2, Flag.None);
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
        [Command.Flush, 0, 0, 0],
        [Command.Read, 0, 7, 9],
        [Command.Disconnect, 0, 0, 0],
      ]);
    });

    it("of one turn of the event loop arrive whole and in order, content included", async () => {
      const contents = Array.from({ length: 20 }, (_, i) => Buffer.alloc(i * 1000 + 1, i));
      const received: Buffer[] = [];
      const disk = await open({}, async (peer) => {
        for (const request of await peer.requests(contents.length)) {
          received.push(request.payload);
          peer.send(simpleReply(request, 0));
        }
      });
      await Promise.all(contents.map((content) => disk.write(0, content, Flag.None)));
      expect(received).to.deep.equal(contents);
    });

    it("of no length are not sent", async () => {
      const { disk, seen } = await openAgreeable({});
      await disk.read(0, Buffer.alloc(0));
      await disk.write(0, Buffer.alloc(0), Flag.None);
      await disk.zero(0, 0, Flag.None);
      await disk.trim(0, 0, Flag.None);
      await disk.close();
      expect(seen).to.deep.equal([[Command.Disconnect, 0, 0, 0]]);
    });

    it("longer than 32 bits tell are cut into legal ones that cover the range", async () => {
      const { disk, seen } = await openAgreeable({ sizeBytes: 2 ** 40 });
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

    it("that fail in one piece fail as a whole", async () => {
      const disk = await open({ sizeBytes: 2 ** 40 }, async (peer) => {
        peer.send(simpleReply(await peer.request(), 0));
        peer.send(simpleReply(await peer.request(), EIO));
      });
      const error = await rejection(disk.zero(0, 4 * GIBIBYTE, Flag.None));
      expect(error).to.be.instanceOf(DeviceError).with.property("errno", "EIO");
    });
  });

  describe("with a server that lacks something", () => {
    const FEW = TransmissionFlag.HasFlags;

    it("makes up for FUA by a flush after the write", async () => {
      const { disk, seen } = await openAgreeable({
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

    it("flushes nothing where there is no flush, as nothing is volatile", async () => {
      const { disk, seen } = await openAgreeable({ transmissionFlags: FEW });
      await disk.flush();
      await disk.write(0, Buffer.alloc(4), Flag.Fua);
      expect(seen).to.deep.equal([[Command.Write, 0, 0, 4]]);
    });

    it("refuses zero, fast zero, trim and extents with ENOTSUP, sending nothing", async () => {
      const { disk, seen } = await openAgreeable({ transmissionFlags: FEW });
      const attempts = [disk.zero(0, 1, Flag.None), disk.trim(0, 1, Flag.None), disk.extents(0, 1, 1)];
      for (const attempt of attempts) {
        const error = await rejection(attempt);
        expect(error).to.be.instanceOf(DeviceError).with.property("errno", "ENOTSUP");
      }
      expect(seen).to.deep.equal([]);
    });

    it("refuses fast zero with ENOTSUP, where zero itself is fine", async () => {
      const flags = FEW | TransmissionFlag.SendWriteZeroes;
      const { disk, seen } = await openAgreeable({ transmissionFlags: flags });
      const error = await rejection(disk.zero(0, 1, Flag.FastZero));
      expect(error).to.be.instanceOf(DeviceError).with.property("errno", "ENOTSUP");
      await disk.zero(0, 1, Flag.None);
      expect(seen).to.deep.equal([[Command.WriteZeroes, 0, 0, 1]]);
    });
  });

  describe("replies", () => {
    it("settle the right requests in any order", async () => {
      const disk = await open({}, async (peer) => {
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
      const disk = await open({ structuredReplies: true }, async (peer) => {
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
      const disk = await open({}, async (peer) => {
        peer.send(simpleReply(await peer.request(), EPERM));
        peer.send(simpleReply(await peer.request(), 0));
      });
      const error = await rejection(disk.write(0, Buffer.alloc(1), Flag.None));
      expect(error).to.be.instanceOf(DeviceError).with.property("errno", "EPERM");
      await disk.flush();
    });

    it("of a block status are asked for one extent alone where one is enough", async () => {
      const flags: number[] = [];
      const disk = await open({ structuredReplies: true, contextId: 3, sizeBytes: 2 ** 40 }, async (peer) => {
        for (const request of [await peer.request(), await peer.request()]) {
          flags.push(request.flags, request.lengthBytes);
          peer.send(encodeBlockStatusChunk(request, 1, 3, [{ lengthBytes: 512, status: 3 }]));
        }
      });
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
      const disk = await open({}, async (peer) => {
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
      const refused = rejection(disk.write(0, content, Flag.None)).finally(() => (settled = true));
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

  describe("requests in flight", () => {
    it("are bounded; further ones wait and are sent in the order of their arrival", async () => {
      const order: number[] = [];
      let most = 0;
      const disk = await open(
        {},
        async (peer) => {
          for (let round = 0; round < 5; round++) {
            const requests = await peer.requests(2);
            // Nothing more may be on its way: the next request only comes after an answer.
            for (const request of requests) order.push(request.offset);
            for (const request of requests.reverse()) peer.send(simpleReply(request, 0));
          }
        },
        2,
      );
      const all = Array.from({ length: 10 }, (_, i) => disk.write(i, Buffer.alloc(1), Flag.None));
      most = Math.max(most, disk.inFlight);
      await Promise.all(all);
      expect(order).to.deep.equal([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
      expect(most).to.equal(2);
      expect(disk.inFlight).to.equal(0);
    });

    it("tell how long the oldest of them has been waiting", async () => {
      let answer: () => void = () => undefined;
      const mayAnswer = new Promise<void>((resolve) => (answer = resolve));
      const disk = await open({}, async (peer) => {
        const [first, second] = await peer.requests(2);
        if (first !== undefined) peer.send(simpleReply(first, 0));
        await mayAnswer;
        if (second !== undefined) peer.send(simpleReply(second, 0));
      });
      expect(disk.oldestPendingMs(performance.now() + 1e6)).to.equal(0);
      const startMs = performance.now();
      const first = disk.flush();
      const betweenMs = performance.now();
      const second = disk.flush();
      const endMs = performance.now();
      expect(disk.oldestPendingMs(startMs + 1e6)).to.be.within(1e6 - (betweenMs - startMs), 1e6);
      await first;
      expect(disk.oldestPendingMs(startMs + 1e6)).to.be.within(
        1e6 - (endMs - startMs),
        1e6 - (betweenMs - startMs),
      );
      answer();
      await second;
      expect(disk.oldestPendingMs(startMs + 1e6)).to.equal(0);
    });

    it("count the bytes they cost", async () => {
      const { disk } = await openAgreeable({});
      const [sent, received] = [disk.bytesSent, disk.bytesReceived];
      await disk.write(0, Buffer.alloc(1000), Flag.None);
      await disk.read(0, Buffer.alloc(500));
      expect(disk.bytesSent - sent).to.equal(28 + 1000 + 28);
      expect(disk.bytesReceived - received).to.equal(16 + 16 + 500);
    });
  });

  describe("when the connection ends", () => {
    /** Those in flight, those waiting, and one issued afterwards. */
    async function expectAllLost(disk: NbdDevice, pending: Promise<void>[]): Promise<Error | undefined> {
      const errors = await Promise.all([...pending, disk.ended.then(() => disk.flush())].map(rejection));
      for (const error of errors) {
        expect(error).to.be.instanceOf(LinkError).with.property("code", "link-lost");
        expect(error.message).to.match(/unix:|127\.0\.0\.1:/);
      }
      expect(disk.inFlight).to.equal(0);
      expect(disk.oldestPendingMs(performance.now() + 1000)).to.equal(0);
      return errors[0];
    }

    function issue(disk: NbdDevice): Promise<void>[] {
      return [disk.read(0, Buffer.alloc(64)), disk.write(0, Buffer.alloc(64), Flag.None), disk.flush()];
    }

    it("by the server's doing, every request rejects with LinkError, and so do later ones", async () => {
      const disk = await open(
        {},
        async (peer) => {
          await peer.requests(2);
          peer.socket.end();
        },
        2,
      );
      await expectAllLost(disk, issue(disk));
      expect(await disk.ended).to.be.instanceOf(LinkError);
    });

    it("in the middle of a reply, wherever that is, the request rejects with LinkError", async () => {
      const cuts = 16 + 64;
      for (let cut = 0; cut < cuts; cut++) {
        const disk = await open({}, async (peer) => {
          const request = await peer.request();
          peer.send(simpleReply(request, 0, Buffer.alloc(64)).subarray(0, cut));
          peer.socket.end();
        });
        const error = await rejection(disk.read(0, Buffer.alloc(64)));
        expect(error, `after ${cut} bytes`).to.be.instanceOf(LinkError).with.property("code", "link-lost");
        await server?.stop();
        server = null;
      }
    });

    it("by a reset, the same", async () => {
      const disk = await open(
        {},
        async (peer) => {
          await peer.requests(3);
          peer.socket.resetAndDestroy();
        },
        128,
        "tcp",
      );
      await expectAllLost(disk, issue(disk));
    });

    it("by a reply that makes no sense, `ended` tells what, and requests reject with LinkError because of it", async () => {
      const disk = await open(
        {},
        async (peer) => {
          const request = await peer.request();
          peer.send(simpleReply({ cookieHigh: 0, cookieLow: 77 + request.cookieLow }, 0));
        },
        2,
      );
      const lost = await expectAllLost(disk, issue(disk));
      const ended = await disk.ended;
      expect(ended).to.be.instanceOf(ProtocolError).with.property("code", "unknown-cookie");
      expect(ended?.message).to.include("unix:");
      expect(lost?.cause).to.equal(ended);
    });

    it("by a second answer to a request whose slot has the next one, that one is not touched", async () => {
      const disk = await open(
        {},
        async (peer) => {
          const first = await peer.request();
          peer.send(simpleReply(first, 0));
          await peer.request();
          peer.send(simpleReply(first, 0));
        },
        1,
      );
      await disk.flush();
      const second = await rejection(disk.flush());
      expect(second).to.be.instanceOf(LinkError);
      expect(await disk.ended).to.have.property("code", "unknown-cookie");
    });

    it("by destroy(), requests reject with LinkError caused by the reason", async () => {
      const disk = await open({}, () => Promise.resolve(), 2);
      const pending = issue(disk);
      const reason = new Error("the replica is too slow");
      disk.destroy(reason);
      const lost = await expectAllLost(disk, pending);
      expect(lost?.cause).to.equal(reason);
      expect(lost?.message).to.include("the replica is too slow");
      expect(await disk.ended).to.equal(reason);
      disk.destroy(new Error("again"));
      await disk.close();
      expect(await disk.ended).to.equal(reason);
    });

    it("by the server's shutdown, the client takes its leave as soon as nothing is in flight", async () => {
      let goodbye = -1;
      const disk = await open({}, async (peer) => {
        const [first, second] = await peer.requests(2);
        if (first !== undefined) peer.send(simpleReply(first, ESHUTDOWN));
        if (second !== undefined) peer.send(simpleReply(second, 0));
        goodbye = (await peer.request()).type;
        peer.socket.end();
      });
      const [first, second] = [disk.flush(), disk.flush()];
      expect(await rejection(first))
        .to.be.instanceOf(DeviceError)
        .with.property("errno", "ESHUTDOWN");
      expect(await rejection(disk.flush()))
        .to.be.instanceOf(LinkError)
        .with.property("code", "server-shutdown");
      await second;
      expect(await disk.ended)
        .to.be.instanceOf(LinkError)
        .with.property("code", "server-shutdown");
      expect(goodbye).to.equal(Command.Disconnect);
    });
  });

  describe("close", () => {
    it("awaits the answers still due, says DISC and ends with null", async () => {
      const seen: number[] = [];
      const disk = await open({ structuredReplies: true }, async (peer) => {
        const request = await peer.request();
        peer.send(chunk(request, 1, ChunkType.None));
        seen.push(request.type, (await peer.request()).type);
        peer.socket.end();
      });
      const flushed = disk.flush();
      const closed = disk.close();
      expect(await rejection(disk.flush()))
        .to.be.instanceOf(LinkError)
        .with.property("code", "closed");
      await flushed;
      await closed;
      expect(await disk.ended).to.equal(null);
      expect(seen).to.deep.equal([Command.Flush, Command.Disconnect]);
    });

    it("sends nothing more for requests that were waiting for their turn", async () => {
      const seen: number[] = [];
      const disk = await open(
        {},
        async (peer) => {
          const request = await peer.request();
          peer.send(simpleReply(request, 0));
          seen.push(request.type, (await peer.request()).type);
        },
        1,
      );
      const [first, second] = [disk.flush(), disk.write(0, Buffer.alloc(1), Flag.None)];
      const closed = disk.close();
      expect(await rejection(second))
        .to.be.instanceOf(LinkError)
        .with.property("code", "closed");
      await first;
      await closed;
      expect(seen).to.deep.equal([Command.Flush, Command.Disconnect]);
    });

    it("comes to its end with a server that doesn't hang up", async () => {
      let hangUp: () => void = () => undefined;
      const mayHangUp = new Promise<void>((resolve) => (hangUp = resolve));
      const disk = await open({}, async (peer) => {
        expect((await peer.request()).type).to.equal(Command.Disconnect);
        await mayHangUp;
      });
      await disk.close();
      expect(await disk.ended).to.equal(null);
      hangUp();
    });

    it("comes to its end with a server that doesn't answer", async () => {
      const disk = await open({}, async (peer) => {
        await peer.request();
      });
      const flushed = rejection(disk.flush());
      await disk.close();
      expect(await flushed)
        .to.be.instanceOf(LinkError)
        .with.property("code", "link-lost");
      expect(await disk.ended).to.equal(null);
    });

    it("twice is no error", async () => {
      const { disk } = await openAgreeable({});
      await Promise.all([disk.close(), disk.close()]);
      await disk.close();
      expect(await disk.ended).to.equal(null);
    });
  });
});
