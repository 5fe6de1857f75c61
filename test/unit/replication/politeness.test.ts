import { expect } from "chai";

import type { Clock } from "../../../src/clock.js";
import { Politeness } from "../../../src/replication/primary/politeness.js";
import { isSettled, turns } from "../../tools/outcome.js";

/** A clock that stands still until it is set forward. */
class ManualClock implements Clock {
  #nowMs = 1000;
  #timers: { readonly atMs: number; readonly call: () => void }[] = [];

  nowMs(): number {
    return this.#nowMs;
  }

  after(ms: number, call: () => void): () => void {
    const timer = { atMs: this.#nowMs + ms, call };
    this.#timers.push(timer);
    return () => {
      this.#timers = this.#timers.filter((other) => other !== timer);
    };
  }

  every(): never {
    throw new Error("nobody needs this here");
  }

  pass(ms: number): Promise<void> {
    this.#nowMs += ms;
    for (const { atMs, call } of [...this.#timers]) if (atMs <= this.#nowMs) call();
    return turns();
  }
}

describe("Politeness", () => {
  const { signal } = new AbortController();
  let clock: ManualClock;
  let guests: { requests: number; inFlight: number };
  let politeness: Politeness;

  beforeEach(() => {
    clock = new ManualClock();
    guests = { requests: 0, inFlight: 0 };
    politeness = new Politeness(guests, clock);
  });

  /** A guest that has just made requests. */
  const disturb = async (): Promise<void> => {
    guests.requests++;
    await clock.pass(50);
  };

  it("does all pieces at once while no guest is at work", async () => {
    await clock.pass(1000);
    let done = 0;
    const piece = (): Promise<void> => {
      done++;
      return Promise.resolve();
    };
    await Promise.all([1, 2, 3].map(() => politeness.run(piece, signal)));
    expect(done).to.equal(3);
  });

  it("does one at a time beside a guest, and rests after it as a multiple of what it took", async () => {
    await disturb();
    let done = 0;
    const piece = async (): Promise<void> => {
      await clock.pass(4);
      done++;
    };
    const pieces = [politeness.run(piece, signal), politeness.run(piece, signal)];
    await turns(10);
    expect(done).to.equal(1);
    await clock.pass(11);
    expect(done).to.equal(1);
    await clock.pass(1);
    await turns(10);
    expect(done).to.equal(2);
    await clock.pass(12);
    await Promise.all(pieces);
  });

  it("rests for a moment at most, however long a piece took", async () => {
    await disturb();
    const piece = politeness.run(() => clock.pass(10_000), signal);
    await turns();
    expect(await isSettled(piece)).to.equal(false);
    await clock.pass(249);
    expect(await isSettled(piece)).to.equal(false);
    await clock.pass(1);
    await piece;
  });

  it("takes a guest for at work that makes no request because it waits for one", async () => {
    guests.inFlight = 1;
    await clock.pass(50);
    const piece = politeness.run(() => clock.pass(1), signal);
    await turns();
    expect(await isSettled(piece)).to.equal(false);
    await clock.pass(3);
    await piece;
  });

  it("goes on as fast as it can when the guest has stopped", async () => {
    await disturb();
    void politeness.run(() => Promise.resolve(), signal);
    await clock.pass(50);
    let done = 0;
    const piece = (): Promise<void> => {
      done++;
      return Promise.resolve();
    };
    await Promise.all([1, 2].map(() => politeness.run(piece, signal)));
    expect(done).to.equal(2);
  });

  it("doesn't rest when the work is given up, and passes on what went wrong", async () => {
    await disturb();
    const stop = new AbortController();
    const piece = politeness.run(() => clock.pass(5), stop.signal);
    await turns();
    stop.abort();
    await piece;
    const failed = politeness.run(() => Promise.reject(new Error("unreadable")), stop.signal);
    expect(await failed.catch(String)).to.equal("Error: unreadable");
  });
});
