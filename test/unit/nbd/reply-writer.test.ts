import { expect } from "chai";
import { Writable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";

import { HANDOVER_BYTES } from "../../../src/nbd/server/limits.js";
import { ReplyWriter } from "../../../src/nbd/server/reply-writer.js";
import { stopThisProcess } from "../../tools/stopped-process.js";

/** Keeps what is handed over until the test takes it. */
class Kernel extends Writable {
  readonly handovers: Buffer[][] = [];
  #done: ((error?: Error) => void) | null = null;

  constructor() {
    super({ highWaterMark: 1 });
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error) => void): void {
    this.#keep([chunk], done);
  }

  override _writev(chunks: { chunk: unknown }[], done: (error?: Error) => void): void {
    this.#keep(
      chunks.map(({ chunk }) => chunk as Buffer),
      done,
    );
  }

  /** Takes the last handover, and waits until the writer knows. */
  async take(): Promise<void> {
    this.#done?.();
    await nextTurn();
  }

  #keep(chunks: Buffer[], done: (error?: Error) => void): void {
    // Copies: what is taken may be used again.
    this.handovers.push(chunks.map((chunk) => Buffer.from(chunk)));
    this.#done = done;
  }
}

const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe("ReplyWriter", () => {
  let kernel: Kernel;
  let answered: string[];
  let dropped: string[];
  let stalled: number;
  let long: number;
  let isPatient: boolean;
  let asked: number;
  let writer: ReplyWriter<string>;

  const make = (stallTimeoutMs: number): void => {
    kernel = new Kernel();
    answered = [];
    dropped = [];
    stalled = 0;
    long = 0;
    isPatient = false;
    asked = 0;
    writer = new ReplyWriter<string>(kernel, {
      stallTimeoutMs,
      isPatient: () => isPatient,
      awaitTurn: () => asked++,
      onHandedOver: (some) => answered.push(...some),
      onDropped: (some) => dropped.push(...some),
      onLongHandover: () => long++,
      onStalled: () => stalled++,
    });
  };
  const lengths = (): number[][] => kernel.handovers.map((chunks) => chunks.map((chunk) => chunk.length));

  beforeEach(() => {
    make(60_000);
  });

  afterEach(() => {
    writer.close();
  });

  it("hands over the replies of one turn together, in order, and reports them when they are taken", async () => {
    writer.send(Buffer.from("a"), "first");
    writer.send(Buffer.from("bc"), null);
    writer.send(Buffer.from("def"), "second");
    expect(kernel.handovers).to.have.length(0);
    await nextTurn();
    expect(kernel.handovers.map((chunks) => chunks.map(String))).to.deep.equal([["abcdef"]]);
    expect(answered).to.deep.equal([]);
    expect(writer.queuedBytes).to.equal(6);
    await kernel.take();
    expect(answered).to.deep.equal(["first", "second"]);
    expect(writer.queuedBytes).to.equal(0);
  });

  it("tells once of a handover of 256 KiB and more, before it is made", async () => {
    writer.send(Buffer.alloc(256 * 1024 - 1), null);
    writer.flush();
    await kernel.take();
    expect(long).to.equal(0);
    for (let i = 0; i < 2; i++) {
      writer.send(Buffer.alloc(256 * 1024), null);
      writer.flush();
      expect(long).to.equal(1);
      await kernel.take();
    }
  });

  it("hands over at once when flushed", () => {
    writer.send(Buffer.from("a"), null);
    writer.flush();
    expect(lengths()).to.deep.equal([[1]]);
  });

  it("hands over nothing before its turn while it is patient", async () => {
    isPatient = true;
    writer.send(Buffer.from("a"), "first");
    writer.flush();
    writer.send(Buffer.from("b"), "second");
    await nextTurn();
    expect(lengths()).to.deep.equal([]);
    expect(asked).to.equal(1);
    writer.turnCame();
    expect(lengths()).to.deep.equal([[2]]);
  });

  it("leaves to the end of the turn of the event loop what does not wait for the client's turn", async () => {
    writer.send(Buffer.from("a"), "first");
    writer.turnCame();
    expect(lengths()).to.deep.equal([]);
    await nextTurn();
    expect(lengths()).to.deep.equal([[1]]);
  });

  it("gathers what comes while a handover is on its way", async () => {
    writer.send(Buffer.from("a"), "first");
    writer.flush();
    writer.send(Buffer.from("b"), "second");
    writer.flush();
    await nextTurn();
    writer.send(Buffer.from("c"), "third");
    await nextTurn();
    expect(lengths()).to.deep.equal([[1]]);
    await kernel.take();
    expect(lengths()).to.deep.equal([[1], [2]]);
    expect(answered).to.deep.equal(["first"]);
  });

  it("cuts a long reply and reports it with its last part", async () => {
    const long = Buffer.alloc(2 * HANDOVER_BYTES + 10);
    for (let at = 0; at < long.length; at += 4096) long.writeUInt32BE(at, at);
    writer.send(Buffer.from("head"), "head");
    writer.send(long, "long");
    writer.send(Buffer.from("tail"), "tail");
    await nextTurn();
    await kernel.take();
    await kernel.take();
    expect(answered).to.deep.equal(["head"]);
    await kernel.take();
    expect(answered).to.deep.equal(["head", "long", "tail"]);
    expect(lengths()).to.deep.equal([[4, HANDOVER_BYTES - 4], [HANDOVER_BYTES], [18]]);
    const sent = Buffer.concat(kernel.handovers.flat());
    expect(sent.equals(Buffer.concat([Buffer.from("head"), long, Buffer.from("tail")]))).to.be.true;
  });

  it("drops what is queued when it is closed, what is under way once that is over, and what comes later", async () => {
    writer.send(Buffer.from("a"), "first");
    writer.flush();
    writer.send(Buffer.from("b"), "second");
    expect(dropped).to.deep.equal([]);
    writer.close();
    expect(dropped).to.deep.equal(["second"]);
    await kernel.take();
    expect(dropped).to.deep.equal(["second", "first"]);
    writer.send(Buffer.from("c"), "third");
    expect(dropped).to.deep.equal(["second", "first", "third"]);
    await nextTurn();
    expect(lengths()).to.deep.equal([[1]]);
    expect(answered).to.deep.equal([]);
    expect(writer.queuedBytes).to.equal(0);
  });

  it("tells when none of a handover is taken for the stall timeout", async () => {
    make(5);
    writer.send(Buffer.from("a"), null);
    while (stalled === 0) await nextTurn();
    expect(kernel.handovers).to.have.length(1);
  });

  it("takes nobody for stalled who takes some of what there is, nor who has taken all", async () => {
    make(20);
    writer.send(Buffer.from("a"), null);
    writer.flush();
    for (const endMs = performance.now() + 300; performance.now() < endMs;) {
      // Something is on its way at every other turn, and now and then when it is looked at.
      writer.send(Buffer.from("b"), null);
      await kernel.take();
      await nextTurn();
    }
    await kernel.take();
    expect(writer.queuedBytes).to.equal(0);
    await sleep(200);
    expect(stalled).to.equal(0);
  });

  it("tells of no stall once it is closed", async () => {
    make(5);
    writer.send(Buffer.from("a"), null);
    writer.flush();
    writer.close();
    await sleep(50);
    expect(stalled).to.equal(0);
  });

  it("does not count the time in which this process was stopped as a stall", async () => {
    make(1000);
    writer.send(Buffer.from("a"), "first");
    await nextTurn();
    stopThisProcess(1500);
    await nextTurn();
    await kernel.take();
    expect({ stalled, answered }).to.deep.equal({ stalled: 0, answered: ["first"] });
  });
});
