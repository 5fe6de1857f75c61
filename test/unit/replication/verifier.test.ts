/** What becomes of a verify when the link is lost, when the replica falls silent, and when it is not wanted any more. In virtual time. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { Deferred } from "../../../src/deferred.js";
import { LinkError, UnreachableError } from "../../../src/errors.js";
import { QmpError } from "../../../src/qmp/errors.js";
import { type DigestRequest, digestsOf } from "../../../src/replication/digest.js";
import type { VerifyRequest } from "../../../src/replication/primary/verifier.js";
import type { VerifyReport } from "../../../src/status.js";
import { isSettled, turns } from "../../tools/outcome.js";
import { commandsOf, LonePrimary, MEBIBYTE } from "./lone-primary.js";

const SIZE_BYTES = 8 * MEBIBYTE;
const BLOCK = Buffer.alloc(4096, 0x22);
const ALL: VerifyRequest = { disk: null, repair: false, bytesPerSecond: 0 };

describe("a verify", () => {
  let lone: LonePrimary;

  beforeEach(async () => {
    lone = await LonePrimary.open();
  });

  afterEach(() => lone.time.until(lone.primary.close()));

  /** What the replica answers who asks for digests. */
  const digests = (args: unknown): object => {
    const { ranges, block } = args as DigestRequest;
    return {
      digests: ranges.map(({ offset, length }) => digestsOf(lone.copy.contents(offset, length), block)),
    };
  };

  /**
   * The replica answers as the script has it: for each attempt how many questions it answers before it fails, and how. Behind the end
   * of the script it answers all.
   * @returns when it was asked, for each attempt once: two are never at the same instant
   */
  const answering = (...script: readonly (readonly [answers: number, failure: Error])[]): number[] => {
    const askedMs: number[] = [];
    let asked = 0;
    lone.commands = commandsOf((_command, args) => {
      asked = askedMs.at(-1) === lone.time.nowMs ? asked + 1 : 1;
      if (asked === 1) askedMs.push(lone.time.nowMs);
      const attempt = script[askedMs.length - 1];
      return attempt === undefined || asked <= attempt[0]
        ? Promise.resolve(digests(args))
        : Promise.reject(attempt[1]);
    });
    return askedMs;
  };

  const start = (request: Partial<VerifyRequest> = {}): void => {
    lone.primary.verifier.start({ ...ALL, ...request });
  };

  /** Each test ends so: everything was compared, and nothing twice. */
  const expectCompleted = async (): Promise<void> => {
    expect(await lone.verified()).to.deep.include({
      outcome: "completed",
      error: null,
      comparedBytes: SIZE_BYTES,
      skippedBytes: 0,
      differingBytes: 0,
    });
    expect(lone.primary.verifier.verifies).to.deep.equal([]);
  };

  const lastReport = (): VerifyReport | null => {
    const [disk] = lone.primary.disks;
    return disk === undefined ? null : lone.primary.verifier.lastReport(disk);
  };

  const lost = new LinkError("connection-lost", "it is gone");
  const inVain = [0, lost] as const;
  const notInVain = [1, lost] as const;

  it("has failed when twice in a row it compared nothing, and says why", async () => {
    const askedMs = answering(inVain, inVain, inVain);
    start();
    expect(await lone.verified()).to.deep.include({
      outcome: "failed",
      error: "it is gone",
      comparedBytes: 0,
    });
    expect(askedMs.map((atMs) => atMs - (askedMs[0] ?? 0))).to.deep.equal([0, 500]);
  });

  it("goes on however often it is interrupted, as long as of two attempts in a row one compared something", async () => {
    const askedMs = answering(inVain, notInVain, inVain, notInVain, notInVain, inVain);
    start();
    await expectCompleted();
    expect(askedMs.map((atMs) => atMs - (askedMs[0] ?? 0))).to.deep.equal([
      0, 500, 1000, 1500, 2000, 2500, 3000,
    ]);
  });

  for (const [what, interruption] of [
    ["takes its session for lost", new QmpError("GenericError", "session-lost", "another session", "state")],
    ["can't be reached", new UnreachableError("connection-refused", "nobody is there")],
  ] as const) {
    it(`goes on when the replica ${what} for a moment`, async () => {
      const askedMs = answering([0, interruption]);
      start();
      await expectCompleted();
      expect(askedMs.length).to.equal(2);
    });
  }

  it("has failed at once when the replica refuses for something that no new link mends", async () => {
    const refused = new QmpError("GenericError", "EIO", "its disk can't be read", "state");
    const askedMs = answering([0, refused]);
    start();
    expect(await lone.verified()).to.deep.include({ outcome: "failed", error: "its disk can't be read" });
    expect(askedMs.length).to.equal(1);
    expect(lastReport()?.error).to.equal("its disk can't be read");
  });

  it("gives the link up when an answer stays out, and goes on over the next one", async () => {
    const attempts = lone.attemptsMs.length;
    const sessions = [lone.primary.link?.session];
    const silent = new LinkError("timeout", "no answer for 5000 ms");
    answering([0, silent]);
    start();
    await turns(20);
    expect(lone.primary.link?.lastError).to.equal(silent);
    await expectCompleted();
    sessions.push(lone.primary.link?.session);
    expect(lone.attemptsMs.length).to.equal(attempts + 1);
    expect(new Set(sessions).size).to.equal(2);
  });

  it("leaves the link alone when no more than the connection for its questions is lost", async () => {
    const attempts = lone.attemptsMs.length;
    answering(inVain);
    start();
    await expectCompleted();
    expect([lone.attemptsMs.length, lone.primary.link?.lastError]).to.deep.equal([attempts, null]);
  });

  /** The replica answers nothing. @returns when it was asked */
  const silently = (): Promise<undefined> => {
    const asked = new Deferred<undefined>();
    lone.commands = commandsOf(() => {
      asked.resolve(undefined);
      return new Promise<never>(() => undefined);
    });
    return asked.promise;
  };

  const silentlyStarted = (): Promise<undefined> => {
    const asked = silently();
    start();
    return asked;
  };

  const lose = (): void => {
    lone.unreachable = new UnreachableError("connection-refused", "nobody is there");
    lone.primary.link?.giveUp(new LinkError("connection-lost", "for a while"));
  };

  it("holds up guests no longer than the link, whose loss ends what it asks", async () => {
    await lone.time.until(silentlyStarted());
    const write = lone.guest.write(0, BLOCK, Flag.None);
    expect(await isSettled(write), "it waits for the answer").to.equal(false);
    const lostMs = lone.time.nowMs;
    lose();
    await lone.time.until(write);
    expect(lone.time.nowMs).to.equal(lostMs);
    answering();
    lone.unreachable = null;
    await expectCompleted();
  });

  it("does not ask before the replica takes every change again", async () => {
    const askedMs = answering();
    lose();
    const lostMs = lone.time.nowMs;
    await turns(20);
    lone.unreachable = null;
    expect(() => {
      start();
    }).to.throw("verify refused: the replica is disconnected");
    await lone.replicates();
    expect(askedMs).to.deep.equal([]);
    expect(lone.time.nowMs).to.equal(lostMs + 100);
    void silently();
    start();
    await turns(20);
    lose();
    await lone.time.until(lone.time.sleep(60_000));
    const again = answering();
    lone.unreachable = null;
    await lone.time.until(lone.time.sleep(60_000));
    const upToDateMs = lone.time.nowMs;
    await expectCompleted();
    expect(again.length).to.equal(1);
    expect(again[0]).to.be.within(lostMs + 60_000, upToDateMs);
  });

  const cancelAll = (): Promise<void> => lone.primary.verifier.cancel();
  const cancelOne = (): Promise<void> => {
    lone.primary.verifier.verifies[0]?.cancel();
    return Promise.resolve();
  };

  const expectCancelled = async (comparedBytes = 0): Promise<void> => {
    const cancelledMs = lone.time.nowMs;
    expect(await lone.verified()).to.deep.include({ outcome: "cancelled", error: null, comparedBytes });
    expect(lone.time.nowMs, "at once").to.equal(cancelledMs);
    expect(lone.primary.verifier.verifies).to.deep.equal([]);
  };

  for (const [how, cancel] of [
    ["with the link", cancelAll],
    ["by itself", cancelOne],
  ] as const) {
    it(`is cancelled ${how} while it waits for the replica to take every change again`, async () => {
      await lone.time.until(silentlyStarted());
      lose();
      await lone.time.until(lone.time.sleep(20_000));
      const cancelled = cancel();
      await expectCancelled();
      await cancelled;
    });

    it(`is cancelled ${how} before it has begun to ask`, async () => {
      const askedMs = answering();
      start();
      const cancelled = cancel();
      await expectCancelled();
      await cancelled;
      expect(askedMs).to.deep.equal([]);
    });

    it(`is cancelled ${how} between two attempts`, async () => {
      const askedMs = answering(inVain);
      start();
      await turns(20);
      const cancelled = cancel();
      await expectCancelled();
      await cancelled;
      expect(askedMs.length).to.equal(1);
    });
  }

  it("is cancelled with the link while the replica answers nothing, and asks no more then", async () => {
    let asked = 0;
    lone.commands = commandsOf((_command, args) => {
      asked++;
      return asked === 1 ? Promise.resolve(digests(args)) : new Promise<never>(() => undefined);
    });
    start();
    await turns(20);
    expect(asked).to.equal(3);
    const cancelled = cancelAll();
    await expectCancelled(256 * 1024);
    await cancelled;
    expect(asked).to.equal(3);
  });

  it("has ended, with all that it reads, when it is said to be cancelled", async () => {
    answering();
    const reads = lone.ours.hold({ operation: "read" });
    start();
    await lone.time.until(reads.arrived(1));
    const cancelled = cancelAll();
    expect(await isSettled(cancelled)).to.equal(false);
    reads.release();
    await lone.time.until(cancelled);
    expect(lone.primary.verifier.verifies).to.deep.equal([]);
  });

  it("leaves no connection for its questions behind, of whatever attempt", async () => {
    const askedMs = answering(inVain, notInVain);
    let closed = 0;
    lone.commands = {
      ...lone.commands,
      close: () => {
        closed++;
        return Promise.resolve();
      },
    };
    start();
    await expectCompleted();
    await turns();
    expect([askedMs.length, closed]).to.deep.equal([3, 3]);
  });

  it("is refused beside another of the same disk, whether that is named or not, and for a disk that there is not", async () => {
    void silently();
    start({ disk: "disk0" });
    for (const disk of ["disk0", null]) {
      expect(() => {
        start({ disk });
      }).to.throw("verify refused: a verify of disk0 runs already");
    }
    expect(lone.primary.verifier.verifies.length).to.equal(1);
    expect(() => {
      start({ disk: "disk7" });
    }).to.throw("there is no disk disk7");
    await cancelAll();
  });

  it("is refused for a replica that tells no digests, as QEMU's, and without one", async () => {
    lone.hasDigests = false;
    lone.primary.link?.giveUp(new LinkError("connection-lost", "for a moment"));
    await lone.replicates();
    expect(() => {
      start();
    }).to.throw(
      "verify refused: a QEMU can't be asked for digests: stop the guest and compare both exports by qemu-img compare",
    );
    await lone.time.until(lone.primary.detach());
    expect(() => {
      start();
    }).to.throw("verify refused: no replica is attached");
    expect(lone.primary.verifier.verifies).to.deep.equal([]);
  });

  describe("that has ended", () => {
    const verify = async (): Promise<VerifyReport> => {
      answering();
      start();
      return lone.verified();
    };

    const cut = async (): Promise<void> => {
      lone.primary.link?.giveUp(new LinkError("connection-lost", "for a moment"));
      await lone.replicates();
    };

    it("is remembered over losses of the link after which some is sent again, though all might have been lost", async () => {
      lone.copy.fill(0, BLOCK);
      const report = await verify();
      expect(report.differences).to.deep.equal([{ offset: 0, lengthBytes: BLOCK.length }]);
      lose();
      await lone.time.until(lone.guest.write(MEBIBYTE, BLOCK, Flag.None));
      lone.unreachable = null;
      await lone.replicates();
      expect(lone.copy.contents(MEBIBYTE, BLOCK.length).equals(BLOCK)).to.equal(true);
      expect(lastReport()).to.equal(report);
    });

    it("is forgotten when everything is copied anew", async () => {
      lone.copy.fill(0, BLOCK);
      const report = await verify();
      expect(lastReport()).to.equal(report);
      lone.told.durable(7);
      lone.epoch = 6;
      await cut();
      expect(lastReport()).to.equal(null);
      expect(lone.copy.contents().equals(lone.medium.contents())).to.equal(true);
    });
  });
});

describe("a verify of a replica that a manager drives", () => {
  it("is refused: there is nobody to ask for digests", async () => {
    const lone = await LonePrimary.open({ hasControl: false });
    expect(() => {
      lone.primary.verifier.start(ALL);
    }).to.throw(
      "verify refused: a replica that a manager drives can't be asked for digests; attach a repl-secondary with --replica-qmp",
    );
    await lone.time.until(lone.primary.close());
  });
});
