/** Several connections as one device, with a server that keeps a record of who asked what. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { ConfigError, LinkError, NegotiationError, ProtocolError } from "../../../src/errors.js";
import { openNbd } from "../../../src/nbd/client/open.js";
import type { ParallelNbdDevice } from "../../../src/nbd/client/parallel-device.js";
import { Command, Option, OptionReplyType, TransmissionFlag } from "../../../src/nbd/wire/constants.js";
import { encodeOptionReply } from "../../../src/nbd/wire/option-reply.js";
import { failureOf } from "../../tools/outcome.js";
import { ALL_FLAGS, simpleReply } from "./scripted-server.js";
import type { Grants, Peer } from "./scripted-server.js";
import { useScriptedServer } from "./scripted-suite.js";

const ESHUTDOWN = 108;
/** Not an expectation: the test waits for so long where a connection is not answered. */
const CONNECT_TIMEOUT_MS = 1000;

/** How a connection begins, its number told; false: it gets no further. */
type Begin = (peer: Peer, number: number, grants: Grants | undefined) => Promise<boolean>;

const shakeHands: Begin = async (peer, _number, grants) => {
  await peer.handshake(grants);
  return true;
};

interface Asked {
  readonly peer: number;
  readonly type: number;
  readonly flags: number;
}

