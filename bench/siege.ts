/**
 * One repl-primary with 1,000 clients, 900 of which are hostile, measured in rounds of three phases:
 * - quiet;
 * - control: the hostile clients attack another repl-primary of the same machine;
 * - attacked: they attack the one that is measured.
 *
 * Real attackers are other machines. Here they, and the server that they attack in the control, get what nobody else wants
 * (SCHED_IDLE) of one processor; the others, of two the other, they leave alone. What they cost the clients that behave all
 * the same is in the control.
 */
import type { Socket } from "node:net";
import { connect } from "node:net";
import { availableParallelism } from "node:os";
import { open as openFile, readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import { connectNbd } from "../src/nbd/client/connect.js";
import { Option } from "../src/nbd/wire/constants.js";
import { encodeClientFlags } from "../src/nbd/wire/handshake.js";
import { encodeInfoRequest, encodeOption } from "../src/nbd/wire/option.js";
import { NodeProcess } from "../test/tools/node-process.js";
import type { TestProcess } from "../test/tools/process.js";
import type { Workspace } from "../test/tools/workspace.js";
import type { AttackReport } from "./attackers.js";
import { ATTACKED_EXPORT, DISK_BYTES, LARGEST_BYTES, MEASURED_EXPORT } from "./attacks.js";
import { cpuMicroseconds, peakMemoryBytes, resetPeakMemory } from "./usage.js";
import type { WitnessReport } from "./witness.js";

/** Of the clients that behave and are measured: a small request, and one as guests make them that read ahead. */
export const READ_BYTES = [4096, 128 * 1024] as const;
export const HOSTILE_CLIENTS = 900;
export const IDLE_CLIENTS = 1000 - HOSTILE_CLIENTS - READ_BYTES.length;

/** What the attackers, and who else yields, run on. */
const YIELDING_PROCESSOR = "0";
/** Of the attacked disk: data and holes by turns. */
const FRAGMENT_BYTES = 16 * 1024;
/** Until the just-in-time compilers have seen what there is. */
const WARM_UP_MS = 2000;
/** From the end of an attack: what is still under way is neither quiet nor attacked. */
const SETTLE_MS = 1000;

export interface SiegeOptions {
  readonly rounds: number;
  /** Of each phase. */
  readonly seconds: number;
  /** Names of attacks, which the hostile clients share. */
  readonly attacks: readonly string[];
  readonly isControlled: boolean;
  /** Of the Node.js of the servers. */
  readonly nodeOptions: readonly string[];
  /** A directory with a server's certificate: the servers offer TLS. */
  readonly certificates: string;
}

export type PhaseName = "quiet" | "control" | "attacked";

export interface Phase {
  readonly name: PhaseName;
  /** For each of READ_BYTES. */
  readonly latencies: readonly Latency[];
  /** Null: nobody attacked. */
  readonly attack: AttackFigures | null;
}

/** In milliseconds. */
export interface Latency {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
  readonly maximum: number;
}

export interface AttackFigures {
  readonly report: AttackReport;
  readonly seconds: number;
  /** Of the attacked server's processor time. */
  readonly serverSeconds: number;
}

export interface SiegeFigures {
  readonly phases: readonly Phase[];
  /** Of the measured server: before the first attack, at most, and after the last one. */
  readonly memoryBytes: { readonly quiet: number; readonly peak: number; readonly left: number };
  /** What it has logged while it was attacked. */
  readonly logLines: number;
}

interface Served {
  readonly node: NodeProcess;
  readonly path: string;
}

/** When a phase was: milliseconds since the epoch. */
interface Span {
  readonly name: PhaseName;
  readonly beginsMs: number;
  readonly endsMs: number;
  readonly attack: AttackFigures | null;
}

export class Siege {
  readonly #workspace: Workspace;
  readonly #options: SiegeOptions;
  readonly #idle: Socket[] = [];

  /** @param workspace for nothing else */
  constructor(workspace: Workspace, options: SiegeOptions) {
    this.#workspace = workspace;
    this.#options = options;
    workspace.onEnd(() => {
      for (const socket of this.#idle) socket.destroy();
      return Promise.resolve();
    });
  }

  async measure(): Promise<SiegeFigures> {
    const measured = await this.#serve("measured", own());
    const other = this.#options.isControlled ? await this.#serve("other", yielding()) : null;
    const { pid } = measured.node.process;
    await fill(measured.path);
    for (let i = 0; i < IDLE_CLIENTS; i++) this.#idle.push(idle(measured.path));
    const witnesses = await Promise.all(
      READ_BYTES.map((lengthBytes) => this.#start(own(), "witness", [measured.path, `${lengthBytes}`])),
    );
    await sleep(WARM_UP_MS);
    const quiet = await residentBytes(pid);
    const linesBefore = measured.node.log.length;
    await resetPeakMemory(pid);
    const spans: Span[] = [];
    for (let round = 0; round < this.#options.rounds; round++) {
      spans.push(await this.#quiet());
      if (other !== null) spans.push(await this.#attacked("control", other));
      spans.push(await this.#attacked("attacked", measured));
    }
    const memoryBytes = { quiet, peak: await peakMemoryBytes(pid), left: await residentBytes(pid) };
    const logLines = measured.node.log.length - linesBefore;
    const reports = await Promise.all(
      witnesses.map(async (witness) => (await reportOf(witness)) as WitnessReport),
    );
    const phases = spans.map((span): Phase => {
      const { name, attack } = span;
      return { name, attack, latencies: reports.map((report) => latencyOf(report, span)) };
    });
    return { phases, memoryBytes, logLines };
  }

  async #serve(name: string, launcher: readonly string[]): Promise<Served> {
    const { certificates, nodeOptions } = this.#options;
    const path = this.#workspace.path(`${name}.sock`);
    const disks = [MEASURED_EXPORT, ATTACKED_EXPORT].flatMap((disk) => [
      "--disk",
      `${disk}=${this.#workspace.path(`${name}-${disk}.img`)}`,
    ]);
    const node = await NodeProcess.start(
      this.#workspace,
      "primary",
      [...disks, "--size", `${DISK_BYTES}`, "--listen", `unix:${path}`, "--tls-certificates", certificates],
      this.#workspace.path(name),
      nodeOptions,
      launcher,
    );
    await fragment(this.#workspace.path(`${name}-${ATTACKED_EXPORT}.img`));
    return { node, path };
  }

  async #quiet(): Promise<Span> {
    const beginsMs = Date.now();
    await sleep(this.#options.seconds * 1000);
    return { name: "quiet", beginsMs, endsMs: Date.now(), attack: null };
  }

  async #attacked(name: PhaseName, { node, path }: Served): Promise<Span> {
    const { attacks, seconds } = this.#options;
    const { pid } = node.process;
    const beginsMs = Date.now();
    const before = await cpuMicroseconds(pid);
    const attackers = await this.#start(yielding(), "attackers", [path, `${HOSTILE_CLIENTS}`, ...attacks]);
    await sleep(seconds * 1000);
    const endsMs = Date.now();
    if (!node.process.isRunning)
      throw new Error(`the server did not survive: ${node.process.stderr.slice(-4000)}`);
    const serverSeconds = ((await cpuMicroseconds(pid)) - before) / 1e6;
    const report = (await reportOf(attackers)) as AttackReport;
    await sleep(SETTLE_MS);
    return { name, beginsMs, endsMs, attack: { report, seconds, serverSeconds } };
  }

  #start(launcher: readonly string[], script: string, args: readonly string[]): Promise<TestProcess> {
    const file = fileURLToPath(new URL(`./${script}.js`, import.meta.url));
    const [program = "", ...rest] = [...launcher, process.execPath, file, ...args];
    return this.#workspace.start(program, rest);
  }
}

/** What runs a program on the processors that are left. */
function own(): string[] {
  return ["taskset", "-c", `1-${availableParallelism() - 1}`];
}

/** What runs a program so that it gets what nobody else wants, of one processor. */
export function yielding(): string[] {
  return ["taskset", "-c", YIELDING_PROCESSOR, "chrt", "--idle", "0"];
}

/** What it prints at its end. */
async function reportOf(clients: TestProcess): Promise<unknown> {
  const { stdout, stderr } = await clients.terminate();
  if (stdout === "") throw new Error(`${clients.name} ended without a report: ${stderr}`);
  return JSON.parse(stdout);
}

function latencyOf({ beganMs, tookMs }: WitnessReport, { beginsMs, endsMs }: Span): Latency {
  const isWithin = (atMs = 0): boolean => atMs >= beginsMs && atMs < endsMs;
  const taken = tookMs.filter((_, i) => isWithin(beganMs[i])).sort((left, right) => left - right);
  const at = (part: number): number => taken[Math.floor(part * (taken.length - 1))] ?? Number.NaN;
  return { count: taken.length, p50: at(0.5), p99: at(0.99), maximum: at(1) };
}

async function fill(path: string): Promise<void> {
  const client = await connectNbd({ address: { kind: "unix", path }, exportName: MEASURED_EXPORT });
  const filling = Buffer.alloc(LARGEST_BYTES, 0x5a);
  for (let at = 0; at < DISK_BYTES; at += filling.length) await client.write(at, filling, 0);
  await client.flush();
  await client.close();
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
