import { expect } from "chai";

import { Silence } from "../../../src/replication/primary/silence.js";

describe("Silence", () => {
  let silence: Silence;

  beforeEach(() => {
    silence = new Silence(5000);
  });

  /** A request that was sent at that time. */
  const sent = (sentAtMs: number): { readonly sentAtMs: number } => ({ sentAtMs });

  it("is none while nothing waits for an answer", () => {
    expect(silence.look(null, 1000)).to.equal(0);
    silence.look(sent(1000), 2000);
    expect(silence.look(null, 9000)).to.equal(0);
  });

  it("lasts since the request was sent, if nothing waited before it", () => {
    silence.look(null, 1000);
    const request = sent(1100);
    expect(silence.look(request, 1500)).to.equal(400);
    expect(silence.look(request, 6100)).to.equal(5000);
  });

  it("is short if one request after the other is answered, however long ago the last of them was sent", () => {
    const queue = Array.from({ length: 100 }, () => sent(0));
    const longest = Math.max(...queue.map((oldest, index) => silence.look(oldest, index * 1000)));
    expect(longest).to.equal(0);
  });

  it("grows with one request that stays unanswered, whatever became of those before it", () => {
    silence.look(sent(0), 1000);
    const stuck = sent(0);
    expect([2000, 4000, 7000].map((nowMs) => silence.look(stuck, nowMs))).to.deep.equal([0, 2000, 5000]);
  });

  it("does not grow while this process is stopped, neither for the oldest nor for those behind it", () => {
    const [oldest, next] = [sent(1000), sent(2000)];
    silence.look(null, 500);
    expect(silence.look(oldest, 5000)).to.equal(4000);
    // 5000 ms of it are as ever.
    expect(silence.look(oldest, 105_000)).to.equal(9000);
    expect(silence.look(oldest, 109_000)).to.equal(13_000);
    expect(silence.look(next, 110_000)).to.equal(0);
    expect(silence.ranMs(next.sentAtMs, 110_000)).to.equal(13_000);
    expect(silence.ranMs(109_500, 110_000)).to.equal(500);
  });
});
