/**
 * `npm run bench:hostile`: what 900 hostile clients of 1,000 cost a repl-primary, and the one that behaves.
 *
 * Measures the latency of 4 KiB reads of one client with 99 idle clients beside it, and the memory of the process:
 * - quiet;
 * - control: the hostile clients attack another repl-primary of the same machine, so that only its processors are shared;
 * - attacked: they attack the one that is measured.
 * Real attackers are other machines; here they get the processors that nobody else wants (SCHED_IDLE), and what they cost
 * all the same is in the control. Exits with 1 when the figures go past the bounds below.
 */
import type { Socket } from "node:net";
import { connect } from "node:net";
import { open as openFile, readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import yargs from "yargs";

import { connectNbd } from "../src/nbd/client/connect.js";
import { Option } from "../src/nbd/wire/constants.js";
import { encodeClientFlags } from "../src/nbd/wire/handshake.js";
import { encodeInfoRequest, encodeOption } from "../src/nbd/wire/option.js";
import { onInterruption } from "../src/os/interruption.js";
import { NodeProcess } from "../test/tools/node-process.js";
import type { TestProcess } from "../test/tools/process.js";
import { Workspace } from "../test/tools/workspace.js";
import type { AttackReport } from "./attackers.js";
import { ATTACKED_EXPORT, ATTACKS, DISK_BYTES, LARGEST_BYTES, MEASURED_EXPORT } from "./attacks.js";
import { cpuMicroseconds, peakMemoryBytes, resetPeakMemory } from "./usage.js";

const MEBIBYTE = 1024 * 1024;
const IDLE_CLIENTS = 99;
const HOSTILE_CLIENTS = 900;
const MEMORY_BOUND_BYTES = 256 * MEBIBYTE;
const LATENCY_BOUND = 2;
/** Of the attacked disk: data and holes by turns. */
const FRAGMENT_BYTES = 16 * 1024;

interface Settings {
  readonly seconds: number;
  readonly attacks: readonly string[];
  readonly yields: boolean;
  readonly control: boolean;
  readonly nodeOptions: readonly string[];
}

type Client = Awaited<ReturnType<typeof connectNbd>>;

class Bench {
  readonly #workspace: Workspace;
  readonly #settings: Settings;
  readonly #idle: Socket[] = [];

  constructor(workspace: Workspace, settings: Settings) {
    this.#workspace = workspace;
    this.#settings = settings;
  }

  /** Whether the bounds hold. */
  async measure(): Promise<boolean> {
    const { node, path } = await this.#serve("measured");
    const { pid } = node.process;
    const client = await connectNbd({ address: { kind: "unix", path }, exportName: MEASURED_EXPORT });
    await fill(client);
    for (let i = 0; i < IDLE_CLIENTS; i++) this.#idle.push(idle(path));
    await this.#latencies(client, 1);
    const quiet = await this.#latencies(client);
    const quietBytes = await residentBytes(pid);
    print(`clients: 1 measured, ${IDLE_CLIENTS} idle, ${HOSTILE_CLIENTS} hostile`);
    print(`quiet:    ${describe(quiet)}`);

    const control = this.#settings.control ? await this.#control(client, quiet) : null;

    await resetPeakMemory(pid);
    const attacked = await this.#attacked(client, { node, path });
    const peakBytes = await peakMemoryBytes(pid);
    const leftBytes = await residentBytes(pid);
    await client.close();
    print(
      `attacked: ${describe(attacked.latency)}, ${ratio(attacked.latency, quiet)} times the quiet p99, bound ${LATENCY_BOUND}`,
    );
    if (control !== null) print(`  ${ratio(attacked.latency, control)} times the control's p99`);
    printReport(attacked);
    for (const [name, count] of attacked.report.open) print(`  ${name}: ${count} open at the end`);
    print(
      `memory: quiet ${mebibytes(quietBytes)} MiB, peak ${mebibytes(peakBytes)} MiB, at the end ${mebibytes(leftBytes)} MiB, bound ${mebibytes(MEMORY_BOUND_BYTES)} MiB`,
    );
    return peakBytes <= MEMORY_BOUND_BYTES && attacked.latency.p99 <= LATENCY_BOUND * quiet.p99;
  }

  close(): void {
    for (const socket of this.#idle) socket.destroy();
  }

  async #serve(name: string): Promise<Served> {
    const path = this.#workspace.path(`${name}.sock`);
    const disks = [MEASURED_EXPORT, ATTACKED_EXPORT].flatMap((disk) => [
      "--disk",
      `${disk}=${this.#workspace.path(`${name}-${disk}.img`)}`,
    ]);
    const node = await NodeProcess.start(
      this.#workspace,
      "primary",
      [...disks, "--size", `${DISK_BYTES}`, "--listen", `unix:${path}`],
      this.#workspace.path(name),
      this.#settings.nodeOptions,
    );
    await fragment(this.#workspace.path(`${name}-${ATTACKED_EXPORT}.img`));
    return { node, path };
  }

  async #control(client: Client, quiet: Latency): Promise<Latency> {
    const other = await this.#serve("other");
    const control = await this.#attacked(client, other);
    await other.node.process.terminate();
    print(`control:  ${describe(control.latency)}, ${ratio(control.latency, quiet)} times the quiet p99`);
    printReport(control);
    return control.latency;
  }

  async #attacked(client: Client, { node, path }: Served): Promise<AttackedFigures> {
    const script = fileURLToPath(new URL("./attackers.js", import.meta.url));
    const command = [process.execPath, script, path, `${HOSTILE_CLIENTS}`, ...this.#settings.attacks];
    const [program = "", ...args] = this.#settings.yields ? ["chrt", "--idle", "0", ...command] : command;
    const before = await cpuMicroseconds(node.process.pid);
    const attackers = await this.#workspace.start(program, args);
    const latency = await this.#latencies(client);
    const serverMicroseconds = (await cpuMicroseconds(node.process.pid)) - before;
    return { latency, report: await reportOf(attackers), serverSeconds: serverMicroseconds / 1e6 };
  }

  /** Of 4 KiB reads, one after the other. */
  async #latencies(client: Client, durationSeconds: number = this.#settings.seconds): Promise<Latency> {
    const into = Buffer.alloc(4096);
    const taken: number[] = [];
    const endMs = performance.now() + durationSeconds * 1000;
    for (let i = 0; performance.now() < endMs; i++) {
      const startMs = performance.now();
      await client.read(((i * 7919) % (DISK_BYTES / 4096)) * 4096, into);
      taken.push(performance.now() - startMs);
      // A client with pauses: a busy loop would measure this process.
      await sleep(1);
    }
    taken.sort((left, right) => left - right);
    const at = (part: number): number => taken[Math.floor(part * (taken.length - 1))] ?? Number.NaN;
    return { count: taken.length, p50: at(0.5), p99: at(0.99), maximum: at(1) };
  }
}

