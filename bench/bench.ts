/** `npm run bench`: runs the rows, prints tables, and leaves what it measured in bench/results/. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { describeError } from "../src/errors.js";
import { describeHost } from "./host.js";
import { Lab } from "./lab.js";
import { type BenchOptions, parseBenchOptions } from "./options.js";
import { selectRows } from "./rows.js";
import type { BenchResult, Sample } from "./sample.js";
import { Schedule } from "./schedule.js";
import { Summary } from "./summary.js";
import { cpuTable, latencyTable, memoryTable, ratioTable, throughputTable, verdicts } from "./tables.js";

/** Seen from dist/bench/. */
const RESULTS = fileURLToPath(new URL("../../bench/results/", import.meta.url));
/** As a shell reports a program that ended by SIGINT. */
const EXIT_INTERRUPTED = 130;

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

async function main(lab: Lab): Promise<void> {
  const options = parseBenchOptions(process.argv.slice(2));
  const result = await compare(lab, options);
  const summary = new Summary(result);
  const tables = [throughputTable, ratioTable, latencyTable, cpuTable, memoryTable].map((table) =>
    table(summary),
  );
  process.stdout.write(`${[...tables, verdicts(summary).join("\n")].join("\n\n")}\n`);
  say(`written: ${await keep(result)}`);
}

async function compare(lab: Lab, options: BenchOptions): Promise<BenchResult> {
  const rows = selectRows(options.rows);
  const settings = { ...options, rows: rows.map(({ name }) => name) };
  const startedAt = new Date().toISOString();
  const host = await describeHost();
  const samples = await new Schedule(lab, settings, reportSample).run(rows);
  return { startedAt, endedAt: new Date().toISOString(), host, settings, samples };
}

function reportSample({ row, round, system, outcome }: Sample): void {
  const figures =
    outcome.kind === "died"
      ? `died: ${outcome.reason}`
      : `${Math.round(outcome.load.requestsPerSecond)} requests/s, p99 ${Math.round(outcome.load.latency.p99)} µs`;
  say(`${row} ${round + 1} ${system}: ${figures}`);
}

/** @returns the file's path */
async function keep(result: BenchResult): Promise<string> {
  await mkdir(RESULTS, { recursive: true });
  const path = join(RESULTS, `${result.startedAt.slice(0, 16).replace(":", "")}.json`);
  await writeFile(path, `${JSON.stringify(result, null, 1)}\n`);
  return path;
}

const lab = new Lab();
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => {
    say("interrupted: ending what was started");
    // Whatever the rows in progress say to that does not matter any more.
    void lab.close().finally(() => process.exit(EXIT_INTERRUPTED));
  });
}
try {
  await main(lab);
} catch (error) {
  say(describeError(error));
  process.exitCode = 1;
} finally {
  await lab.close();
}
