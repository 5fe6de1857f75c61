/** The benchmark's command line. */
import yargs from "yargs";

import { parseSize } from "../src/config/units.js";
import { ROW_GROUPS, ROWS } from "./rows.js";
import { SYSTEM_NAMES, type SystemName } from "./systems/system.js";

export interface BenchOptions {
  readonly rows: readonly string[];
  readonly systems: readonly SystemName[];
  readonly rounds: number;
  readonly seconds: number;
  readonly sizeBytes: number;
  readonly dataBytes: number;
}

const DEFAULT_SYSTEMS: readonly SystemName[] = ["ours", "qemu-unix", "qemu-tcp", "qemu-nbd"];

export function parseBenchOptions(args: readonly string[]): BenchOptions {
  const list = (text: string): string[] => text.split(",").filter((name) => name !== "");
  const parsed = yargs([...args])
    .scriptName("npm run bench --")
    .usage("$0 [options]\n\nCompares our pair with QEMU's and with servers that don't replicate.")
    .options({
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
    })
    .strict()
    .parseSync();
  const { quick, rounds, seconds } = parsed;
  return {
    rows: list(parsed.rows),
    systems: systemsOf(list(parsed.systems)),
    rounds: quick ? 1 : positive("rounds", rounds),
    seconds: quick ? 1 : positive("seconds", seconds),
    sizeBytes: parseSize(parsed.size),
    dataBytes: parseSize(parsed.data),
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
