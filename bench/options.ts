/** The benchmark's command line. */
import yargs from "yargs";

import { parseSize } from "../src/config/units.js";
import { ROW_GROUPS, ROWS } from "./rows.js";
import { SYSTEM_NAMES, type SystemName } from "./systems/system.js";

/** What can be run; `report` runs nothing. */
export const MODES = ["comparison", "checkpoints", "scaling", "micro", "report"] as const;
export type Mode = (typeof MODES)[number];

export interface BenchOptions {
  readonly modes: readonly Mode[];
  /** Results that the report takes up. */
  readonly files: readonly string[];
  readonly rows: readonly string[];
  readonly systems: readonly SystemName[];
  readonly rounds: number;
  readonly seconds: number;
  readonly sizeBytes: number;
  readonly dataBytes: number;
  readonly profileDirectory: string | null;
}

const DEFAULT_SYSTEMS: readonly SystemName[] = ["ours", "qemu-unix", "qemu-tcp", "qemu-nbd"];

/** @throws RangeError for a value that makes no sense */
export function parseBenchOptions(args: readonly string[]): BenchOptions {
  const list = (text: string): string[] => text.split(",").filter((name) => name !== "");
  const parsed = yargs([...args])
    .scriptName("npm run bench --")
    .usage("$0 [options] [FILE...]\n\nCompares our pair with QEMU's and with servers that don't replicate.")
    .options({
      comparison: { type: "boolean", default: false, describe: "run rows on systems side by side (default)" },
      checkpoints: {
        type: "boolean",
        default: false,
        describe: "checkpoints, copies and resyncs of our pair",
      },
      scaling: { type: "boolean", default: false, describe: "cost as the work grows" },
      micro: { type: "boolean", default: false, describe: "parts of the fast path by themselves" },
      report: {
        type: "boolean",
        default: false,
        describe: "write the figures of FILEs, and of what was run, into docs/performance.md",
      },
      rows: {
        type: "string",
        default: "six",
        describe: `rows or groups of rows, with commas: all, ${ROW_GROUPS.join(", ")}, ${ROWS.map(({ name }) => name).join(", ")}`,
      },
      systems: {
        type: "string",
        default: DEFAULT_SYSTEMS.join(","),
        describe: `with commas, or all: ${SYSTEM_NAMES.join(", ")}`,
      },
      rounds: { type: "number", default: 3, describe: "how often each row is run on each system" },
      seconds: { type: "number", default: 3, describe: "how long" },
      size: { type: "string", default: "2G", describe: "of the disks, sparse" },
      data: { type: "string", default: "1G", describe: "how much of a disk holds data in rows on data" },
      quick: {
        type: "boolean",
        default: false,
        describe: "one round of a second: a look, not a measurement",
      },
      profile: { type: "string", describe: "our nodes write CPU profiles to this directory" },
    })
    .strictOptions()
    .parseSync();
  const { quick, rounds, seconds, profile } = parsed;
  const modes = MODES.filter((mode) => parsed[mode]);
  return {
    modes: modes.length === 0 ? ["comparison"] : modes,
    files: parsed._.map(String),
    rows: list(parsed.rows),
    systems: systemsOf(list(parsed.systems)),
    rounds: quick ? 1 : positive("rounds", rounds),
    seconds: quick ? 1 : positive("seconds", seconds),
    sizeBytes: parseSize(parsed.size),
    dataBytes: parseSize(parsed.data),
    profileDirectory: profile ?? null,
  };
}

function systemsOf(names: readonly string[]): SystemName[] {
  const unknown = names.find((name) => name !== "all" && !SYSTEM_NAMES.some((known) => known === name));
  if (unknown !== undefined) {
    throw new RangeError(`there is no system ${unknown}: choose from all, ${SYSTEM_NAMES.join(", ")}`);
  }
  return SYSTEM_NAMES.filter((name) => names.includes(name) || names.includes("all"));
}

function positive(name: string, value: number): number {
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new RangeError(`--${name} ${value}: give a whole number above 0`);
}
