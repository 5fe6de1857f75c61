/** One system in one row: a checkpoint, then load, with what its servers use meanwhile. */
import { setTimeout as sleep } from "node:timers/promises";

import { describeError } from "../src/errors.js";
import { succeed } from "../test/tools/process.js";
import { type LoadTarget, runLoad } from "./load.js";
import type { FioJob } from "./rows.js";
import type { LoadResult, Outcome, ServerUsage } from "./sample.js";
import type { System } from "./systems/system.js";
import { cpuMicroseconds, peakMemoryBytes, resetPeakMemory } from "./usage.js";

export interface Measurement extends LoadTarget {
  readonly job: FioJob;
  /** A checkpoint again and again while the load runs. */
  readonly checkpointEveryMs?: number;
  /** Between the checkpoint and the load; not measured. */
  readonly prepare?: () => Promise<unknown>;
}

/** How a server that has failed is given time to be dead: its clients know first. */
const DEATH_MS = 500;

/** A system that is not measured is not to be used again. */
export async function measure(system: System, measurement: Measurement): Promise<Outcome> {
  try {
    // So that the load meets copy-before-write. Nothing else runs: QEMU's would not survive it otherwise.
    await system.checkpoint?.();
    await measurement.prepare?.();
    // What was written before, to whichever disk, is not to be written back while this one is measured.
    await succeed("sync", []);
    for (const { pid } of system.servers) await resetPeakMemory(pid);
    const before = await Promise.all(system.servers.map(({ pid }) => cpuMicroseconds(pid)));
    const running = runLoad(system, measurement.job, measurement);
    const checkpoints = await checkpointsBeside(running, system, measurement.checkpointEveryMs);
    const load = await running;
    return { kind: "measured", load, usage: await usageOf(system, before, load), checkpoints };
  } catch (error) {
    await sleep(DEATH_MS);
    return { kind: system.isAlive() ? "failed" : "died", reason: firstLine(error) };
  }
}

export function firstLine(error: unknown): string {
  return describeError(error).split("\n", 1).join("");
}

/** Takes checkpoints until the load has ended. @returns how many */
async function checkpointsBeside(
  running: Promise<LoadResult>,
  system: System,
  everyMs: number | undefined,
): Promise<number> {
  if (everyMs === undefined || system.checkpoint === null) return 0;
  const ending = { isOver: false };
  const end = (): void => {
    ending.isOver = true;
  };
  running.then(end, end);
  let count = 0;
  for (;;) {
    await sleep(everyMs);
    if (ending.isOver) return count;
    await system.checkpoint();
    count++;
  }
}

async function usageOf(
  system: System,
  before: readonly number[],
  { requests }: LoadResult,
): Promise<ServerUsage[]> {
  return Promise.all(
    system.servers.map(async ({ role, pid }, index) => ({
      role,
      cpuMicrosecondsPerRequest: ((await cpuMicroseconds(pid)) - (before[index] ?? 0)) / requests,
      peakMemoryBytes: await peakMemoryBytes(pid),
    })),
  );
}
