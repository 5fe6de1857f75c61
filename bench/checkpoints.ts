/**
 * What checkpoints, copies and resyncs cost our pair and its guest: `npm run bench -- --checkpoints`.
 *
 * QEMU's pair has no figures here: its secondary aborts when a checkpoint meets writes in flight.
 */
import { rm } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

import { type Pair, startPair } from "../test/tools/pair.js";
import type { Workspace } from "../test/tools/workspace.js";
import type { Lab } from "./lab.js";
import { runLoad } from "./load.js";
import type { FioJob } from "./rows.js";
import type { LoadResult, Table } from "./sample.js";
import { spreadOf } from "./statistics.js";
import { COPY_LIMIT_MS, systemOf } from "./systems/our-pair.js";
import { fillDisk } from "./systems/disk-fill.js";
import type { System } from "./systems/system.js";
import { peakMemoryBytes, resetPeakMemory } from "./usage.js";
import { warmUp } from "./warm-up.js";

const KIBIBYTE = 1024;
const MEBIBYTE = 1024 * KIBIBYTE;
const GIBIBYTE = 1024 * MEBIBYTE;
const BLOCK_BYTES = 4 * KIBIBYTE;

const SIZES = [GIBIBYTE, 1024 * GIBIBYTE];
const DIRTY_BLOCKS = [0, 10_000, 100_000];
/** Writes that make nothing dirty to speak of: the epoch has what was written before. */
const HOT_BYTES = MEBIBYTE;
const DIRTIED_BYTES = 896 * MEBIBYTE;
const GUEST: FioJob = { rw: "randwrite", bs: "4k", iodepth: 16 };
const FREQUENT_MS = 100;
const FREQUENT_BYTES = 512 * MEBIBYTE;
const FILL_LIMIT_SECONDS = 120;

interface Bench {
  readonly workspace: Workspace;
  readonly pair: Pair;
  readonly system: System;
}

export interface CheckpointSettings {
  readonly rounds: number;
  readonly seconds: number;
}

export async function checkpointTables(
  lab: Lab,
  settings: CheckpointSettings,
  say: (line: string) => void,
): Promise<Table[]> {
  const stalls: Table["lines"][number][] = [];
  const frequent: Table["lines"][number][] = [];
  const copies: Table["lines"][number][] = [];
  for (const sizeBytes of SIZES) {
    const workspace = await lab.workspace();
    const startMs = performance.now();
    const bench = await start(workspace, sizeBytes);
    const copyMs = performance.now() - startMs;
    copies.push([sizeName(sizeBytes), copyMs / 1000, ...(await peaks(bench.system))]);
    await warmUp(bench.system, { sizeBytes });
    for (const blocks of DIRTY_BLOCKS) {
      say(`one checkpoint: ${sizeName(sizeBytes)}, ${blocks} dirty blocks`);
      stalls.push([sizeName(sizeBytes), blocks, ...(await oneCheckpoint(bench, blocks, settings))]);
    }
    say(`a checkpoint every ${FREQUENT_MS} ms: ${sizeName(sizeBytes)}`);
    frequent.push([sizeName(sizeBytes), ...(await frequentCheckpoints(bench, settings))]);
    await lab.discard(workspace);
  }
  say("resync");
  return [
    {
      title: "One checkpoint under load",
      remark:
        "Milliseconds, medians and the worst of the rounds. A guest rewrites 1 MiB at depth 16 without a pause; before, this many other blocks of 4 KiB were made dirty. *Pause*: the node's own figure, from when new writes wait until they go on. *Stall*: the guest's slowest write (fio's max); beside it that of the same load without a checkpoint, for the machine has stalls of its own. *Durable*: until the checkpoint is reported. Expected: flat in both.",
      columns: [
        "disk",
        "dirty blocks",
        "pause",
        "pause, worst",
        "stall",
        "stall, worst",
        "stall without",
        "durable",
      ],
      lines: stalls,
    },
    {
      title: `A checkpoint every ${FREQUENT_MS} ms`,
      remark:
        "Random writes of 4 KiB at depth 16 over 512 MiB of data. Milliseconds. Expected: the same for both sizes.",
      columns: [
        "disk",
        ...["IOPS without", "IOPS with", "p99 without", "p99 with", "stall without", "stall with"],
        ...["checkpoints", "pause", "pause, worst", "primary MiB", "secondary MiB"],
      ],
      lines: frequent,
    },
    {
      title: "Start and first copy of an empty sparse disk",
      remark:
        "From nothing until both nodes run, the copy is done and the first checkpoint taken. Expected: seconds.",
      columns: ["disk", "seconds", "primary MiB", "secondary MiB"],
      lines: copies,
    },
    await resyncTable(lab, settings),
  ];
}

