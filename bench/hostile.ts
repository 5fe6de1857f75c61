/**
 * `npm run bench:hostile`: what 900 hostile clients of 1,000 cost a repl-primary, and the one that behaves.
 *
 * Measures the latency of 4 KiB reads of one client, first with 99 idle clients beside it, then with the hostile ones
 * too, and the memory of the process. Exits with 1 when the figures go past the bounds below.
 */
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import type { Socket } from "node:net";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { Worker, isMainThread, parentPort, workerData } from "node:worker_threads";
import yargs from "yargs";

import { connectNbd } from "../src/nbd/client/connect.js";
import { Command, Option } from "../src/nbd/wire/constants.js";
import { encodeClientFlags } from "../src/nbd/wire/handshake.js";
import { encodeInfoRequest, encodeOption } from "../src/nbd/wire/option.js";
import { NodeProcess } from "../test/tools/node-process.js";
import { requestBytes } from "../test/tools/raw-nbd-client.js";
import { Workspace } from "../test/tools/workspace.js";
import { peakMemoryBytes, resetPeakMemory } from "./usage.js";

const MEBIBYTE = 1024 * 1024;
const DISK_BYTES = 256 * MEBIBYTE;
const LARGEST_BYTES = 32 * MEBIBYTE;
const IDLE_CLIENTS = 99;
const HOSTILE_CLIENTS = 900;
const MEMORY_BOUND_BYTES = 256 * MEBIBYTE;
const LATENCY_BOUND = 2;
/** Between two bytes of the slow ones. */
const DRIP_MS = 500;

/** One way to be hostile, once connected; called again every DRIP_MS. */
interface Attack {
  readonly name: string;
  /** Sent at once. */
  readonly opening: Buffer;
  /** Sent byte by byte, one each time, from the beginning again at its end. */
  readonly drip: Buffer;
  /** Whether the server's answers are read. */
  readonly reads: boolean;
}

const GREETED = encodeClientFlags(3);
const ENTERED = Buffer.concat([
  GREETED,
  encodeOption(Option.Go, encodeInfoRequest({ exportName: "disk0", infoTypes: [3] })),
]);
const NOTHING = Buffer.alloc(0);

function repeated(count: number, bytes: Buffer): Buffer {
  return Buffer.concat(Array.from({ length: count }, () => bytes));
}

const ATTACKS: readonly Attack[] = [
  { name: "says nothing", opening: NOTHING, drip: NOTHING, reads: true },
  { name: "slow handshake", opening: NOTHING, drip: ENTERED, reads: true },
  {
    name: "an option of 4 GiB, slowly",
    opening: Buffer.concat([GREETED, Buffer.from("IHAVEOPT\0\0\0\x63\xff\xff\xff\xff", "latin1")]),
    drip: Buffer.alloc(64),
    reads: true,
  },
  {
    name: "writes of 32 MiB, never completed",
    opening: Buffer.concat([
      ENTERED,
      requestBytes(Command.Write, { lengthBytes: LARGEST_BYTES }),
      Buffer.alloc(512 * 1024, 0x55),
    ]),
    drip: Buffer.alloc(64, 0x55),
    reads: true,
  },
  {
    name: "reads of 32 MiB, answers never read",
    opening: Buffer.concat([
      ENTERED,
      repeated(200, requestBytes(Command.Read, { lengthBytes: LARGEST_BYTES })),
    ]),
    drip: NOTHING,
    reads: false,
  },
  {
    name: "reads of 64 KiB, answers never read",
    opening: Buffer.concat([ENTERED, repeated(2000, requestBytes(Command.Read, { lengthBytes: 65_536 }))]),
    drip: NOTHING,
    reads: false,
  },
  {
    name: "lists that nobody reads",
    opening: Buffer.concat([GREETED, repeated(5000, encodeOption(Option.List, NOTHING))]),
    drip: NOTHING,
    reads: false,
  },
  {
    name: "a request byte by byte",
    opening: ENTERED,
    drip: requestBytes(Command.Read, { lengthBytes: 512 }),
    reads: true,
  },
  {
    name: "noise behind the handshake",
    opening: Buffer.concat([ENTERED, Buffer.alloc(64, 0x99)]),
    drip: NOTHING,
    reads: true,
  },
];

/** All that were opened, to be closed in the end. */
const sockets: Socket[] = [];

