/** How cost grows with the work, one dimension at a time: `npm run bench -- --scaling`. */
import type { Lab } from "./lab.js";
import { runLoad } from "./load.js";
import { measure } from "./measure.js";
import type { FioJob } from "./rows.js";
import type { Outcome, Table } from "./sample.js";
import type { Shape, System, SystemName } from "./systems/system.js";
import { startWarm } from "./warm-up.js";

const MEBIBYTE = 1024 * 1024;
const GIBIBYTE = 1024 * MEBIBYTE;
const SHAPE: Shape = { disks: 1, sizeBytes: 2 * GIBIBYTE, dataBytes: GIBIBYTE };
const RANDOM_WRITE: FioJob = { rw: "randwrite", bs: "4k", iodepth: 32 };
const FILL_LIMIT_SECONDS = 120;

/** One value of what grows. */
interface Point {
  readonly label: string;
  readonly shape?: Shape;
  readonly job?: FioJob;
  readonly extentBytes?: number;
  /** Blocks of 4 KiB that are dirty in the epoch before the load begins. */
  readonly dirtyBlocks?: number;
}

interface Axis {
  readonly title: string;
  readonly expected: string;
  readonly unit: "IOPS" | "MB/s";
  readonly points: readonly Point[];
}

/** Work on holes, in the first GiB of each. */
function sparse(sizeBytes: number, disks = 1): Shape {
  return { disks, sizeBytes, dataBytes: 0 };
}

const AXES: readonly Axis[] = [
  {
    title: "Size of the disk",
    expected:
      "Random writes of 4 KiB at depth 32 to the first GiB of a sparse disk. Expected: flat; memory of our primary grows by some MiB for a TiB (bitmaps).",
    unit: "IOPS",
    points: [1, 64, 1024, 8192].map((gibibytes) => ({
      label: gibibytes >= 1024 ? `${gibibytes / 1024} TiB` : `${gibibytes} GiB`,
      shape: sparse(gibibytes * GIBIBYTE),
      extentBytes: GIBIBYTE - 64 * MEBIBYTE,
    })),
  },
  {
    title: "Dirty blocks in the epoch",
    expected:
      "Rewrites of 1 MiB at depth 32 while so many other blocks have before-images. Expected: flat (lookups are logarithmic); memory linear, 24 bytes a block and disk.",
    unit: "IOPS",
    points: [0, 1000, 10_000, 100_000].map((dirtyBlocks) => ({
      label: String(dirtyBlocks),
      shape: sparse(2 * GIBIBYTE),
      extentBytes: MEBIBYTE,
      dirtyBlocks,
    })),
  },
  {
    title: "Depth, random writes",
    expected: "4 KiB over data. Expected: grows until a processor is full, then latency alone grows.",
    unit: "IOPS",
    points: [1, 2, 4, 8, 16, 32, 64].map((iodepth) => ({
      label: String(iodepth),
      job: { ...RANDOM_WRITE, iodepth },
    })),
  },
  {
    title: "Depth, random reads",
    expected: "4 KiB of data. Expected: as writes.",
    unit: "IOPS",
    points: [1, 4, 16, 64].map((iodepth) => ({
      label: String(iodepth),
      job: { rw: "randread", bs: "4k", iodepth },
    })),
  },
  {
    title: "Request size, writes",
    expected:
      "Sequential over data at depth 8. Expected: CPU for each request is a constant plus a share linear in its size.",
    unit: "MB/s",
    points: ["4k", "16k", "64k", "256k", "1M", "4M"].map((bs) => ({
      label: bs,
      job: { rw: "write", bs, iodepth: 8 },
    })),
  },
  {
    title: "Request size, reads",
    expected: "Sequential at depth 8. Expected: as writes.",
    unit: "MB/s",
    points: ["4k", "64k", "1M"].map((bs) => ({ label: bs, job: { rw: "read", bs, iodepth: 8 } })),
  },
  {
    title: "Disks of one node",
    expected:
      "Random writes of 4 KiB to holes, depth 4 on each disk. Expected: the sum is that of one disk at the whole depth.",
    unit: "IOPS",
    points: [1, 4, 16].map((disks) => ({
      label: String(disks),
      shape: sparse(GIBIBYTE, disks),
      job: { ...RANDOM_WRITE, iodepth: 4 },
      extentBytes: GIBIBYTE - 64 * MEBIBYTE,
    })),
  },
  {
    title: "Clients of one disk",
    expected:
      "Random writes of 4 KiB, depth 8 for each connection. Expected: as one client at the whole depth.",
    unit: "IOPS",
    points: [1, 2, 4, 8].map((numjobs) => ({
      label: String(numjobs),
      job: { ...RANDOM_WRITE, iodepth: 8, numjobs },
    })),
  },
];