describe("ParallelNbdDevice", () => {
  let peers: Peer[] = [];
  let asked: Asked[] = [];
  let device: ParallelNbdDevice | null = null;

  // Before the server is stopped, which waits for its clients to leave.
  afterEach(() => {
    device?.destroy(new Error("the test is over"));
    device = null;
  });
  const suite = useScriptedServer();

  /** The n-th connection gets the n-th grants, or the last; `answer` says what a request is answered with. */
  async function open(
    connections: number,
    grants: readonly Grants[] = [{}],
    answer: (peer: number, type: number) => number | null = () => 0,
    begin = shakeHands,
  ): Promise<ParallelNbdDevice> {
    peers = [];
    asked = [];
    const address = await suite.serve(async (peer) => {
      const number = peers.push(peer) - 1;
      if (!(await begin(peer, number, grants[Math.min(number, grants.length - 1)]))) return;
      for (let request = await peer.requestOrEnd(); request !== null; request = await peer.requestOrEnd()) {
        asked.push({ peer: number, type: request.type, flags: request.flags });
        if (request.type === Command.Disconnect) break;
        const errorNumber = answer(number, request.type);
        if (errorNumber !== null) peer.send(simpleReply(request, errorNumber));
      }
      await peer.hangUp();
    });
    const uri = { address, exportName: "disk", tls: false, tlsParameters: {} };
    device = await openNbd(uri, { connections, connectTimeoutMs: CONNECT_TIMEOUT_MS });
    return device;
  }

  const writes = (count: number, to: ParallelNbdDevice): Promise<void>[] =>
    Array.from({ length: count }, (_, i) => to.write(i * 512, Buffer.alloc(512), Flag.None));

  it("spreads requests evenly, also one after the other", async () => {
    const disk = await open(4);
    expect(disk.connections).to.equal(4);
    await Promise.all(writes(40, disk));
    for (let i = 0; i < 8; i++) await disk.write(0, Buffer.alloc(1), Flag.None);
    const shares = [0, 1, 2, 3].map((number) => asked.filter(({ peer }) => peer === number).length);
    expect(shares).to.deep.equal([12, 12, 12, 12]);
  });

  it("leaves a connection alone that answers slowly", async () => {
    const disk = await open(2, [{}], (peer) => (peer === 1 ? null : 0));
    const pending = [disk.write(0, Buffer.alloc(1), Flag.None), disk.write(1, Buffer.alloc(1), Flag.None)];
    await Promise.race(pending);
    for (let i = 0; i < 10; i++) await disk.write(2, Buffer.alloc(1), Flag.None);
    expect(asked.filter(({ peer }) => peer === 1)).to.have.length(1);
    expect(disk.inFlight).to.equal(1);
    expect(disk.oldestPendingMs(performance.now() + 1000)).to.be.at.least(1000);
    disk.destroy(new Error("enough"));
    expect(await failureOf(Promise.all(pending))).to.be.instanceOf(LinkError);
  });

  it("flushes on one connection, after the answers to the writes of all", async () => {
    const disk = await open(3);
    await Promise.all(writes(9, disk));
    await disk.flush();
    expect(asked.map(({ type }) => type)).to.deep.equal([
      ...Array.from({ length: 9 }, () => Command.Write),
      Command.Flush,
    ]);
  });

  it("opens one connection where the server does not allow several, and then no other", async () => {
    const disk = await open(4, [{ transmissionFlags: ALL_FLAGS & ~TransmissionFlag.CanMultiConn }]);
    expect([disk.connections, disk.canMultiConn]).to.deep.equal([1, false]);
    await Promise.all(writes(4, disk));
    expect(peers).to.have.length(1);
  });

  it("refuses a server that tells each connection something else, and leaves politely", async () => {
    for (const other of [
      { sizeBytes: 4096 },
      { transmissionFlags: ALL_FLAGS | 2 },
      { extendedHeaders: true },
    ]) {
      const error = await failureOf(open(3, [{}, {}, other]));
      expect(error).to.be.instanceOf(NegotiationError).with.property("code", "connections-differ");
      await suite.stop();
      expect(asked.filter(({ type }) => type === Command.Disconnect)).to.have.length(3);
    }
  });

  /** What a server does with a connection too many, and the code of what the client makes of it. */
  const tooMany: readonly (readonly [what: string, refuse: (peer: Peer) => unknown, code: string])[] = [
    ["that it hangs up on", (peer) => peer.socket.destroy(), "link-lost"],
    ["that it leaves unanswered", (peer) => peer.hangUp(), "connect-timeout"],
    [
      "that it refuses in words",
      async (peer) => {
        await peer.greet();
        for (let option = 0; option !== Option.Abort;) {
          ({ option } = await peer.anyOption());
          if (option !== Option.Abort)
            peer.send(encodeOptionReply(option, OptionReplyType.ErrPolicy, Buffer.alloc(0)));
        }
        await peer.hangUp();
      },
      "policy",
    ],
  ];
  for (const [what, refuse, code] of tooMany) {
    it(`goes on with the connections that the server takes, and tells why of one ${what}`, async () => {
      const begin: Begin = async (peer, number, grants) => {
        if (number < 2) return shakeHands(peer, number, grants);
        await refuse(peer);
        return false;
      };
      const disk = await open(4, [{}], () => 0, begin);
      expect(disk.connections).to.equal(2);
      expect(disk.refusal).to.have.property("code", code);
      await Promise.all(writes(6, disk));
      expect([0, 1].map((number) => asked.filter(({ peer }) => peer === number).length)).to.deep.equal([
        3, 3,
      ]);
    });
  }

  it("refuses a server that speaks something else on a further connection", async () => {
    const begin: Begin = async (peer, number, grants) => {
      if (number === 0) return shakeHands(peer, number, grants);
      peer.send(Buffer.from("SSH-2.0-OpenSSH_9.9 and more\r\n"));
      await peer.hangUp();
      return false;
    };
    expect(await failureOf(open(2, [{}], () => 0, begin))).to.be.instanceOf(ProtocolError);
  });

  it("refuses a number of connections that makes no sense", async () => {
    for (const connections of [0, -1, 1.5, 65, Number.NaN]) {
      const error = await failureOf(openNbd("nbd://127.0.0.1:1/", { connections }));
      expect(error).to.be.instanceOf(ConfigError).with.property("code", "bad-connections");
    }
  });

  it("ends as a whole when one connection is lost, and rejects what is pending everywhere", async () => {
    const disk = await open(3, [{}], () => null);
    const pending = writes(6, disk).map((each) => failureOf(each));
    while (asked.length < 6) await new Promise(setImmediate);
    peers[1]?.socket.destroy();
    for (const error of await Promise.all(pending)) {
      expect(error).to.be.instanceOf(LinkError).with.property("code", "link-lost");
    }
    expect(await disk.ended).to.be.instanceOf(LinkError);
    expect(await failureOf(disk.flush()))
      .to.be.instanceOf(LinkError)
      .with.property("code", "link-lost");
  });

  it("takes its leave on all connections when the server shuts one down", async () => {
    const disk = await open(3, [{}], () => ESHUTDOWN);
    expect(await failureOf(disk.write(0, Buffer.alloc(1), Flag.None))).to.have.property("errno", "ESHUTDOWN");
    const reason = await disk.ended;
    expect(reason).to.be.instanceOf(LinkError).with.property("code", "server-shutdown");
    await suite.stop();
    expect(asked.filter(({ type }) => type === Command.Disconnect)).to.have.length(3);
  });

  it("says DISC on each connection when it is closed, and ends with null", async () => {
    const disk = await open(3);
    const last = writes(6, disk);
    await disk.close();
    await Promise.all(last);
    expect(await disk.ended).to.equal(null);
    await suite.stop();
    expect(asked.filter(({ type }) => type === Command.Disconnect)).to.have.length(3);
  });

  it("counts the bytes of all its connections", async () => {
    const disk = await open(2);
    const [sent, received] = [disk.bytesSent, disk.bytesReceived];
    await Promise.all(writes(2, disk));
    expect(disk.bytesSent - sent).to.equal(2 * (28 + 512));
    expect(disk.bytesReceived - received).to.equal(2 * 16);
  });
});
