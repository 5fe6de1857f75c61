import { expect } from "chai";

import { Gate } from "../../../src/block/gate.js";
import { MemoryBudget } from "../../../src/block/memory-budget.js";
import type { Clock } from "../../../src/clock.js";
import { Deferred } from "../../../src/deferred.js";
import type { Link } from "../../../src/replication/primary/link.js";
import { PrimaryCheckpoints } from "../../../src/replication/primary/checkpoints.js";
import type { PrimaryLineage } from "../../../src/replication/primary/lineage.js";
import { memoryLogger } from "../../tools/memory-logger.js";
import { failureOf, turns } from "../../tools/outcome.js";

const INTERVAL_MS = 1000;

describe("a primary's periodic checkpoints", () => {
  /** Timers that are armed; each is run by the test. */
  let armed: Set<() => void>;
  let share: Deferred<void>;
  let announced: Promise<void>;
  /** Epochs that the replica was asked to begin. */
  let asked: number[];
  let checkpoints: PrimaryCheckpoints;
  let logged: Record<string, unknown>[];

  beforeEach(() => {
    armed = new Set();
    share = new Deferred<void>();
    announced = Promise.resolve();
    asked = [];
    logged = [];
    const clock: Clock = {
      nowMs: () => 0,
      after: (ms, call) => {
        expect(ms).to.equal(INTERVAL_MS);
        armed.add(call);
        return () => {
          armed.delete(call);
        };
      },
      every: () => () => undefined,
    };
    checkpoints = new PrimaryCheckpoints({
      intervalMs: INTERVAL_MS,
      disks: [],
      memory: new MemoryBudget(0),
      gate: new Gate(),
      link: () =>
        ({
          state: "replicating",
          hasControl: true,
          prepareCheckpoint: () => Promise.resolve(),
          checkpoint: (epoch: number) => {
            asked.push(epoch);
            return Promise.reject(new Error("refused"));
          },
        }) as unknown as Link,
      lineage: {
        epoch: 1,
        share: () => share.promise,
        announce: () => announced,
        tell: (word: () => Promise<void>) => word(),
      } as unknown as PrimaryLineage,
      clock,
      log: memoryLogger(logged),
    });
  });

  function elapse(): void {
    for (const call of [...armed]) {
      armed.delete(call);
      call();
    }
  }

  async function endOne(reason = "no"): Promise<void> {
    await turns();
    share.reject(new Error(reason));
    share = new Deferred<void>();
    await turns();
  }

  it("are awaited one at a time, each when the one before has ended", async () => {
    checkpoints.begin();
    expect(armed.size).to.equal(1);
    elapse();
    expect(armed.size).to.equal(0);
    await endOne();
    expect(armed.size).to.equal(1);
    checkpoints.end();
    expect(armed.size).to.equal(0);
  });

  it("are not awaited twice by a replica that is attached while one for the replica before is under way", async () => {
    checkpoints.begin();
    elapse();
    checkpoints.end();
    checkpoints.begin();
    await endOne();
    expect(armed.size).to.equal(1);
    checkpoints.end();
    expect(armed.size).to.equal(0);
  });

  it("have a log line for each reason why they fail, not for each that fails", async () => {
    checkpoints.begin();
    for (const reason of ["full", "full", "full", "broken", "full"]) {
      elapse();
      await endOne(reason);
    }
    const warnings = logged.filter(({ level }) => level === 40);
    expect(warnings.map(({ error, msg }) => [error, msg])).to.deep.equal([
      ["full", "checkpoint failed"],
      ["broken", "checkpoint failed"],
      ["full", "checkpoint failed"],
    ]);
    expect(checkpoints.failure).to.include({ reason: "full", attempts: 5 });
    checkpoints.end();
  });

  it("are not asked for before it is on record which epoch, and of which generation", async () => {
    const announcing = new Deferred<void>();
    announced = announcing.promise;
    const taken = failureOf(checkpoints.take());
    share.resolve();
    await turns();
    expect(asked).to.deep.equal([]);
    announcing.resolve();
    await taken;
    expect(asked).to.deep.equal([2]);
  });

  it("end with the replica, also while one is under way", async () => {
    checkpoints.begin();
    elapse();
    checkpoints.end();
    await endOne();
    expect(armed.size).to.equal(0);
  });
});
