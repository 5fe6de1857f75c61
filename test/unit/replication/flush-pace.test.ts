import { expect } from "chai";

import { FlushPace, type FlushState } from "../../../src/replication/primary/flush-pace.js";

describe("FlushPace", () => {
  let pace: FlushPace;
  let acknowledgements: number;

  beforeEach(() => {
    pace = new FlushPace();
    acknowledgements = 0;
  });

  /** Looks at a disk that was written to, and flushes it if it is due. @returns whether it was */
  function look(nowMs: number, tookMs: number, told: Partial<FlushState> = {}): boolean {
    const state = { acknowledgements: acknowledgements++, missedBytes: 0, isCrowded: false, ...told };
    const isDue = pace.due(nowMs, [state]).has(0);
    pace.flushed(nowMs, nowMs + (isDue ? tookMs : 0));
    return isDue;
  }

  it("flushes a disk under load at every look while that takes a tenth of the time at most", () => {
    expect([0, 1000, 2000, 3000].map((nowMs) => look(nowMs, 100))).to.deep.equal([true, true, true, true]);
  });

  it("gives flushes that take longer a tenth of the time", () => {
    const looks = [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000];
    expect(looks.filter((nowMs) => look(nowMs, 300))).to.deep.equal([0, 3000, 6000]);
  });

  it("flushes every 5 s however long it takes", () => {
    const looks = [0, 3000, 4000, 5000, 6000, 10_000, 14_000, 15_000];
    expect(looks.filter((nowMs) => look(nowMs, 2500))).to.deep.equal([0, 5000, 10_000, 15_000]);
  });

  it("goes by the last flush that was due, not by looks between at which nothing was", () => {
    look(0, 400);
    expect([1000, 2000, 3000].map((nowMs) => look(nowMs, 0))).to.deep.equal([false, false, false]);
    expect(look(4000, 0)).to.equal(true);
    expect(look(5000, 0)).to.equal(true);
  });

  it("flushes a disk at rest at once, also beside one under load, which waits", () => {
    const busy = (): FlushState => ({
      acknowledgements: acknowledgements++,
      missedBytes: 0,
      isCrowded: false,
    });
    const resting = { acknowledgements: 7, missedBytes: 0, isCrowded: false };
    expect([...pace.due(0, [busy(), resting])]).to.deep.equal([0, 1]);
    pace.flushed(0, 400);
    expect([...pace.due(1000, [busy(), resting])]).to.deep.equal([1]);
    pace.flushed(1000, 1001);
    expect([...pace.due(2000, [busy(), { ...resting, acknowledgements: 8 }])]).to.deep.equal([]);
    expect([...pace.due(3000, [busy(), { ...resting, acknowledgements: 8 }])]).to.deep.equal([1]);
  });

  it("flushes a disk that gets a copy at every look: the copy goes on from there after a crash", () => {
    look(0, 500);
    const copy = { missedBytes: 65_536 };
    expect([1000, 2000, 3000].map((nowMs) => look(nowMs, 500, copy))).to.deep.equal([true, true, true]);
  });

  it("flushes a disk at every look while far more extents are hot than should be: a crash would cost their copy", () => {
    look(0, 500);
    const crowded = { isCrowded: true };
    expect([1000, 2000].map((nowMs) => look(nowMs, 500, crowded))).to.deep.equal([true, true]);
    expect(look(3000, 500)).to.equal(false);
  });
});