interface Served {
  readonly node: NodeProcess;
  readonly path: string;
}

/** In milliseconds. */
interface Latency {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
  readonly maximum: number;
}

interface AttackedFigures {
  readonly latency: Latency;
  readonly report: AttackReport;
  /** Of the attacked server's processor time. */
  readonly serverSeconds: number;
}

async function reportOf(attackers: TestProcess): Promise<AttackReport> {
  const { stdout, stderr } = await attackers.terminate();
  if (stdout === "") throw new Error(`the attackers ended without a report: ${stderr}`);
  return JSON.parse(stdout) as AttackReport;
}

async function fill(client: Client): Promise<void> {
  const filling = Buffer.alloc(LARGEST_BYTES, 0x5a);
  for (let at = 0; at < DISK_BYTES; at += filling.length) await client.write(at, filling, 0);
  await client.flush();
}

/** Writes every other fragment of it. */
async function fragment(path: string): Promise<void> {
  const file = await openFile(path, "r+");
  const data = Buffer.alloc(FRAGMENT_BYTES, 0x77);
  for (let at = 0; at < DISK_BYTES; at += 2 * FRAGMENT_BYTES) await file.write(data, 0, data.length, at);
  await file.close();
}

/** One that has chosen the export, and asks for nothing. */
function idle(path: string): Socket {
  const socket = connect(path).resume();
  const go = encodeInfoRequest({ exportName: MEASURED_EXPORT, infoTypes: [3] });
  socket.write(Buffer.concat([encodeClientFlags(3), encodeOption(Option.Go, go)]));
  return socket;
}

async function residentBytes(pid: number): Promise<number> {
  const kibibytes = /^VmRSS:\s+(\d+) kB/m.exec(await readFile(`/proc/${pid}/status`, "utf8"))?.[1];
  return Number(kibibytes) * 1024;
}

function mebibytes(bytes: number): string {
  return (bytes / MEBIBYTE).toFixed(0);
}

function ratio(latency: Latency, quiet: Latency): string {
  return (latency.p99 / quiet.p99).toFixed(2);
}

function describe({ count, p50, p99, maximum }: Latency): string {
  const [middle, most, worst] = [p50, p99, maximum].map((ms) => ms.toFixed(2));
  return `p50 ${middle} ms, p99 ${most} ms, worst ${worst} ms, ${count} reads`;
}

function printReport({ report, serverSeconds }: AttackedFigures): void {
  const { reconnects, sentBytes, receivedBytes } = report;
  print(
    `  they connected again ${reconnects} times, sent ${mebibytes(sentBytes)} MiB and got ${mebibytes(receivedBytes)} MiB; the server used ${serverSeconds.toFixed(1)} s of processor`,
  );
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

const { seconds, attacks, yields, control, nodeOption } = await yargs(process.argv.slice(2))
  .scriptName("npm run bench:hostile --")
  .usage("$0 [options]\n\nMeasures a repl-primary with 1,000 clients, 900 of them hostile.")
  .options({
    seconds: { type: "number", default: 10, describe: "how long each measurement takes" },
    attacks: {
      type: "string",
      array: true,
      choices: ATTACKS.map(({ name }) => name),
      default: ATTACKS.map(({ name }) => name),
      defaultDescription: "all",
      describe: "what the hostile clients do, by turns",
    },
    yields: {
      type: "boolean",
      default: true,
      describe: "the hostile clients get only the processors that nobody else wants",
    },
    control: {
      type: "boolean",
      default: true,
      describe: "measure also while another server is attacked",
    },
    "node-option": {
      type: "string",
      array: true,
      default: [],
      describe: "of the Node.js of the servers, like --cpu-prof",
    },
  })
  .strict()
  .parseAsync();

const workspace = new Workspace();
await workspace.open();
const bench = new Bench(workspace, { seconds, attacks, yields, control, nodeOptions: nodeOption });
let ended: Promise<void> | null = null;
const end = (): Promise<void> => {
  bench.close();
  ended ??= workspace.close();
  return ended;
};
onInterruption(end);
try {
  process.exitCode = (await bench.measure()) ? 0 : 1;
} finally {
  await end();
}
