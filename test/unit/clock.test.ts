import { expect } from "chai";

import { afterRunning, systemClock } from "../../src/clock.js";
import { stopThisProcess } from "../tools/stopped-process.js";

describe("clock", () => {
  it("afterRunning: does not call when this process goes on after a stop, but when it has run for so long", async () => {
    let isCalled = false;
    const called = new Promise<void>((resolve) => {
      afterRunning(systemClock, 400, () => {
        isCalled = true;
        resolve();
      });
    });
    stopThisProcess(600);
    await new Promise((resolve) => setTimeout(resolve, 1));
    expect(isCalled).to.equal(false);
    await called;
  });

  it("afterRunning: does not call once it is cancelled, after a part of the time too", () => {
    let calls = 0;
    const due: (() => void)[] = [];
    const clock = {
      nowMs: () => 0,
      after: (_ms: number, call: () => void) => {
        due.push(call);
        return () => due.splice(due.indexOf(call), 1);
      },
      every: () => expect.fail("not needed"),
    };
    const cancel = afterRunning(clock, 400, () => calls++);
    due.shift()?.();
    cancel();
    expect({ calls, due }).to.deep.equal({ calls: 0, due: [] });
  });
});
