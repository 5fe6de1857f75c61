/**
 * `npm run bench:hostile`: what 900 hostile clients of 1,000 cost a repl-primary, and those that behave (siege.ts).
 * Exits with 1 when the figures go past the bounds below.
 */
import { availableParallelism } from "node:os";
import yargs from "yargs";

import { onInterruption } from "../src/os/interruption.js";
import { Authority } from "../test/tools/certificates.js";
import { ATTACKS } from "./attacks.js";
import { Lab } from "./lab.js";
import type { Phase, PhaseName, SiegeFigures, SiegeOptions } from "./siege.js";
import { HOSTILE_CLIENTS, IDLE_CLIENTS, READ_BYTES, Siege } from "./siege.js";
import { spreadOf } from "./statistics.js";

const MEBIBYTE = 1024 * 1024;
const MEMORY_BOUND_BYTES = 256 * MEBIBYTE;
/** How many times the quiet p99 of the median round. */
const LATENCY_BOUND = 2;

const NAMES = ATTACKS.map(({ name }) => name);

async function measure(lab: Lab, options: SiegeOptions): Promise<SiegeFigures> {
  const workspace = await lab.workspace();
  try {
    return await new Siege(workspace, options).measure();
  } finally {
    await lab.discard(workspace);
  }
}

/** Whether the bounds hold. */
function report({ phases, memoryBytes, logLines }: SiegeFigures): boolean {
  const names = new Set(phases.map(({ name }) => name));
  for (const name of names) {
    const ofName = phases.filter((phase) => phase.name === name);
    for (const [index, lengthBytes] of READ_BYTES.entries()) {
      print(`${name.padEnd(9)} reads of ${lengthBytes / 1024} KiB: ${describeLatency(ofName, index)}`);
    }
    describeAttacks(ofName);
  }
  const ratios = READ_BYTES.map((_, index) => ratioToQuiet(phases, index));
  print(
    `attacked, times the quiet p99: ${ratios.map((each) => each.toFixed(1)).join(" and ")}, bound ${LATENCY_BOUND}`,
  );
  print(
    `memory: quiet ${mebibytes(memoryBytes.quiet)} MiB, peak ${mebibytes(memoryBytes.peak)} MiB, at the end ${mebibytes(memoryBytes.left)} MiB, bound ${mebibytes(MEMORY_BOUND_BYTES)} MiB`,
  );
  print(`log: ${logLines} lines`);
  return memoryBytes.peak <= MEMORY_BOUND_BYTES && ratios.every((each) => each <= LATENCY_BOUND);
}

function ratioToQuiet(phases: readonly Phase[], index: number): number {
  const p99 = (name: PhaseName): number =>
    spreadOf(phases.filter((phase) => phase.name === name).map(({ latencies }) => latencies[index]?.p99 ?? 0))
      ?.median ?? Number.NaN;
  return p99("attacked") / p99("quiet");
}

/** Of the rounds. */
function describeLatency(phases: readonly Phase[], index: number): string {
  const of = (figure: "p50" | "p99" | "maximum"): ReturnType<typeof spreadOf> =>
    spreadOf(phases.map(({ latencies }) => latencies[index]?.[figure] ?? Number.NaN));
  const [p50, p99, worst] = [of("p50"), of("p99"), of("maximum")];
  const reads = phases.reduce((sum, { latencies }) => sum + (latencies[index]?.count ?? 0), 0);
  return `p50 ${ms(p50?.median)}, p99 ${ms(p99?.median)} (${ms(p99?.minimum)} to ${ms(p99?.maximum)}), worst ${ms(worst?.maximum)}, ${reads} reads`;
}

function describeAttacks(phases: readonly Phase[]): void {
  const attacks = phases.flatMap(({ attack }) => attack ?? []);
  const seconds = attacks.reduce((sum, each) => sum + each.seconds, 0);
  if (seconds === 0) return;
  const rate = (of: (attack: (typeof attacks)[number]) => number): number =>
    attacks.reduce((sum, each) => sum + of(each), 0) / seconds;
  const connections = rate(({ report: { connections } }) => connections);
  const sent = rate(({ report: { sentBytes } }) => sentBytes);
  const received = rate(({ report: { receivedBytes } }) => receivedBytes);
  print(
    `  each second they connected ${connections.toFixed(0)} times, sent ${mebibytes(sent)} MiB and got ${mebibytes(received)} MiB; the server used ${rate(({ serverSeconds }) => serverSeconds).toFixed(2)} processors`,
  );
}

/** One line. */
function reportBriefly(name: string, { phases, memoryBytes, logLines }: SiegeFigures): void {
  const attacked = phases.filter((phase) => phase.name === "attacked");
  const latencies = READ_BYTES.map((_, index) => describeLatency(attacked, index));
  print(`${name}, peak ${mebibytes(memoryBytes.peak)} MiB, log ${logLines} lines`);
  for (const latency of latencies) print(`  ${latency}`);
  describeAttacks(attacked);
}

function ms(value: number | undefined): string {
  return `${(value ?? Number.NaN).toFixed(2)} ms`;
}

function mebibytes(bytes: number): string {
  return (bytes / MEBIBYTE).toFixed(0);
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

const { seconds, rounds, attacks, control, each, nodeOption } = await yargs(process.argv.slice(2))
  .scriptName("npm run bench:hostile --")
  .usage("$0 [options]\n\nMeasures a repl-primary with 1,000 clients, 900 of them hostile.")
  .options({
    rounds: { type: "number", default: 5, describe: "how often each phase is measured, by turns" },
    seconds: { type: "number", default: 5, describe: "how long each phase takes" },
    attacks: {
      type: "string",
      array: true,
      choices: NAMES,
      default: NAMES,
      defaultDescription: "all",
      describe: "what the hostile clients do, by turns",
    },
    each: { type: "boolean", default: false, describe: "one attack after the other, each by all of them" },
    control: { type: "boolean", default: true, describe: "measure also while another server is attacked" },
    "node-option": {
      type: "string",
      array: true,
      default: [],
      describe: "of the Node.js of the servers, like --cpu-prof",
    },
  })
  .strict()
  .parseAsync();

if (availableParallelism() < 2)
  throw new Error("attackers need a processor of their own: there is one in all");
const lab = new Lab();
const authority = await Authority.make();
let ended: Promise<void> | null = null;
const end = (): Promise<void> => (ended ??= lab.close().then(() => authority.close()));
onInterruption(end);
try {
  const common = { rounds, seconds, nodeOptions: nodeOption, certificates: await authority.issue() };
  print(`clients: ${READ_BYTES.length} measured, ${IDLE_CLIENTS} idle, ${HOSTILE_CLIENTS} hostile`);
  if (each) {
    for (const name of attacks) {
      reportBriefly(name, await measure(lab, { ...common, attacks: [name], isControlled: false }));
    }
  } else {
    const figures = await measure(lab, { ...common, attacks, isControlled: control });
    process.exitCode = report(figures) ? 0 : 1;
  }
} finally {
  await end();
}
