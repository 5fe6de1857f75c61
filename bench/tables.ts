/** A summary as Markdown tables, for the terminal and for docs/performance.md alike. */
import { type Row, ROW_GROUPS } from "./rows.js";
import type { Spread } from "./statistics.js";
import type { Summary } from "./summary.js";
import type { SystemName } from "./systems/system.js";

/** What ours is compared with. */
export const BASES: readonly SystemName[] = ["qemu-unix", "qemu-tcp", "qemu-nbd", "nbdkit"];
export const OURS: SystemName = "ours";

export function markdownTable(head: readonly string[], lines: readonly (readonly string[])[]): string {
  const widths = head.map((title, column) =>
    Math.max(title.length, 3, ...lines.map((cells) => cells[column]?.length ?? 0)),
  );
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell, column) => (column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0))).join(" | ")} |`;
  const rule = widths.map((width, column) =>
    column === 0 ? "-".repeat(width) : `${"-".repeat(width - 1)}:`,
  );
  return [line(head), line(rule), ...lines.map(line)].join("\n");
}

export function throughputTable(summary: Summary): string {
  return systemTable(summary, "throughput, median", (row, system) =>
    spreadCell(
      summary.throughput(row, system),
      (value) => `${rounded(value)}${row.unit === "MB/s" ? " MB/s" : ""}`,
    ),
  );
}

/** Null if there is nothing to compare ours with. */
export function ratioTable(summary: Summary): string | null {
  const bases = BASES.filter((base) => summary.systems.includes(base));
  if (bases.length === 0 || !summary.systems.includes(OURS)) return null;
  return ratiosOf(
    summary,
    "ours against",
    bases.map((base) => ({ title: base, system: OURS, base })),
  );
}

/** What other modes of ours cost or gain; null if none was run. */
export function variantTable(summary: Summary): string | null {
  const variants = summary.systems.filter((name) => name.startsWith(`${OURS}-`));
  if (variants.length === 0 || !summary.systems.includes(OURS)) return null;
  return ratiosOf(
    summary,
    "against the defaults",
    variants.map((system) => ({ title: system, system, base: OURS })),
  );
}

export function latencyTable(summary: Summary): string {
  return systemTable(summary, "latency µs: p50 / p99 / max", (row, system) => {
    const figures = (["p50", "p99", "max"] as const).map((figure) => summary.latency(row, system, figure));
    return figures.some((figure) => figure === null)
      ? "-"
      : figures.map((figure) => rounded(figure?.median ?? 0)).join(" / ");
  });
}

export function cpuTable(summary: Summary): string {
  return usageTable(summary, "CPU µs for each request", (usage) => usage.cpuMicrosecondsPerRequest, rounded);
}

export function memoryTable(summary: Summary): string {
  return usageTable(summary, "largest memory, MiB", (usage) => usage.peakMemoryBytes / 2 ** 20, rounded);
}

/** The goals in words, as far as the run tells. */
export function verdicts(summary: Summary): string[] {
  const bases = BASES.filter((base) => summary.systems.includes(base));
  return (["six", "holes"] as const).flatMap((group) => {
    const rows = summary.rows.filter((row) => row.group === group);
    if (rows.length === 0) return [];
    return bases.flatMap((base) => {
      const mean = summary.meanRatio(rows, OURS, base);
      if (mean === null) return [];
      const medians = rows.flatMap((row) => summary.ratio(row, OURS, base)?.median ?? []);
      const slower = summary.slowerTails(rows, OURS, base).map(({ name }) => name);
      const tails =
        slower.length === 0 ? "p99 of writes no worse" : `p99 of writes worse in ${slower.join(", ")}`;
      const claim = `geometric mean ${mean.toFixed(2)}, lowest ${Math.min(...medians).toFixed(2)}, ${tails}`;
      return [`${group} rows (${medians.length}), ours against ${base}: ${claim}`];
    });
  });
}

function systemTable(
  summary: Summary,
  title: string,
  cell: (row: Row, system: SystemName) => string,
): string {
  const lines = summary.rows.map((row) => [
    row.name,
    ...summary.systems.map((system) => summary.misfortune(row, system) ?? cell(row, system)),
  ]);
  return markdownTable([title, ...summary.systems], lines);
}

function usageTable(
  summary: Summary,
  title: string,
  of: Parameters<Summary["usage"]>[2],
  format: (value: number) => string,
): string {
  return systemTable(summary, `${title}: primary + secondary`, (row, system) =>
    summary
      .usage(row, system, of)
      .map(([, { median }]) => format(median))
      .join(" + "),
  );
}

/** Throughput of one system in terms of another's. */
interface Comparison {
  readonly title: string;
  readonly system: SystemName;
  readonly base: SystemName;
}

function ratiosOf(summary: Summary, title: string, comparisons: readonly Comparison[]): string {
  const lines = summary.rows.map((row) => [
    row.name,
    ...comparisons.map(
      ({ system, base }) =>
        summary.misfortune(row, system) ??
        summary.misfortune(row, base) ??
        ratioCell(summary.ratio(row, system, base)),
    ),
  ]);
  const means = ROW_GROUPS.flatMap((group) => {
    const rows = summary.rows.filter((row) => row.group === group);
    if (rows.length < 2) return [];
    const ratios = comparisons.map(({ system, base }) => summary.meanRatio(rows, system, base));
    return [
      [`geometric mean, ${group}`, ...ratios.map((mean) => (mean === null ? "-" : `${mean.toFixed(2)}x`))],
    ];
  });
  return markdownTable([title, ...comparisons.map((each) => each.title)], [...lines, ...means]);
}

function ratioCell(spread: Spread | null): string {
  return spreadCell(spread, (value) => value.toFixed(2), "x");
}

function spreadCell(spread: Spread | null, format: (value: number) => string, suffix = ""): string {
  if (spread === null) return "-";
  const { median, minimum, maximum } = spread;
  const range = minimum === maximum ? "" : ` (${format(minimum)}..${format(maximum)})`;
  return `${format(median)}${suffix}${range}`;
}

export function rounded(value: number): string {
  return value >= 100 || Number.isInteger(value) ? Math.round(value).toLocaleString("en") : value.toFixed(1);
}
