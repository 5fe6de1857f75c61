import { expect } from "chai";

import { geometricMean, spreadOf } from "../../../bench/statistics.js";
import { Summary } from "../../../bench/summary.js";
import { type Row, selectRows } from "../../../bench/rows.js";
import type { Comparison, Outcome, Sample } from "../../../bench/sample.js";
import type { SystemName } from "../../../bench/systems/system.js";
import { latencyTable, ratioTable, verdicts } from "../../../bench/tables.js";

const WRITES = "randwrite-4k-d1";
const READS = "randread-4k-d1";

function measured(requestsPerSecond: number, p99 = 100): Outcome {
  return {
    kind: "measured",
    load: {
      requests: 1000,
      requestsPerSecond,
      bytesPerSecond: requestsPerSecond * 4096,
      latency: { mean: 50, p50: 40, p99, max: 1000 },
    },
    usage: [{ role: "primary", cpuMicrosecondsPerRequest: 10, peakMemoryBytes: 2 ** 20 }],
    checkpoints: 0,
  };
}

const DIED: Outcome = { kind: "died", reason: "aborted" };

/** Outcomes by row and system, one for each round. */
function comparison(outcomes: Record<string, Partial<Record<SystemName, readonly Outcome[]>>>): Comparison {
  const samples = Object.entries(outcomes).flatMap(([row, systems]) =>
    Object.entries(systems).flatMap(([system, rounds]) =>
      rounds.map((outcome, round): Sample => ({ row, system: system as SystemName, round, outcome })),
    ),
  );
  return {
    startedAt: "2026-01-01T00:00:00.000Z",
    endedAt: "2026-01-01T00:01:00.000Z",
    host: { processors: 2, processor: "any", memoryBytes: 2 ** 30, kernel: "6", versions: {} },
    settings: {
      rows: Object.keys(outcomes),
      systems: ["ours", "qemu-unix"],
      rounds: 3,
      seconds: 1,
      sizeBytes: 2 ** 31,
      dataBytes: 2 ** 30,
    },
    samples,
  };
}

function row(summary: Summary, name: string): Row {
  const found = summary.rows.find((each) => each.name === name);
  if (found === undefined) throw new Error(`the summary has no row ${name}`);
  return found;
}

describe("figures of the benchmark", () => {
  it("the median of an even number lies between the two in the middle", () => {
    expect(spreadOf([4, 1, 3, 2])).to.deep.equal({ median: 2.5, minimum: 1, maximum: 4 });
    expect(spreadOf([9, 1, 3])).to.deep.equal({ median: 3, minimum: 1, maximum: 9 });
    expect(spreadOf([])).to.equal(null);
  });

  it("a geometric mean of twice and half is one", () => {
    expect(geometricMean([2, 0.5])).to.be.closeTo(1, 1e-12);
    expect(geometricMean([])).to.equal(null);
  });

  it("a ratio is that of the same round: what slows one round down does not show", () => {
    const summary = new Summary(
      comparison({
        [WRITES]: {
          ours: [measured(4000), measured(400), measured(40)],
          "qemu-unix": [measured(1000), measured(100), measured(10)],
        },
      }),
    );
    const ratio = summary.ratio(row(summary, WRITES), "ours", "qemu-unix");
    expect(ratio).to.deep.equal({ median: 4, minimum: 4, maximum: 4 });
  });

  it("a round in which one died has no ratio, and the table says how often it died", () => {
    const summary = new Summary(
      comparison({
        [WRITES]: {
          ours: [measured(4000), measured(3000), measured(2000)],
          "qemu-unix": [DIED, measured(1000), measured(1000)],
        },
      }),
    );
    expect(summary.ratio(row(summary, WRITES), "ours", "qemu-unix")).to.deep.equal({
      median: 2.5,
      minimum: 2,
      maximum: 3,
    });
    expect(ratioTable(summary)).to.include("died 1 of 3");
    expect(latencyTable(summary)).to.include("died 1 of 3");
  });

  it("only tails of writes count as worse", () => {
    const both = { ours: [measured(100, 500)], "qemu-unix": [measured(100, 400)] };
    const summary = new Summary(comparison({ [WRITES]: both, [READS]: both }));
    const slower = summary.slowerTails(summary.rows, "ours", "qemu-unix").map(({ name }) => name);
    expect(slower).to.deep.equal([WRITES]);
    expect(verdicts(summary).join()).to.include(`p99 of writes worse in ${WRITES}`);
  });

  it("rows are chosen by name, by group or all, and a name that there isn't is refused with those there are", () => {
    expect(selectRows(["six"])).to.have.length(6);
    expect(selectRows([WRITES, "holes"]).map(({ name }) => name)).to.include.members([
      WRITES,
      "write-1m-d8-holes",
    ]);
    expect(selectRows(["all"]).length).to.be.greaterThan(9);
    expect(() => selectRows(["randwrite"])).to.throw(RangeError, /no row randwrite: .*randwrite-4k-d32/);
  });
});
