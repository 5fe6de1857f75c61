/** When a replica that is connected is given up for its silence, on a clock that the test sets. */
import { expect } from "chai";

import type { Clock } from "../../../src/clock.js";
import type { PrimaryDisk } from "../../../src/replication/primary/disk.js";
import {
  ReplicaConnections,
  type ReplicaConnectionsEvents,
} from "../../../src/replication/primary/replica-connections.js";
import type { ReplicaDisk, ReplicaNetwork } from "../../../src/replication/primary/replica-network.js";
import { isSettled, turns } from "../../tools/outcome.js";

const TIMEOUT_MS = 5000;
/** What is in flight takes many times as long as an answer may, all in all. */
const REQUESTS = 40;

class ManualClock implements Clock {
  #nowMs = 1000;
  readonly #timers: { readonly everyMs: number; nextMs: number; readonly call: () => void }[] = [];

  nowMs(): number {
    return this.#nowMs;
  }

  after(): never {
    throw new Error("nobody needs this here");
  }

  every(everyMs: number, call: () => void): () => void {
    const timer = { everyMs, nextMs: this.#nowMs + everyMs, call };
    this.#timers.push(timer);
    return () => {
      timer.nextMs = Infinity;
    };
  }

  /** The process is stopped, and goes on with its timers. */
  stop(ms: number): void {
    this.#nowMs += ms;
    for (const timer of this.#timers) {
      timer.nextMs = this.#nowMs + timer.everyMs;
      timer.call();
    }
  }

  async pass(ms: number): Promise<void> {
    for (const endMs = this.#nowMs + ms; this.#nowMs < endMs; this.#nowMs += 100) {
      for (const timer of this.#timers) {
        if (timer.nextMs > this.#nowMs) continue;
        timer.nextMs += timer.everyMs;
        timer.call();
      }
    }
    await turns();
  }
}

describe("ReplicaConnections", () => {
  let clock: ManualClock;
  /** Sent, and not answered yet. */
  let pending: { readonly sentAtMs: number }[];
  let connections: ReplicaConnections;
  /** Whether the replica has something in memory alone. */
  let hasVolatile: boolean;
  /** What the dirty map hears of a flush, and the flush itself. */
  let flush: string[];
  let flushFails: boolean;

  beforeEach(async () => {
    clock = new ManualClock();
    pending = [];
    hasVolatile = false;
    flush = [];
    flushFails = false;
    const info = { sizeBytes: 4096, writable: true };
    const replica = {
      info,
      ended: new Promise(() => undefined),
      destroy: () => undefined,
      flush: () => {
        flush.push("flush");
        return flushFails ? Promise.reject(new Error("no")) : Promise.resolve();
      },
      close: () => Promise.resolve(),
      get oldestPending() {
        return pending[0] ?? null;
      },
    } as unknown as ReplicaDisk;
    const dirty = {
      get hasVolatile() {
        return hasVolatile;
      },
      isFlushing: false,
      beginFlush: () => flush.push("begins"),
      endFlush: (isDurable: boolean) => flush.push(isDurable ? "is durable" : "has failed"),
    };
    const disk = { name: "disk0", local: { info }, dirty } as unknown as PrimaryDisk;
    connections = await ReplicaConnections.open(
      {
        address: { kind: "unix", path: "nowhere" },
        control: null,
        disks: [disk],
        timeoutMs: TIMEOUT_MS,
        clock,
        network: { disk: () => Promise.resolve(replica) } as unknown as ReplicaNetwork,
      },
      {} as ReplicaConnectionsEvents,
    );
    connections.lost.catch(() => undefined);
    pending = Array.from({ length: REQUESTS }, () => ({ sentAtMs: clock.nowMs() }));
  });

  it("keep a replica that is slow: each answer comes in time, if long after its request was sent", async () => {
    while (pending.length > 0) {
      await clock.pass(TIMEOUT_MS / 2);
      pending.shift();
    }
    await clock.pass(10 * TIMEOUT_MS);
    expect(await isSettled(connections.lost)).to.equal(false);
  });

  it("give up a replica that is so slow that a request waits for 24 time-outs, though each answer comes in time", async () => {
    pending = Array.from({ length: 3 * REQUESTS }, () => ({ sentAtMs: clock.nowMs() }));
    const answer = async (count: number): Promise<void> => {
      for (let answered = 0; answered < count; answered++) {
        await clock.pass(TIMEOUT_MS / 2);
        pending.shift();
      }
    };
    await answer(47);
    expect(await isSettled(connections.lost)).to.equal(false);
    await answer(3);
    const reason: unknown = await connections.lost.catch((error: unknown) => error);
    expect(reason).to.have.property("message", "the replica has kept a request waiting for 120000 ms");
  });

  it("keep a replica whose answers are not read yet because this process was stopped, for longer than a request may ever wait", async () => {
    await clock.pass(TIMEOUT_MS / 2);
    clock.stop(30 * TIMEOUT_MS);
    await turns();
    expect(await isSettled(connections.lost)).to.equal(false);
    pending = pending.slice(-1);
    await clock.pass(TIMEOUT_MS / 2);
    expect(await isSettled(connections.lost)).to.equal(false);
    await clock.pass(TIMEOUT_MS);
    expect(await isSettled(connections.lost), "what is unanswered then is silence").to.equal(true);
  });

  for (const [outcome, fails] of [
    ["is durable", false],
    ["has failed", true],
  ] as const) {
    it(`take for durable what was acknowledged before a flush began, which ${outcome}, and nothing later`, async () => {
      hasVolatile = true;
      flushFails = fails;
      await connections.close();
      expect(flush).to.deep.equal(["begins", "flush", outcome]);
    });
  }

  it("give up a replica that answers nothing", async () => {
    await clock.pass(2 * TIMEOUT_MS);
    expect(await isSettled(connections.lost)).to.equal(true);
  });

  it("give up a replica that answers all but one request", async () => {
    for (let answered = 1; answered < REQUESTS; answered++) {
      await clock.pass(TIMEOUT_MS / 10);
      pending.splice(1, 1);
    }
    expect(await isSettled(connections.lost)).to.equal(true);
  });
});
