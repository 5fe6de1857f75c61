/**
 * Random lives of a whole pair in virtual time: see docs/durability.md for what is compared with what.
 *
 * SEED=n begins with that schedule; REPL_SIMULATION_RUNS and REPL_SIMULATION_STEPS make it longer.
 */
import process from "node:process";

import { expect } from "chai";

import { SEED } from "../tools/seed.js";
import { runSchedule } from "./schedule.js";
import { type Counts, noCounts } from "./simulated-pair.js";

/** What takes about a minute. */
const RUNS = Number(process.env["REPL_SIMULATION_RUNS"] ?? 300);
const STEPS = Number(process.env["REPL_SIMULATION_STEPS"] ?? 40);

describe("simulation: a pair", function () {
  this.timeout(24 * 60 * 60 * 1000);

  it("keeps what it reports, merges no histories and comes to rest the same on both sides, whatever dies and whenever", async () => {
    const total = noCounts();
    for (let run = 0; run < RUNS; run++) add(total, await runSchedule(SEED + run, STEPS));
    process.stderr.write(`${RUNS} schedules: ${JSON.stringify(total)}\n`);
    // Else the schedules were too short to mean anything.
    expect(total.verified).to.be.at.least(RUNS);
  });

  it("and whose disks and logs of before-images fail, by each policy: shows no checkpoint that it has lost, tells guests of their own disk's errors alone, and comes to rest the same", async () => {
    const total = noCounts();
    for (let run = 0; run < RUNS; run++)
      add(total, await runSchedule(SEED + run, STEPS, { faults: "requests" }));
    process.stderr.write(`${RUNS} schedules with faults: ${JSON.stringify(total)}\n`);
    expect(total.verified).to.be.at.least(RUNS);
    expect(total.failures).to.be.at.least(RUNS);
  });

  it("and whose flushes and state directories fail, too, at any of their changes: the same", async () => {
    const total = noCounts();
    for (let run = 0; run < RUNS; run++) add(total, await runSchedule(SEED + run, STEPS, { faults: "all" }));
    process.stderr.write(`${RUNS} schedules with all faults: ${JSON.stringify(total)}\n`);
    expect(total.verified).to.be.at.least(RUNS);
    expect(total.failures).to.be.at.least(RUNS);
  });
});

function add(total: Counts, counts: Counts): void {
  for (const name of Object.keys(total) as (keyof Counts)[]) {
    const isMaximum = name === "worstStallMs";
    total[name] = isMaximum ? Math.max(total[name], counts[name]) : total[name] + counts[name];
  }
}
