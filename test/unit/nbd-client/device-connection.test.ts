import { expect } from "chai";
import { setTimeout as sleep } from "node:timers/promises";

import { Flag } from "../../../src/block/device.js";
import { DeviceError, LinkError, ProtocolError } from "../../../src/errors.js";
import type { NbdDevice } from "../../../src/nbd/client/device.js";
import { ChunkType, Command } from "../../../src/nbd/wire/constants.js";
import { chunk, simpleReply } from "./scripted-server.js";
import { failureOf } from "../../tools/outcome.js";
import { useScriptedServer } from "./scripted-suite.js";

const ESHUTDOWN = 108;

describe("NbdDevice's connection", () => {
  const suite = useScriptedServer();

  describe("requests in flight", () => {
    it("are bounded; further ones wait and are sent in the order of their arrival", async () => {
      const order: number[] = [];
      let most = 0;
      const disk = await suite.open(
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
      const disk = await suite.open({}, async (peer) => {
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
      const { disk } = await suite.openAgreeable({});
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
      const errors = await Promise.all([...pending, disk.ended.then(() => disk.flush())].map(failureOf));
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
      const disk = await suite.open(
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
        const disk = await suite.open({}, async (peer) => {
          const request = await peer.request();
          peer.send(simpleReply(request, 0, Buffer.alloc(64)).subarray(0, cut));
          peer.socket.end();
        });
        const error = await failureOf(disk.read(0, Buffer.alloc(64)));
        expect(error, `after ${cut} bytes`).to.be.instanceOf(LinkError).with.property("code", "link-lost");
        await suite.stop();
      }
    });

    it("by a reset, all requests in flight reject with LinkError", async () => {
      const disk = await suite.open(
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
      const disk = await suite.open(
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
      const disk = await suite.open(
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
      const second = await failureOf(disk.flush());
      expect(second).to.be.instanceOf(LinkError);
      expect(await disk.ended).to.have.property("code", "unknown-cookie");
    });

    it("by destroy(), requests reject with LinkError caused by the reason", async () => {
      const disk = await suite.open({}, () => Promise.resolve(), 2);
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
      let goodbyeBeforeAnswer = -1;
      const disk = await suite.open({}, async (peer) => {
        const [first, second] = await peer.requests(2);
        if (first !== undefined) peer.send(simpleReply(first, ESHUTDOWN));
        const next = peer.request().then(({ type }) => {
          goodbye = type;
        });
        await sleep(20);
        goodbyeBeforeAnswer = goodbye;
        if (second !== undefined) peer.send(simpleReply(second, 0));
        await next;
        peer.socket.end();
      });
      const [first, second] = [disk.flush(), disk.flush()];
      expect(await failureOf(first))
        .to.be.instanceOf(DeviceError)
        .with.property("errno", "ESHUTDOWN");
      expect(await failureOf(disk.flush()))
        .to.be.instanceOf(LinkError)
        .with.property("code", "server-shutdown");
      await second;
      expect(await disk.ended)
        .to.be.instanceOf(LinkError)
        .with.property("code", "server-shutdown");
      expect(goodbyeBeforeAnswer, "while a request is in flight").to.equal(-1);
      expect(goodbye).to.equal(Command.Disconnect);
    });

    it("by the server's shutdown, told in the only answer due, the client says so once and waits for the server's end", async () => {
      let hungUp = false;
      const disk = await suite.open({}, async (peer) => {
        peer.send(simpleReply(await peer.request(), ESHUTDOWN));
        expect((await peer.request()).type).to.equal(Command.Disconnect);
        await sleep(50);
        hungUp = true;
        peer.socket.end();
      });
      await failureOf(disk.flush());
      await disk.ended;
      expect(hungUp).to.equal(true);
    });
  });

  describe("close", () => {
    it("awaits the answers still due, says DISC and ends with null", async () => {
      const seen: number[] = [];
      const disk = await suite.open({ structuredReplies: true }, async (peer) => {
        const request = await peer.request();
        peer.send(chunk(request, 1, ChunkType.None));
        seen.push(request.type, (await peer.request()).type);
        peer.socket.end();
      });
      const flushed = disk.flush();
      const closed = disk.close();
      expect(await failureOf(disk.flush()))
        .to.be.instanceOf(LinkError)
        .with.property("code", "closed");
      await flushed;
      await closed;
      expect(await disk.ended).to.equal(null);
      expect(seen).to.deep.equal([Command.Flush, Command.Disconnect]);
    });

    it("ends with null also where the server shuts down meanwhile", async () => {
      const disk = await suite.open({}, async (peer) => {
        peer.send(simpleReply(await peer.request(), ESHUTDOWN));
        await peer.request();
        peer.socket.end();
      });
      const refused = failureOf(disk.flush());
      await disk.close();
      expect(await refused)
        .to.be.instanceOf(DeviceError)
        .with.property("errno", "ESHUTDOWN");
      expect(await disk.ended).to.equal(null);
    });

    it("sends nothing more for requests that were waiting for their turn", async () => {
      const seen: number[] = [];
      const disk = await suite.open(
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
      expect(await failureOf(second))
        .to.be.instanceOf(LinkError)
        .with.property("code", "closed");
      await first;
      await closed;
      expect(seen).to.deep.equal([Command.Flush, Command.Disconnect]);
    });

    it("comes to its end with a server that doesn't hang up", async () => {
      let hangUp: () => void = () => undefined;
      const mayHangUp = new Promise<void>((resolve) => (hangUp = resolve));
      const disk = await suite.open({}, async (peer) => {
        expect((await peer.request()).type).to.equal(Command.Disconnect);
        await mayHangUp;
      });
      await disk.close();
      expect(await disk.ended).to.equal(null);
      hangUp();
    });

    it("comes to its end with a server that doesn't answer", async () => {
      const disk = await suite.open({}, async (peer) => {
        await peer.request();
      });
      const flushed = failureOf(disk.flush());
      await disk.close();
      expect(await flushed)
        .to.be.instanceOf(LinkError)
        .with.property("code", "link-lost");
      expect(await disk.ended).to.equal(null);
    });

    it("twice, at once or later, is no error", async () => {
      const { disk } = await suite.openAgreeable({});
      await Promise.all([disk.close(), disk.close()]);
      await disk.close();
      expect(await disk.ended).to.equal(null);
    });
  });
});
