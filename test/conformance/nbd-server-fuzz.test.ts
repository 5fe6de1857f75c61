/** Damaged sessions: whatever a client sends costs that client its connection at most. */
import { expect } from "chai";

import { Command, Option } from "../../src/nbd/wire/constants.js";
import { encodeClientFlags } from "../../src/nbd/wire/handshake.js";
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption } from "../../src/nbd/wire/option.js";
import { MemoryDevice } from "../tools/memory-device.js";
import type { NbdServerHarness } from "../tools/nbd-server-harness.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { RawNbdClient, requestBytes } from "../tools/raw-nbd-client.js";
import { Random, SEED } from "../tools/seed.js";

const MEBIBYTE = 1024 * 1024;
const ROUNDS = 300;

describe("NBD server, damaged sessions", () => {
  let harness: NbdServerHarness;

  before(async () => {
    harness = await startNbdServer();
    harness.add("disk0", new MemoryDevice(MEBIBYTE));
  });

  after(() => harness.close());

  /** A right session with requests of all kinds. */
  const session = (random: Random): Buffer => {
    const contexts = { exportName: "disk0", queries: ["base:allocation"] };
    const parts = [
      encodeClientFlags(3),
      encodeOption(Option.StructuredReply, Buffer.alloc(0)),
      encodeOption(Option.SetMetaContext, encodeMetaContextRequest(contexts)),
      encodeOption(Option.List, Buffer.alloc(0)),
      encodeOption(Option.Go, encodeInfoRequest({ exportName: "disk0", infoTypes: [3] })),
    ];
    for (let cookie = 0; cookie < 20; cookie++) {
      const type = random.oneOf([0, 1, 3, 4, 5, 6, 7]);
      const lengthBytes = type === Command.Flush ? 0 : 1 + random.below(100_000);
      const offset = type === Command.Flush ? 0 : random.below(MEBIBYTE - lengthBytes);
      parts.push(requestBytes(type, { cookie, offset, lengthBytes, flags: random.below(2) }));
      if (type === Command.Write) parts.push(random.bytes(lengthBytes));
    }
    parts.push(requestBytes(Command.Disconnect));
    return Buffer.concat(parts);
  };

  it(`serves everybody else after ${ROUNDS} damaged sessions, seed ${SEED}`, async () => {
    const random = new Random(SEED);
    const witness = await RawNbdClient.transmitting(harness.address, "disk0");
    for (let round = 0; round < ROUNDS; round++) {
      const bytes = session(random);
      for (let damages = random.below(4); damages > 0; damages--) {
        bytes.writeUInt8(random.below(256), random.below(Math.min(bytes.length, 1 + random.below(2000))));
      }
      const client = await RawNbdClient.connect(harness.address);
      const end = random.below(3) === 0 ? random.below(bytes.length) : bytes.length;
      for (let at = 0; at < end;) {
        const next = Math.min(end, at + 1 + random.below(50_000));
        client.send(bytes.subarray(at, next));
        if (random.below(4) === 0) await new Promise(setImmediate);
        at = next;
      }
      if (random.below(2) === 0) client.destroy();
      else {
        client.socket.end();
        await client.readToEnd();
      }
      const reply = await witness.ask(Command.Read, { cookie: round, lengthBytes: 512 });
      expect(reply).to.include({ cookie: round, errorNumber: 0 });
    }
    witness.disconnect();
    await witness.readToEnd();
    while (harness.server.connections().length > 0) await new Promise(setImmediate);
    expect(harness.log.filter(({ code }) => code === "internal-error")).to.deep.equal([]);
    for (const summary of harness.summaries) {
      expect(summary.unansweredWrites).to.be.at.most(summary.writes);
      if (summary.clean) expect(summary.unansweredWrites).to.equal(0);
    }
  });
});
