/** Requests that wait for their memory: what a real client brings about by chance only. */
import { expect } from "chai";
import { Writable } from "node:stream";

import { Flag } from "../../../src/block/device.js";
import { ClientLog } from "../../../src/net/client-log.js";
import {
  BLOCK_STATUS_DESCRIPTORS,
  MEMORY_GUARANTEED_BYTES,
  RESERVE_REQUEST_BYTES,
} from "../../../src/nbd/server/limits.js";
import { type MemoryAccount, MemoryPool } from "../../../src/nbd/server/memory-pool.js";
import { selectedContexts } from "../../../src/nbd/server/metadata-context.js";
import type { OpenRequest } from "../../../src/nbd/server/open-request.js";
import { ReplyWriter } from "../../../src/nbd/server/reply-writer.js";
import { Transmission } from "../../../src/nbd/server/transmission.js";
import { ClientTurn, Turns } from "../../../src/nbd/server/turns.js";
import { Command } from "../../../src/nbd/wire/constants.js";
import type { RequestHeader } from "../../../src/nbd/wire/request.js";
import { EXTENDED_DESCRIPTOR_BYTES } from "../../../src/nbd/wire/structured-reply.js";
import { FailingDevice } from "../../tools/failing-device.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { memoryLogger } from "../../tools/memory-logger.js";

/** Beyond a client's own part, and more than the reserve has for one request. */
const LONG_BYTES = MEMORY_GUARANTEED_BYTES + 2 * RESERVE_REQUEST_BYTES;

describe("Transmission", () => {
  let device: FailingDevice;
  let pool: MemoryPool;
  let hoarder: MemoryAccount;
  let transmission: Transmission;
  /** Those whose turn has not come. */
  let later: (() => void)[];
  let answers: number;

  beforeEach(async () => {
    const memory = new MemoryDevice(4 * LONG_BYTES);
    await memory.write(0, Buffer.alloc(LONG_BYTES, 1), Flag.None);
    device = new FailingDevice(memory);
    pool = new MemoryPool(LONG_BYTES - MEMORY_GUARANTEED_BYTES);
    const open = (): MemoryAccount =>
      pool.open({ movedBytes: () => 0, waitsForClient: () => false, cutOff: () => undefined });
    hoarder = open();
    later = [];
    answers = 0;
    const onProgress = (): void => undefined;
    const another = { name: "x:another", describe: () => Promise.resolve([]) };
    const served = { name: "disk0", readOnly: false, device, contexts: [another] };
    const contexts = selectedContexts(served, ["base:allocation", another.name]);
    const kernel = new Writable({
      write: (_chunk, _encoding, done) => {
        done();
      },
    });
    const writer = new ReplyWriter<OpenRequest>(kernel, {
      stallTimeoutMs: 60_000,
      isPatient: () => false,
      awaitTurn: onProgress,
      onHandedOver: (answered) => {
        answers += answered.length;
        transmission.handedOver(answered);
      },
      onDropped: onProgress,
      onLongHandover: onProgress,
      onStalled: onProgress,
    });
    transmission = new Transmission({
      agreement: { export: served, structuredReplies: true, extendedHeaders: false, contexts },
      observer: {},
      input: { source: null, mayStay: true, hasJustCome: true },
      writer,
      memory: open(),
      turn: new ClientTurn(new Turns(), onProgress),
      later: (callback) => later.push(callback),
      peer: "peer",
      host: null,
      clientLog: new ClientLog(memoryLogger()),
      onProgress,
      onDeviceLeft: onProgress,
    });
  });

  afterEach(() => {
    transmission.inputEnded();
    transmission.closed();
    hoarder.close();
  });

  const ask = (type: number, lengthBytes: number): RequestHeader => {
    const header = { type, flags: 0, cookieHigh: 0, cookieLow: 0, offset: 0, lengthBytes };
    transmission.requestHeader(header);
    return header;
  };
  const takeTurns = (): void => {
    for (const each of later.splice(0)) each();
  };
  const untilAnswers = async (count: number): Promise<void> => {
    while (answers < count) await new Promise(setImmediate);
  };
  const hoard = (): void => void hoarder.take(LONG_BYTES, () => undefined);
  const operations = (): string[] => device.log.map(({ operation }) => operation);

  it("performs a request that waited for its memory once, though another one waits after it", async () => {
    hoard();
    transmission.request(ask(Command.Read, LONG_BYTES), null);
    expect(operations()).to.deep.equal([]);
    hoarder.give(LONG_BYTES);
    takeTurns();
    await untilAnswers(1);
    hoard();
    const write = ask(Command.Write, LONG_BYTES);
    expect(transmission.readyForPayload()).to.equal(false);
    hoarder.give(LONG_BYTES);
    takeTurns();
    expect(transmission.readyForPayload()).to.equal(true);
    transmission.request(write, Buffer.alloc(LONG_BYTES));
    await untilAnswers(2);
    expect(operations()).to.deep.equal(["extents", "read", "write"]);
    expect(answers).to.equal(2);
  });

  it("does not perform one that has its memory when the connection ends before its turn", () => {
    hoard();
    transmission.request(ask(Command.Read, LONG_BYTES), null);
    hoarder.give(LONG_BYTES);
    transmission.inputEnded();
    transmission.closed();
    takeTurns();
    expect(operations()).to.deep.equal([]);
  });

  it("gives back no memory that a request was still waiting for when the input ended", async () => {
    const held = device.hold({ operation: "read" });
    transmission.request(ask(Command.Read, LONG_BYTES), null);
    let isGranted = false;
    hoarder.take(LONG_BYTES, () => (isGranted = true));
    ask(Command.Write, LONG_BYTES);
    transmission.inputEnded();
    expect(isGranted).to.equal(false);
    held.release();
    await untilAnswers(1);
  });

  it("waits for its client while a payload is to come, not while the request waits for memory", () => {
    hoard();
    ask(Command.Write, LONG_BYTES);
    expect(transmission.isMidRequest).to.equal(false);
    hoarder.give(LONG_BYTES);
    takeTurns();
    expect(transmission.isMidRequest).to.equal(true);
  });

  it("takes memory for all that the answer to a block status request may have of each context", () => {
    ask(Command.BlockStatus, LONG_BYTES);
    expect(pool.heldBytes).to.equal(2 * BLOCK_STATUS_DESCRIPTORS * EXTENDED_DESCRIPTOR_BYTES);
  });
});
