/** When a primary's link is given up, and when it is tried again, in virtual time. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { Deferred } from "../../../src/deferred.js";
import { LinkError, UnreachableError } from "../../../src/errors.js";
import { QmpError } from "../../../src/qmp/errors.js";
import { CONGESTED } from "../../../src/replication/primary/link.js";
import { failureOf, isSettled, outcome, turns } from "../../tools/outcome.js";
import { LonePrimary, MEBIBYTE } from "./lone-primary.js";

const BLOCK = Buffer.alloc(4096, 0x22);
const nobodyThere = (): UnreachableError => new UnreachableError("connection-refused", "nobody is there");

describe("a primary's link", () => {
  let lone: LonePrimary;

  beforeEach(async () => {
    lone = await LonePrimary.open();
  });

  afterEach(() => lone.time.until(lone.primary.close()));

  /** How long it was after each of the last attempts to connect before the next. */
  const pausesMs = (count: number): number[] => {
    const last = lone.attemptsMs.slice(-count - 1);
    return last.slice(1).map((atMs, index) => atMs - (last[index] ?? 0));
  };

  const loseFor = async (ms: number): Promise<void> => {
    lone.unreachable = nobodyThere();
    lone.primary.link?.giveUp(new LinkError("connection-lost", "for a while"));
    await lone.time.until(lone.time.sleep(ms));
    lone.unreachable = null;
    await lone.replicates();
  };

  it("is tried again after pauses that double from 100 ms up to 5 s, and from 100 ms on again once it was up to date", async () => {
    await loseFor(20_000);
    expect(pausesMs(8)).to.deep.equal([200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
    const lostMs = lone.time.nowMs;
    expect(lone.primary.link?.lastError, "that is mended").to.equal(null);
    await loseFor(1000);
    expect(lone.attemptsMs.filter((atMs) => atMs > lostMs).map((atMs) => atMs - lostMs)).to.deep.equal([
      100, 300, 700, 1500,
    ]);
  });

  /** Guests' writes are refused, so that the link is lost, each time that it is up to date. */
  const refuseOnce = async (): Promise<void> => {
    const refused = lone.theirs.fail({ operation: "write", offset: 0, lengthBytes: BLOCK.length, count: 1 });
    await lone.time.until(lone.guest.write(0, BLOCK, Flag.None));
    refused.remove();
    await lone.replicates();
  };

  it("is tried again ever later while the replica refuses what guests write as soon as it is up to date", async () => {
    for (let refusals = 0; refusals < 8; refusals++) await refuseOnce();
    expect(pausesMs(8)).to.deep.equal([100, 200, 400, 800, 1600, 3200, 5000, 5000]);
  });

  it("is tried again soon when the replica refuses something after it was up to date for long, whatever was before", async () => {
    for (let refusals = 0; refusals < 4; refusals++) await refuseOnce();
    await lone.time.until(lone.time.sleep(4900));
    const beforeMs = lone.time.nowMs;
    await refuseOnce();
    expect((lone.attemptsMs.at(-1) ?? 0) - beforeMs, "it had not held for 5 s").to.equal(1600);
    await lone.time.until(lone.time.sleep(5000));
    const laterMs = lone.time.nowMs;
    await refuseOnce();
    expect((lone.attemptsMs.at(-1) ?? 0) - laterMs).to.equal(100);
  });

  it("is tried again after 5 s when the replica was slower than the guest: it would be that at once", async () => {
    const lostMs = lone.time.nowMs;
    lone.primary.link?.giveUp(new LinkError(CONGESTED, "the replica is slower than the guest"));
    await lone.replicates();
    expect((lone.attemptsMs.at(-1) ?? 0) - lostMs).to.equal(5000);
  });

  it("stays when a write failed on this side's disk, and the replica gets soon what that holds now", async () => {
    const attempts = lone.attemptsMs.length;
    lone.ours.fail({ operation: "write", count: 1 });
    expect(await outcome(lone.time.until(lone.guest.write(0, BLOCK, Flag.None)))).to.equal("EIO");
    expect(lone.copy.contents(0, BLOCK.length).equals(BLOCK), "the replica has the write").to.equal(true);
    await lone.replicates();
    expect(lone.copy.contents().equals(lone.medium.contents())).to.equal(true);
    expect(lone.attemptsMs.length).to.equal(attempts);
  });

  it("is given up before another write goes to the replica when the answer to a checkpoint stays out", async () => {
    const asked = new Deferred<undefined>();
    const answer = new Deferred<undefined>();
    lone.answerCheckpoint = () => {
      asked.resolve(undefined);
      return answer.promise.then(() => undefined);
    };
    const checkpoint = failureOf(lone.primary.checkpoint());
    await lone.time.until(asked.promise);
    const write = lone.guest.write(0, BLOCK, Flag.None);
    await turns(20);
    expect(await isSettled(write), "it waits for the checkpoint").to.equal(false);
    const before = lone.copy.contents(0, BLOCK.length);
    lone.unreachable = nobodyThere();
    answer.reject(new LinkError("timeout", "no answer"));
    expect((await lone.time.until(checkpoint)).message).to.match(/no answer/);
    await lone.time.until(write);
    expect(lone.copy.contents(0, BLOCK.length).equals(before), "the replica has no write").to.equal(true);
    lone.unreachable = null;
    lone.answerCheckpoint = () => Promise.resolve();
    await lone.replicates();
    expect(lone.copy.contents().equals(lone.medium.contents())).to.equal(true);
  });

  for (const code of ["session-lost", "old-epoch"]) {
    it(`is made anew, with another handshake, when the replica refuses a checkpoint: ${code}`, async () => {
      const sessions = [lone.primary.link?.session];
      lone.answerCheckpoint = () => Promise.reject(new QmpError("GenericError", code, "no", "state"));
      expect((await lone.time.until(failureOf(lone.primary.checkpoint()))).message).to.match(/no/);
      lone.answerCheckpoint = () => Promise.resolve();
      await lone.replicates();
      sessions.push(lone.primary.link?.session);
      expect(new Set(sessions).size).to.equal(2);
    });
  }

  it("stays when the replica refuses a checkpoint for something that a handshake does not mend", async () => {
    const attempts = lone.attemptsMs.length;
    lone.answerCheckpoint = () => Promise.reject(new QmpError("GenericError", "no-space", "no", "state"));
    expect((await lone.time.until(failureOf(lone.primary.checkpoint()))).message).to.match(/no/);
    await lone.time.until(lone.time.sleep(10_000));
    expect([lone.attemptsMs.length, lone.primary.link?.state]).to.deep.equal([attempts, "replicating"]);
  });

  const cut = async (): Promise<void> => {
    lone.primary.link?.giveUp(new LinkError("connection-lost", "for a moment"));
    await lone.replicates();
  };

  /** How many writes are sent to the replica meanwhile. */
  const sentDuring = async (action: () => Promise<void>): Promise<number> => {
    const writes = lone.theirs.delay({ operation: "write" }, 0);
    await action();
    writes.remove();
    return writes.taken;
  };

  it("leaves no connection behind", async () => {
    await cut();
    await cut();
    expect(lone.openControls).to.equal(1);
  });

  it("is given up when it is to end while it is being made", async () => {
    const connecting = new Deferred<undefined>();
    lone.connecting = connecting.promise.then(() => undefined);
    lone.primary.link?.giveUp(new LinkError("connection-lost", "for a moment"));
    const attempts = lone.attemptsMs.length;
    await lone.time.until(lone.time.sleep(200));
    expect(lone.attemptsMs.length).to.equal(attempts + 1);
    const detached = lone.primary.detach();
    await turns(20);
    connecting.resolve(undefined);
    await lone.time.until(detached);
    expect(lone.openControls).to.equal(0);
  });

  it("is made anew when it is lost while a copy waits for its rate, which holds up no other", async () => {
    const piece = lone.theirs.hold({ operation: "write" });
    const writes = Promise.all(
      [0, 1, 2, 3].map((index) => lone.guest.write(index * MEBIBYTE, BLOCK, Flag.None)),
    );
    await lone.time.until(piece.arrived(4));
    lone.primary.rate.set(1);
    lone.primary.link?.giveUp(new LinkError("connection-lost", "for a moment"));
    await lone.time.until(writes);
    piece.release();
    await lone.time.until(lone.time.sleep(1000));
    expect(lone.primary.link?.state).to.equal("resyncing");
    const attempts = lone.attemptsMs.length;
    lone.primary.link?.giveUp(new LinkError("connection-lost", "once more"));
    await lone.time.until(lone.time.sleep(1000));
    expect(lone.attemptsMs.length).to.equal(attempts + 1);
    lone.primary.rate.set(0);
    await lone.replicates();
  });

  it("sends nothing again that the replica has kept in its memory, and all of it that it has lost with that", async () => {
    await lone.time.until(lone.guest.write(0, BLOCK, Flag.None));
    expect(await sentDuring(cut), "it has kept it").to.equal(0);
    await lone.time.until(lone.guest.write(0, BLOCK, Flag.None));
    lone.copy.fill(0, Buffer.alloc(BLOCK.length, 0x11));
    lone.memory = "second";
    await cut();
    expect(lone.copy.contents().equals(lone.medium.contents())).to.equal(true);
  });

  it("copies everything to a replica that is older than a checkpoint that it had, once", async () => {
    lone.told.durable(7);
    lone.copy.fill(0, Buffer.alloc(8 * MEBIBYTE, 0x33));
    lone.epoch = 6;
    await cut();
    expect(lone.copy.contents().equals(lone.medium.contents())).to.equal(true);
    expect(await sentDuring(cut), "it is known now").to.equal(0);
  });

  it("knows no rollback any more that was lost before the replica shook hands again", async () => {
    lone.told.rollbackLost({ epoch: 1, reason: "no space" });
    expect(lone.primary.link?.rollbackLost).to.equal("no space");
    await cut();
    expect(lone.primary.link?.rollbackLost).to.equal(null);
  });
});

describe("a primary's link to a replica that a manager drives", () => {
  it("copies everything each time that it is made: anybody may have written there", async () => {
    const lone = await LonePrimary.open({ hasControl: false });
    // Else what the replica has in memory alone is copied in any case.
    await lone.time.until(lone.time.sleep(60_000));
    lone.copy.fill(0, Buffer.alloc(4096, 0x33));
    lone.primary.link?.giveUp(new LinkError("connection-lost", "for a moment"));
    await lone.replicates();
    expect(lone.copy.contents().equals(lone.medium.contents())).to.equal(true);
    await lone.time.until(lone.primary.close());
  });
});