export class Scaling {
  readonly #lab: Lab;
  readonly #systems: readonly SystemName[];
  readonly #seconds: number;
  readonly #say: (line: string) => void;
  /** Those that the next point can use again, by name and shape. */
  readonly #kept = new Map<string, System>();

  constructor(lab: Lab, systems: readonly SystemName[], seconds: number, say: (line: string) => void) {
    this.#lab = lab;
    this.#systems = systems;
    this.#seconds = seconds;
    this.#say = say;
  }

  async tables(): Promise<Table[]> {
    const tables: Table[] = [];
    for (const axis of AXES) tables.push(await this.#table(axis));
    await this.#discardAllBut(null);
    return tables;
  }

  async #table({ title, expected, unit, points }: Axis): Promise<Table> {
    const lines: (string | number | null)[][] = [];
    for (const point of points) {
      this.#say(`${title}: ${point.label}`);
      const line: (string | number | null)[] = [point.label];
      for (const name of this.#systems) line.push(...figures(await this.#outcome(name, point), unit));
      lines.push(line);
    }
    const columns = this.#systems.flatMap((name) => [
      `${name} ${unit}`,
      ...["p50 µs", "p99 µs", "CPU µs", "MiB"],
    ]);
    return { title, remark: expected, columns: [title.toLowerCase(), ...columns], lines };
  }

  async #outcome(name: SystemName, point: Point): Promise<Outcome> {
    const { shape = SHAPE, job = RANDOM_WRITE, extentBytes = GIBIBYTE, dirtyBlocks = 0 } = point;
    const key = `${name} ${JSON.stringify(shape)}`;
    await this.#discardAllBut(shape);
    const system = this.#kept.get(key) ?? (await startWarm(await this.#lab.workspace(), name, shape));
    this.#kept.set(key, system);
    const outcome = await measure(system, {
      job,
      disks: shape.disks,
      extentBytes,
      seconds: this.#seconds,
      seed: 1,
      prepare: () => makeDirty(system, dirtyBlocks),
    });
    if (outcome.kind !== "measured") {
      this.#kept.delete(key);
      await this.#lab.discard(system.workspace);
    }
    return outcome;
  }

  /** Systems of other shapes only take memory. @param shape null: all */
  async #discardAllBut(shape: Shape | null): Promise<void> {
    for (const [key, system] of this.#kept) {
      if (shape !== null && key.endsWith(JSON.stringify(shape))) continue;
      this.#kept.delete(key);
      await this.#lab.discard(system.workspace);
    }
  }
}

/** Beside the part that the load works on. */
async function makeDirty(system: System, blocks: number): Promise<void> {
  if (blocks === 0) return;
  const job: FioJob = { ...RANDOM_WRITE, time_based: 0, io_size: blocks * 4096 };
  const target = { disks: 1, offset: MEBIBYTE, extentBytes: GIBIBYTE, seconds: FILL_LIMIT_SECONDS, seed: 1 };
  const { requests } = await runLoad(system, job, target);
  if (requests < blocks) throw new Error(`only ${requests} of ${blocks} blocks were written in time`);
}

function figures(outcome: Outcome, unit: Axis["unit"]): (string | number | null)[] {
  if (outcome.kind !== "measured") return [outcome.kind, null, null, null, null];
  const { load, usage } = outcome;
  const sum = (of: (each: (typeof usage)[number]) => number): number =>
    usage.reduce((total, each) => total + of(each), 0);
  return [
    unit === "IOPS" ? load.requestsPerSecond : load.bytesPerSecond / 1e6,
    load.latency.p50,
    load.latency.p99,
    sum(({ cpuMicrosecondsPerRequest }) => cpuMicrosecondsPerRequest),
    sum(({ peakMemoryBytes }) => peakMemoryBytes) / MEBIBYTE,
  ];
}
