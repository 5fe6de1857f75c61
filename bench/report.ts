/** A result as Markdown, for the terminal and for docs/performance.md, whose marked part is written by this alone. */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { ratioPlot } from "./plot.js";
import type { BenchResult, Comparison, Section, Table, TableSection } from "./sample.js";
import { Summary } from "./summary.js";
import {
  cpuTable,
  latencyTable,
  markdownTable,
  memoryTable,
  ratioTable,
  rounded,
  throughputTable,
  variantTable,
  verdicts,
} from "./tables.js";

/** Seen from dist/bench/. */
const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const RESULTS = join(ROOT, "bench/results");
/** The one that is kept in the repository. */
const REFERENCE = join(RESULTS, "reference.json");
const DOCUMENT = join(ROOT, "docs/performance.md");
const PLOT = join(ROOT, "docs/performance.svg");
const BEGIN = "<!-- bench: begin -->";
const END = "<!-- bench: end -->";

const SECTION_NAMES = ["checkpoints", "scaling", "micro"] as const;

export function renderResult(result: BenchResult): string {
  const parts = SECTION_NAMES.flatMap((name) => {
    const section = result[name];
    return section === undefined ? [] : [renderTables(section)];
  });
  if (result.comparison !== undefined) parts.unshift(renderComparison(result.comparison));
  return parts.join("\n\n");
}

/** Writes a result, and a picture of it if systems were compared. @returns the path of the JSON */
export async function keepResult(result: BenchResult, startedAt: string): Promise<string> {
  const path = join(RESULTS, `${startedAt.slice(0, 16).replace(":", "")}.json`);
  await writeResult(path, result);
  if (result.comparison !== undefined) {
    await writeFile(path.replace(/json$/, "svg"), ratioPlot(new Summary(result.comparison)));
  }
  return path;
}

/**
 * Takes the sections of these results into the reference, later ones first, and writes the document's figures anew.
 * @throws if the document has lost its marks
 */
export async function updateDocument(paths: readonly string[]): Promise<void> {
  const results = [REFERENCE, ...paths].map(
    async (path) => JSON.parse(await readFile(path, "utf8")) as BenchResult,
  );
  const reference = Object.assign({}, ...(await Promise.all(results))) as BenchResult;
  const document = await readFile(DOCUMENT, "utf8");
  const [begin, end] = [document.indexOf(BEGIN), document.indexOf(END)];
  if (begin < 0 || end < begin)
    throw new Error(`${DOCUMENT} lacks the lines ${BEGIN} and ${END}: put them back`);
  await writeResult(REFERENCE, reference);
  if (reference.comparison !== undefined) {
    await writeFile(PLOT, ratioPlot(new Summary(reference.comparison)));
  }
  const head = document.slice(0, begin + BEGIN.length);
  await writeFile(DOCUMENT, `${head}\n\n${renderResult(reference)}\n\n${document.slice(end)}`);
}

async function writeResult(path: string, result: BenchResult): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, `${JSON.stringify(result)}\n`);
}

function renderComparison(comparison: Comparison): string {
  const summary = new Summary(comparison);
  const { rounds, seconds, sizeBytes, dataBytes } = comparison.settings;
  const mebibytes = (bytes: number): number => bytes / 2 ** 20;
  const claims = verdicts(summary).map((verdict) => `- ${verdict}`);
  return [
    "### Side by side",
    `${rounds} rounds of ${seconds} s; disks of ${mebibytes(sizeBytes)} MiB, ${mebibytes(dataBytes)} MiB of it data. ${origin(comparison)}`,
    ratioTable(summary),
    claims.length === 0 ? null : claims.join("\n"),
    variantTable(summary),
    ...[throughputTable, latencyTable, cpuTable, memoryTable].map((table) => table(summary)),
  ]
    .filter((part) => part !== null)
    .join("\n\n");
}

function renderTables(section: TableSection): string {
  return [...section.tables.map(renderTable), origin(section)].join("\n\n");
}

export function renderTable({ title, remark, columns, lines }: Table): string {
  const cells = lines.map((line) =>
    line.map((cell) => (cell === null ? "-" : typeof cell === "number" ? rounded(cell) : cell)),
  );
  return `### ${title}\n\n${remark}\n\n${markdownTable(columns, cells)}`;
}

function origin({ startedAt, host }: Section): string {
  const { processors, processor, memoryBytes, kernel, versions } = host;
  const programs = Object.entries(versions).map(([program, version]) => `${program} ${version}`);
  return `Taken ${startedAt.slice(0, 10)} on ${processors} x ${processor}, ${Math.round(memoryBytes / 2 ** 30)} GiB, Linux ${kernel}; ${programs.join(", ")}.`;
}