async function start(workspace: Workspace, sizeBytes: number): Promise<Bench> {
  // The pause is in the log, at level debug.
  const pair = await startPair(workspace, {
    sizeBytes,
    primary: ["--log-level", "debug"],
    copyLimitMs: COPY_LIMIT_MS,
  });
  return { workspace, pair, system: await systemOf(workspace, "ours", pair) };
}

async function oneCheckpoint(
  { pair, system }: Bench,
  dirtyBlocks: number,
  { rounds, seconds }: CheckpointSettings,
): Promise<number[]> {
  const hot = { disks: 1, extentBytes: HOT_BYTES, seconds };
  const [pauses, stalls, stallsWithout, durable]: [number[], number[], number[], number[]] = [[], [], [], []];
  for (let round = 0; round < rounds; round++) {
    stallsWithout.push((await runLoad(system, GUEST, { ...hot, seed: round })).latency.max / 1000);
    await system.checkpoint?.();
    await makeDirty(system, dirtyBlocks, round);
    const before = pausesOf(pair).length;
    const load = runLoad(system, GUEST, { ...hot, seed: round });
    await sleep((seconds * 1000) / 2);
    const startMs = performance.now();
    await system.checkpoint?.();
    durable.push(performance.now() - startMs);
    stalls.push((await load).latency.max / 1000);
    pauses.push(...pausesOf(pair).slice(before));
  }
  return [
    ...[median(pauses), worst(pauses), median(stalls), worst(stalls)],
    ...[median(stallsWithout), median(durable)],
  ];
}

/** Blocks beside the hot ones, each once. */
async function makeDirty(system: System, blocks: number, seed: number): Promise<void> {
  if (blocks === 0) return;
  const job = { rw: "randwrite", bs: "4k", iodepth: 32, time_based: 0, io_size: blocks * BLOCK_BYTES };
  const target = {
    disks: 1,
    offset: HOT_BYTES,
    extentBytes: DIRTIED_BYTES,
    seconds: FILL_LIMIT_SECONDS,
    seed,
  };
  const { requests } = await runLoad(system, job, target);
  if (requests < blocks) throw new Error(`only ${requests} of ${blocks} blocks were written in time`);
}

async function frequentCheckpoints(
  { pair, system }: Bench,
  { rounds, seconds }: CheckpointSettings,
): Promise<number[]> {
  const target = { disks: 1, extentBytes: FREQUENT_BYTES, seconds };
  // A file's holes are dearer to write to than its data: not in some of the loads only.
  const fill = { rw: "write", bs: "1M", iodepth: 8, time_based: 0, io_size: FREQUENT_BYTES };
  await runLoad(system, fill, { ...target, seconds: FILL_LIMIT_SECONDS, seed: 1 });
  const [without, beside]: [LoadResult[], LoadResult[]] = [[], []];
  const before = pausesOf(pair).length;
  for (const { pid } of system.servers) await resetPeakMemory(pid);
  for (let round = 0; round < rounds; round++) {
    await system.checkpoint?.();
    without.push(await runLoad(system, GUEST, { ...target, seed: 2 * round }));
    const load = runLoad(system, GUEST, { ...target, seed: 2 * round + 1 });
    for (let elapsedMs = 0; elapsedMs < seconds * 1000 - FREQUENT_MS; elapsedMs += FREQUENT_MS) {
      await Promise.all([sleep(FREQUENT_MS), system.checkpoint?.()]);
    }
    beside.push(await load);
  }
  const pauses = pausesOf(pair).slice(before);
  const both = (figure: (load: LoadResult) => number): number[] =>
    [without, beside].map((loads) => median(loads.map(figure)));
  return [
    ...both(({ requestsPerSecond }) => requestsPerSecond),
    ...both(({ latency }) => latency.p99 / 1000),
    ...both(({ latency }) => latency.max / 1000),
    ...[pauses.length, median(pauses), worst(pauses)],
    ...(await peaks(system)),
  ];
}

