import { expect } from "chai";
import { pino } from "pino";

import { Gate } from "../../../src/block/gate.js";
import type { Clock } from "../../../src/clock.js";
import { Deferred } from "../../../src/deferred.js";
import type { Link } from "../../../src/replication/link.js";
import { PrimaryCheckpoints } from "../../../src/replication/primary-checkpoints.js";
import type { PrimaryLineage } from "../../../src/replication/primary-lineage.js";
import { turns } from "../../tools/outcome.js";

const INTERVAL_MS = 1000;

describe("a primary's periodic checkpoints", () => {
  /** Timers that are armed; each is run by the test. */
  let armed: Set<() => void>;
  let share: Deferred<void>;
  let checkpoints: PrimaryCheckpoints;

  beforeEach(() => {
    armed = new Set();
    share = new Deferred<void>();
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
      gate: new Gate(),
      link: () => ({ state: "replicating", hasControl: true }) as unknown as Link,
      lineage: { epoch: 1, share: () => share.promise } as unknown as PrimaryLineage,
      clock,
      log: pino({ level: "silent" }),
    });
  });

  function elapse(): void {
    for (const call of [...armed]) {
      armed.delete(call);
      call();
    }
  }

  async function endOne(): Promise<void> {
    share.reject(new Error("no"));
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

  it("end with the replica, also while one is under way", async () => {
    checkpoints.begin();
    elapse();
    checkpoints.end();
    await endOne();
    expect(armed.size).to.equal(0);
  });
});
