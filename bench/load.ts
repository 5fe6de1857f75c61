/** Load by fio(1)'s NBD client, and what it says about it. */
import { z } from "zod";

import { fioReport } from "../test/tools/clients.js";
import type { FioJob } from "./rows.js";
import type { Latency, LoadResult } from "./sample.js";
import type { System } from "./systems/system.js";

/** What is longer than asked by this much hangs. */
const GRACE_MS = 30_000;

const latencySchema = z.object({
  mean: z.number(),
  max: z.number(),
  N: z.number(),
  percentile: z.record(z.string(), z.number()).optional(),
});
const directionSchema = z.object({
  io_bytes: z.number(),
  total_ios: z.number(),
  iops: z.number(),
  bw_bytes: z.number(),
  clat_ns: latencySchema,
});
const reportSchema = z.object({
  jobs: z
    .array(z.object({ error: z.number(), read: directionSchema, write: directionSchema, sync: z.unknown() }))
    .length(1),
});
const syncSchema = z.object({ lat_ns: latencySchema });

export interface LoadTarget {
  /** One fio job for each of these disks. */
  readonly disks: number;
  readonly extentBytes: number;
  readonly offset?: number;
  readonly seconds: number;
  readonly seed: number;
}

/** @throws if fio fails, as it does when its server goes away */
export async function runLoad(system: System, job: FioJob, target: LoadTarget): Promise<LoadResult> {
  const common = {
    ioengine: "nbd",
    thread: 1,
    group_reporting: 1,
    time_based: 1,
    runtime: target.seconds,
    offset: target.offset ?? 0,
    size: target.extentBytes,
    randseed: target.seed,
    ...job,
  };
  // Options before the first --name are everybody's; what is after belongs to that job.
  const jobs = Array.from({ length: target.disks }, (_, disk) => [
    `--name=disk${disk}`,
    ...Object.entries(common).map(([name, value]) => `--${name}=${value}`),
    `--uri=${system.uri(disk)}`,
  ]);
  const fio = await system.workspace.start("fio", ["--output-format=json", ...jobs.flat()]);
  const { jobs: results } = reportSchema.parse(
    JSON.parse(await fioReport(fio, target.seconds * 1000 + GRACE_MS)),
  );
  const [result] = results;
  if (result === undefined) throw new Error("fio reported no job");
  if (result.error !== 0) throw new Error(`fio's job ended with error ${result.error}`);
  const { read, write } = result;
  return {
    requests: read.total_ios + write.total_ios,
    requestsPerSecond: read.iops + write.iops,
    bytesPerSecond: read.bw_bytes + write.bw_bytes,
    latency: latencyOf(job, result),
  };
}

/** Of writes where there are any, of the flushes if each write is followed by one, else of reads. */
function latencyOf(
  job: FioJob,
  { read, write, sync }: { read: Direction; write: Direction; sync?: unknown },
): Latency {
  const measured =
    job["fsync"] === undefined ? (write.total_ios > 0 ? write : read).clat_ns : syncSchema.parse(sync).lat_ns;
  const percentile = (name: string): number => {
    const nanoseconds = measured.percentile?.[name];
    if (nanoseconds === undefined) throw new Error(`fio reported no percentile ${name}: it had no requests`);
    return nanoseconds / 1000;
  };
  return {
    mean: measured.mean / 1000,
    p50: percentile("50.000000"),
    p99: percentile("99.000000"),
    max: measured.max / 1000,
  };
}

type Direction = z.output<typeof directionSchema>;
