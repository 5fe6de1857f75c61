import { expect } from "chai";

import { BusyPoll } from "../../../src/nbd/server/busy-poll.js";

const MICROSECOND = 0.001;

describe("BusyPoll", () => {
  let nowMs: number;
  let next: (() => void)[];
  let poll: BusyPoll;

  const make = (processors: number): void => {
    nowMs = 1000;
    next = [];
    poll = new BusyPoll({ nowMs: () => nowMs, soon: (callback) => next.push(callback) }, processors);
  };
  /** Turns of the event loop that don't sleep, of 10 µs each. @returns how many there were */
  const run = (limit = 1000): number => {
    let turns = 0;
    for (; next.length > 0 && turns < limit; turns++) {
      nowMs += 10 * MICROSECOND;
      for (const callback of next.splice(0)) callback();
    }
    return turns;
  };

  beforeEach(() => {
    make(2);
  });

  it("keeps the event loop awake for a moment after an answer", () => {
    poll.expect();
    expect(run()).to.be.within(4, 5);
  });

  it("goes on as long as requests come in time", () => {
    for (let answer = 0; answer < 100; answer++) {
      poll.expect();
      expect(run(1)).to.equal(1);
      poll.arrived();
    }
    poll.expect();
    expect(run()).to.be.within(4, 5);
  });

  it("is hardly ever tried while nothing comes in time, and again always once something did", () => {
    const tries = (): boolean => {
      poll.expect();
      return run() > 0;
    };
    for (let answer = 0; answer < 10; answer++) tries();
    const tried = Array.from({ length: 320 }, tries).filter(Boolean);
    expect(tried.length).to.equal(10);
    while (next.length === 0) poll.expect();
    poll.arrived();
    run();
    expect(tries()).to.equal(true);
  });

  it("leaves the only processor to the client", () => {
    make(1);
    poll.expect();
    expect(run()).to.equal(0);
  });
});
