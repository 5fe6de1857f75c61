/** What a run of the benchmark leaves behind, as plain data: bench/results/*.json. */
import type { SystemName } from "./systems/system.js";

/** Microseconds, from when a request was sent until it was answered. */
export interface Latency {
  readonly mean: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

export interface ServerUsage {
  readonly role: "primary" | "secondary" | "server";
  readonly cpuMicrosecondsPerRequest: number;
  readonly peakMemoryBytes: number;
}

/** What fio saw in one row. */
export interface LoadResult {
  readonly requests: number;
  readonly requestsPerSecond: number;
  readonly bytesPerSecond: number;
  readonly latency: Latency;
}

export type Outcome =
  | {
      readonly kind: "measured";
      readonly load: LoadResult;
      readonly usage: readonly ServerUsage[];
      /** Taken while the row ran. */
      readonly checkpoints: number;
    }
  /** died: a server ended in the middle of the row; failed: the load did, or the system did not start. */
  | { readonly kind: "died" | "failed"; readonly reason: string };

/** One system in one row, once. */
export interface Sample {
  readonly row: string;
  readonly system: SystemName;
  readonly round: number;
  readonly outcome: Outcome;
}

export interface Host {
  readonly processors: number;
  readonly processor: string;
  readonly memoryBytes: number;
  readonly kernel: string;
  /** Program -> version. */
  readonly versions: Readonly<Record<string, string>>;
}

/** When and where figures were taken. */
export interface Section {
  readonly startedAt: string;
  readonly endedAt: string;
  readonly host: Host;
}

/** Systems side by side. */
export interface Comparison extends Section {
  readonly settings: BenchSettings;
  readonly samples: readonly Sample[];
}

/** Figures with a heading; what is null could not be measured. */
export interface Table {
  readonly title: string;
  /** What the figures are, and how they are expected to grow. */
  readonly remark: string;
  readonly columns: readonly string[];
  readonly lines: readonly (readonly (string | number | null)[])[];
}

export interface TableSection extends Section {
  readonly tables: readonly Table[];
}

/** What was run; a reference result has all sections. */
export interface BenchResult {
  readonly comparison?: Comparison;
  readonly checkpoints?: TableSection;
  readonly scaling?: TableSection;
  readonly micro?: TableSection;
}

export interface BenchSettings {
  readonly rows: readonly string[];
  readonly systems: readonly SystemName[];
  readonly rounds: number;
  readonly seconds: number;
  readonly sizeBytes: number;
  readonly dataBytes: number;
}
