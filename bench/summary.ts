/** What the samples of a run say: one line for each row and system, and ratios between systems. */
import { isWriteRow, type Row, ROWS } from "./rows.js";
import type { Comparison, LoadResult, Outcome, ServerUsage } from "./sample.js";
import { geometricMean, type Spread, spreadOf } from "./statistics.js";
import type { SystemName } from "./systems/system.js";

type Measured = Extract<Outcome, { kind: "measured" }>;

export class Summary {
  readonly comparison: Comparison;

  constructor(comparison: Comparison) {
    this.comparison = comparison;
  }

  /** In the order in which they were run. */
  get rows(): Row[] {
    return ROWS.filter(({ name }) => this.comparison.settings.rows.includes(name));
  }

  get systems(): readonly SystemName[] {
    return this.comparison.settings.systems;
  }

  /** What became of the system, where it was not measured in every round: "died 2 of 3". */
  misfortune(row: Row, system: SystemName): string | null {
    const missing = this.#outcomes(row, system).filter(({ kind }) => kind !== "measured");
    const kinds = [...new Set(missing.map(({ kind }) => kind))].join(", ");
    return missing.length === 0 ? null : `${kinds} ${missing.length} of ${this.comparison.settings.rounds}`;
  }

  /** In the row's unit. */
  throughput(row: Row, system: SystemName): Spread | null {
    return this.#spread(row, system, ({ load }) => inUnit(row, load));
  }

  /** Microseconds. */
  latency(row: Row, system: SystemName, figure: "mean" | "p50" | "p99" | "max"): Spread | null {
    return this.#spread(row, system, ({ load }) => load.latency[figure]);
  }

  usage(row: Row, system: SystemName, of: (usage: ServerUsage) => number): [role: string, Spread][] {
    const roles = this.#measured(row, system)[0]?.usage.map(({ role }) => role) ?? [];
    // Several processes of one role, as for several disks, count together.
    return [...new Set(roles)].flatMap((role): [string, Spread][] => {
      const spread = this.#spread(row, system, ({ usage }) =>
        usage.filter((each) => each.role === role).reduce((sum, each) => sum + of(each), 0),
      );
      return spread === null ? [] : [[role, spread]];
    });
  }

  /** Throughput of one system in terms of another's in the same round. */
  ratio(row: Row, system: SystemName, base: SystemName): Spread | null {
    const { rounds } = this.comparison.settings;
    const ratios = Array.from({ length: rounds }, (_, round) => {
      const [own, other] = [this.#round(row, system, round), this.#round(row, base, round)];
      return own === null || other === null ? null : inUnit(row, own.load) / inUnit(row, other.load);
    });
    return spreadOf(ratios.filter((ratio) => ratio !== null));
  }

  /** Over rows of which both systems have a ratio. */
  meanRatio(rows: readonly Row[], system: SystemName, base: SystemName): number | null {
    const medians = rows.map((row) => this.ratio(row, system, base)?.median);
    return geometricMean(medians.filter((median) => median !== undefined));
  }

  /** Rows of writes whose p99 (median over the rounds) is above the base's. */
  slowerTails(rows: readonly Row[], system: SystemName, base: SystemName): Row[] {
    return rows.filter((row) => {
      const [own, other] = [this.latency(row, system, "p99"), this.latency(row, base, "p99")];
      return isWriteRow(row) && own !== null && other !== null && own.median > other.median;
    });
  }

  #spread(row: Row, system: SystemName, figure: (measured: Measured) => number): Spread | null {
    return spreadOf(this.#measured(row, system).map(figure));
  }

  #round(row: Row, system: SystemName, round: number): Measured | null {
    const sample = this.comparison.samples.find(
      (each) => each.row === row.name && each.system === system && each.round === round,
    );
    return sample?.outcome.kind === "measured" ? sample.outcome : null;
  }

  #measured(row: Row, system: SystemName): Measured[] {
    return this.#outcomes(row, system).filter((outcome) => outcome.kind === "measured");
  }

  #outcomes(row: Row, system: SystemName): Outcome[] {
    return this.comparison.samples
      .filter((sample) => sample.row === row.name && sample.system === system)
      .map(({ outcome }) => outcome);
  }
}

/** MB/s are of 10^6 bytes. */
function inUnit(row: Row, load: LoadResult): number {
  return row.unit === "IOPS" ? load.requestsPerSecond : load.bytesPerSecond / 1e6;
}
