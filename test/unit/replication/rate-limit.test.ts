/** Of the order in which work is let through; how long that takes is nobody's promise. */
import { expect } from "chai";

import { RateLimit } from "../../../src/replication/primary/rate-limit.js";
import { isSettled } from "../../tools/outcome.js";

const HOUR_OF_WORK = 3600 * 1000;
const never = new AbortController().signal;

describe("RateLimit", () => {
  it("lets everything through at once without a limit", async () => {
    const rate = new RateLimit(0);
    for (let count = 0; count < 100; count++)
      expect(await isSettled(rate.take(2 ** 50, never))).to.equal(true);
  });

  it("lets a burst through at once, and then makes work wait", async () => {
    const stop = new AbortController();
    const rate = new RateLimit(1000);
    expect(await isSettled(rate.take(100, stop.signal))).to.equal(true);
    const later = rate.take(HOUR_OF_WORK, stop.signal);
    expect(await isSettled(later)).to.equal(false);
    stop.abort();
    await later;
  });

  it("lets work through in the order it was asked for", async () => {
    const rate = new RateLimit(100_000);
    const order: number[] = [];
    await Promise.all([0, 1, 2, 3, 4].map((index) => rate.take(3000, never).then(() => order.push(index))));
    expect(order).to.deep.equal([0, 1, 2, 3, 4]);
  });

  it("holds a changed limit against those who wait already", async () => {
    const rate = new RateLimit(1);
    const waiting = [rate.take(HOUR_OF_WORK, never), rate.take(HOUR_OF_WORK, never)];
    expect(await Promise.all(waiting.map(isSettled))).to.deep.equal([false, false]);
    rate.set(2);
    expect(rate.bytesPerSecond).to.equal(2);
    expect(await Promise.all(waiting.map(isSettled)), "still too much").to.deep.equal([false, false]);
    rate.set(0);
    await Promise.all(waiting);
  });

  it("lets nobody wait for work that is given up, before or meanwhile", async () => {
    const stop = new AbortController();
    const rate = new RateLimit(1);
    const waiting = rate.take(HOUR_OF_WORK, stop.signal);
    stop.abort();
    await waiting;
    await rate.take(HOUR_OF_WORK, stop.signal);
  });

  it("has nobody wait for what was asked for by work that is given up", async () => {
    const stop = new AbortController();
    const rate = new RateLimit(1000);
    const waiting = [
      rate.take(1000 * HOUR_OF_WORK, stop.signal),
      rate.take(1000 * HOUR_OF_WORK, stop.signal),
    ];
    stop.abort();
    await Promise.all(waiting);
    expect(await isSettled(rate.take(100, never))).to.equal(true);
  });
});