/** A new secondary takes a full copy while the guest goes on. */
async function resyncTable(lab: Lab, { seconds }: CheckpointSettings): Promise<Table> {
  const workspace = await lab.workspace();
  const sizeBytes = 8 * GIBIBYTE;
  const dataBytes = 4 * GIBIBYTE;
  await fillDisk(workspace.path("primary-disk0.img"), { sizeBytes, dataBytes });
  const { pair, system } = await start(workspace, sizeBytes);
  await warmUp(system, { sizeBytes });
  const target = { disks: 1, offset: dataBytes, extentBytes: GIBIBYTE, seconds, seed: 1 };
  const steady = await runLoad(system, GUEST, target);

  await pair.secondary.succeed("stop");
  await rm(pair.secondary.stateDirectory, { recursive: true });
  await rm(pair.secondaryFile());
  const alone = await runLoad(system, GUEST, target);
  await pair.startSecondary();
  await pair.primary.waitForStatus("resyncing", ({ primary }) => primary?.link.state === "resyncing");
  const startMs = performance.now();
  const bytesBefore = await resynced(pair);
  const beside = await runLoad(system, GUEST, target);
  const copied = ((await resynced(pair)) - bytesBefore) / 1e6 / ((performance.now() - startMs) / 1000);
  const { primary } = await pair.primary.status();
  const wholly = primary?.link.state === "resyncing" ? "yes" : "no: the copy was done before the load";
  await lab.discard(workspace);
  const kept = (100 * beside.requestsPerSecond) / steady.requestsPerSecond;
  return {
    title: "A resync at full speed beside a guest",
    remark:
      "The guest writes 4 KiB at depth 16 while a new secondary gets a full copy (no --resync-rate). *Kept*: its IOPS during the copy, in percent of those while replicating. *Throughout*: whether the copy lasted as long as the load.",
    columns: ["IOPS replicating", "without replica", "during the copy", "kept %", "copy MB/s", "throughout"],
    lines: [
      [steady.requestsPerSecond, alone.requestsPerSecond, beside.requestsPerSecond, kept, copied, wholly],
    ],
  };
}

async function resynced(pair: Pair): Promise<number> {
  const { disks } = await pair.primary.status();
  return disks.reduce((sum, { primary }) => sum + (primary?.bytesResynced ?? 0), 0);
}

/** Of all checkpoints so far, in milliseconds. */
function pausesOf(pair: Pair): number[] {
  return pair.primary.log.flatMap(({ msg, pauseMs }) =>
    msg === "checkpoint" && typeof pauseMs === "number" ? [pauseMs] : [],
  );
}

function peaks(system: System): Promise<number[]> {
  return Promise.all(system.servers.map(async ({ pid }) => (await peakMemoryBytes(pid)) / MEBIBYTE));
}

function median(values: readonly number[]): number {
  return spreadOf(values)?.median ?? NaN;
}

function worst(values: readonly number[]): number {
  return spreadOf(values)?.maximum ?? NaN;
}

function sizeName(bytes: number): string {
  return bytes >= 1024 * GIBIBYTE ? `${bytes / 1024 / GIBIBYTE} TiB` : `${bytes / GIBIBYTE} GiB`;
}
