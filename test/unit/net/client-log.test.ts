import { expect } from "chai";
import { Writable } from "node:stream";
import { pino } from "pino";

import type { Clock } from "../../../src/clock.js";
import { ClientLog } from "../../../src/net/client-log.js";

describe("ClientLog", () => {
  let lines: Record<string, unknown>[];
  let ends: (() => void)[];
  let log: ClientLog;

  beforeEach(() => {
    lines = [];
    ends = [];
    const sink = new Writable({
      write: (line: Buffer, _encoding, written) => {
        lines.push(JSON.parse(line.toString()) as Record<string, unknown>);
        written();
      },
    });
    const clock: Clock = {
      nowMs: () => 0,
      after: (ms, call) => {
        expect(ms).to.equal(10_000);
        ends.push(call);
        return () => (ends = ends.filter((each) => each !== call));
      },
      every: () => expect.fail("not needed"),
    };
    log = new ClientLog(pino({ base: null, timestamp: false }, sink), clock);
  });

  const warn = (host: string | null, code: string, number = 0): void => {
    log.warn({ host, code }, () => ({ peer: number }), `${code} happened`);
  };
  const endPeriod = (): void => {
    for (const end of ends.splice(0)) end();
  };

  it("tells of the first ten of a host and code, and of the number of the others when the period ends", () => {
    for (let number = 0; number < 37; number++) warn("192.0.2.1", "stalled", number);
    const first = Array.from({ length: 10 }, (_, peer) => ({
      level: 40,
      peer,
      code: "stalled",
      msg: "stalled happened",
    }));
    expect(lines).to.deep.equal(first);
    endPeriod();
    expect(lines.slice(10)).to.deep.equal([
      { level: 40, host: "192.0.2.1", code: "stalled", count: 27, msg: "27 more of these within 10 s" },
    ]);
  });

  it("tells hosts and codes apart", () => {
    for (let number = 0; number < 11; number++) {
      for (const host of ["192.0.2.1", "192.0.2.2", null]) for (const code of ["a", "b"]) warn(host, code);
    }
    expect(lines).to.have.length(60);
    endPeriod();
    expect(lines.slice(60).map(({ host, code, count }) => [host, code, count])).to.deep.equal([
      ["192.0.2.1", "a", 1],
      ["192.0.2.1", "b", 1],
      ["192.0.2.2", "a", 1],
      ["192.0.2.2", "b", 1],
      [null, "a", 1],
      [null, "b", 1],
    ]);
  });

  it("starts anew with each period, and says nothing at the end of one in which it told of all", () => {
    for (let period = 0; period < 3; period++) {
      for (let number = 0; number < 10; number++) warn(null, "stalled");
      expect(ends).to.have.length(1);
      endPeriod();
      expect(lines).to.have.length(10 * (period + 1));
    }
    expect(ends, "no timer without anything to tell").to.deep.equal([]);
  });

  it("bounds its lines and its memory however many hosts there are", () => {
    for (let host = 0; host < 5000; host++) for (let i = 0; i < 20; i++) warn(`host${host}`, "stalled");
    expect(lines).to.have.length(101 * 10);
    endPeriod();
    expect(lines).to.have.length(101 * 11);
    expect(lines.at(-1)).to.include({ host: null, code: "stalled", count: 4900 * 20 - 10 });
  });

  it("doesn't ask for the details of what it does not tell", () => {
    let asked = 0;
    for (let i = 0; i < 100; i++) log.warn({ host: null, code: "x" }, () => ({ asked: asked++ }), "x");
    expect(asked).to.equal(10);
  });

  it("tells what is left when it is closed, and starts no period any more", () => {
    for (let i = 0; i < 12; i++) warn(null, "stalled");
    log.close();
    expect(lines.at(-1)).to.include({ count: 2 });
    expect(ends).to.deep.equal([]);
    warn(null, "late");
    expect(lines.at(-1)).to.include({ code: "late" });
    expect(ends).to.deep.equal([]);
  });
});