/** Whether the bounds hold. */
async function measure(workspace: Workspace, seconds: number): Promise<boolean> {
  const path = workspace.path("guest.sock");
  const node = await NodeProcess.start(workspace, "primary", [
    ...["--disk", `disk0=${workspace.path("disk.img")}`, "--size", `${DISK_BYTES}`],
    ...["--listen", `unix:${path}`],
  ]);
  const { pid } = node.process;
  const client = await connectNbd({ address: { kind: "unix", path }, exportName: "disk0" });
  const filling = Buffer.alloc(LARGEST_BYTES, 0x5a);
  for (let at = 0; at < DISK_BYTES; at += filling.length) await client.write(at, filling, 0);
  await client.flush();
  for (let i = 0; i < IDLE_CLIENTS; i++) open(path, ENTERED, true);
  await latencies(client, 1);
  const quiet = await latencies(client, seconds);
  const quietBytes = await residentBytes(pid);
  await resetPeakMemory(pid);
  const worker = new Worker(new URL(import.meta.url), { workerData: path });
  const attacked = await latencies(client, seconds);
  const peakBytes = await peakMemoryBytes(pid);
  const leftBytes = await residentBytes(pid);
  await client.close();
  worker.postMessage("report");
  const [report] = (await once(worker, "message")) as [AttackReport];
  await worker.terminate();
  print(
    `clients: 1 measured, ${IDLE_CLIENTS} idle, ${HOSTILE_CLIENTS} hostile (${report.reconnects} connected again)`,
  );
  for (const [name, count] of report.open) print(`  ${name}: ${count} open at the end`);
  print(`quiet:    p50 ${quiet.p50.toFixed(2)} ms, p99 ${quiet.p99.toFixed(2)} ms, ${quiet.count} reads`);
  print(
    `attacked: p50 ${attacked.p50.toFixed(2)} ms, p99 ${attacked.p99.toFixed(2)} ms, ${attacked.count} reads`,
  );
  const ratio = attacked.p99 / quiet.p99;
  print(`p99: ${ratio.toFixed(2)} times the quiet figure, bound ${LATENCY_BOUND}`);
  print(
    `memory: quiet ${mebibytes(quietBytes)} MiB, peak ${mebibytes(peakBytes)} MiB, at the end ${mebibytes(leftBytes)} MiB, bound ${mebibytes(MEMORY_BOUND_BYTES)} MiB`,
  );
  return peakBytes <= MEMORY_BOUND_BYTES && ratio <= LATENCY_BOUND;
}

interface AttackReport {
  /** How often somebody was thrown out and came back. */
  readonly reconnects: number;
  /** Of each attack. */
  readonly open: readonly (readonly [name: string, count: number])[];
}

/** The hostile clients, in a thread of their own: the one that behaves must not wait for them here. */
function attack(path: string): void {
  const hostile = ATTACKS.flatMap((each) =>
    Array.from({ length: HOSTILE_CLIENTS / ATTACKS.length }, () => new HostileClient(path, each)),
  );
  setInterval(() => {
    for (const each of hostile) each.drip();
  }, DRIP_MS);
  parentPort?.on("message", () => {
    const report: AttackReport = {
      reconnects: hostile.reduce((sum, each) => sum + each.connections - 1, 0),
      open: ATTACKS.map((each) => [
        each.name,
        hostile.filter((client) => client.attack === each && client.isOpen).length,
      ]),
    };
    parentPort?.postMessage(report);
  });
}

/** Comes back when it is thrown out. */
class HostileClient {
  readonly attack: Attack;
  readonly #path: string;
  #socket: Socket;
  #dripped = 0;
  connections = 1;

  constructor(path: string, attack: Attack) {
    this.#path = path;
    this.attack = attack;
    this.#socket = open(path, attack.opening, attack.reads);
  }

  get isOpen(): boolean {
    return !this.#socket.destroyed;
  }

  drip(): void {
    const { opening, drip, reads } = this.attack;
    if (!this.isOpen) {
      this.connections++;
      this.#dripped = 0;
      this.#socket = open(this.#path, opening, reads);
    } else if (drip.length > 0 && this.#socket.writableLength === 0) {
      this.#socket.write(drip.subarray(this.#dripped, this.#dripped + 1));
      this.#dripped = (this.#dripped + 1) % drip.length;
    }
  }
}

function open(path: string, opening: Buffer, reads: boolean): Socket {
  const socket = connect(path);
  sockets.push(socket);
  // To be thrown out is what these are here for.
  socket.on("error", () => undefined);
  if (reads) socket.resume();
  socket.write(opening);
  return socket;
}

interface Latency {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
}

/** Of 4 KiB reads, one after the other, in milliseconds. */
async function latencies(
  client: Awaited<ReturnType<typeof connectNbd>>,
  durationSeconds: number,
): Promise<Latency> {
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
  return { count: taken.length, p50: at(0.5), p99: at(0.99) };
}

async function residentBytes(pid: number): Promise<number> {
  const kibibytes = /^VmRSS:\s+(\d+) kB/m.exec(await readFile(`/proc/${pid}/status`, "utf8"))?.[1];
  return Number(kibibytes) * 1024;
}

function mebibytes(bytes: number): string {
  return (bytes / MEBIBYTE).toFixed(0);
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

async function main(): Promise<void> {
  const { seconds } = await yargs(process.argv.slice(2))
    .scriptName("npm run bench:hostile --")
    .usage("$0 [options]\n\nMeasures a repl-primary with 1,000 clients, 900 of them hostile.")
    .options({ seconds: { type: "number", default: 10, describe: "how long each measurement takes" } })
    .strict()
    .parseAsync();

  const workspace = new Workspace();
  await workspace.open();
  try {
    process.exitCode = (await measure(workspace, seconds)) ? 0 : 1;
  } finally {
    for (const socket of sockets) socket.destroy();
    await workspace.close();
  }
}

if (isMainThread) await main();
else attack(workerData as string);
