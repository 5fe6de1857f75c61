/** `npm run bench`: runs what is asked for, prints tables, and leaves what it measured in bench/results/. */
import { describeError } from "../src/errors.js";
import { onInterruption } from "../src/os/interruption.js";
import { checkpointTables } from "./checkpoints.js";
import { describeHost } from "./host.js";
import { Lab } from "./lab.js";
import { microTable } from "./micro.js";
import { type BenchOptions, type Mode, parseBenchOptions } from "./options.js";
import { keepResult, renderResult, updateDocument } from "./report.js";
import { selectRows } from "./rows.js";
import type { BenchResult, Sample, Section } from "./sample.js";
import { Scaling } from "./scaling.js";
import { Schedule } from "./schedule.js";

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

async function main(lab: Lab): Promise<void> {
  const options = parseBenchOptions(process.argv.slice(2));
  const startedAt = new Date().toISOString();
  let result: BenchResult = {};
  for (const mode of options.modes) result = { ...result, ...(await runMode(lab, mode, options)) };
  const isOurFault = ({ system, outcome }: Sample): boolean =>
    outcome.kind === "failed" || (outcome.kind === "died" && system.startsWith("ours"));
  if (result.comparison?.samples.some(isOurFault) === true) process.exitCode = 1;
  const files = [...options.files];
  if (Object.keys(result).length > 0) {
    // Kept first: printing ends the run if nobody reads it.
    const path = await keepResult(result, startedAt);
    process.stdout.write(`${renderResult(result)}\n`);
    say(`written: ${path}`);
    files.push(path);
  }
  if (options.modes.includes("report")) await updateDocument(files);
}

async function runMode(lab: Lab, mode: Mode, options: BenchOptions): Promise<BenchResult> {
  switch (mode) {
    case "comparison": {
      const rows = selectRows(options.rows);
      const { systems, rounds, seconds, sizeBytes, dataBytes } = options;
      const settings = { rows: rows.map(({ name }) => name), systems, rounds, seconds, sizeBytes, dataBytes };
      const schedule = new Schedule(lab, settings, options.profileDirectory, reportSample);
      return { comparison: await section(async () => ({ settings, samples: await schedule.run(rows) })) };
    }
    case "checkpoints":
      return {
        checkpoints: await section(async () => ({ tables: await checkpointTables(lab, options, say) })),
      };
    case "scaling": {
      const scaling = new Scaling(lab, scaled(options), options.seconds, say);
      return { scaling: await section(async () => ({ tables: await scaling.tables() })) };
    }
    case "micro":
      return { micro: await section(async () => ({ tables: [await microTable(lab, say)] })) };
    case "report":
      return {};
  }
}

/** Two systems fill a table's width. */
function scaled({ systems }: BenchOptions): BenchOptions["systems"] {
  const [first, second] = systems;
  return [first, second].filter((name) => name !== undefined);
}

async function section<Content>(work: () => Promise<Content>): Promise<Section & Content> {
  const [startedAt, host] = [new Date().toISOString(), await describeHost()];
  const content = await work();
  return { startedAt, endedAt: new Date().toISOString(), host, ...content };
}

function reportSample({ row, round, system, outcome }: Sample): void {
  const figures =
    outcome.kind !== "measured"
      ? `${outcome.kind}: ${outcome.reason}`
      : `${Math.round(outcome.load.requestsPerSecond)} requests/s, p99 ${Math.round(outcome.load.latency.p99)} µs`;
  say(`${row} ${round + 1} ${system}: ${figures}`);
}

const lab = new Lab();
onInterruption(() => {
  say("interrupted: ending what was started");
  // Whatever the rows in progress say to that does not matter any more.
  return lab.close();
});
try {
  await main(lab);
} catch (error) {
  say(describeError(error));
  process.exitCode = 1;
} finally {
  await lab.close();
}
