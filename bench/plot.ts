/** A picture of the ratios, as SVG: one line of dots for each row, on a logarithmic scale, with the range of the rounds. */
import type { Row } from "./rows.js";
import type { Spread } from "./statistics.js";
import type { Summary } from "./summary.js";
import type { SystemName } from "./systems/system.js";
import { BASES, OURS } from "./tables.js";

const WIDTH = 860;
const LABELS_WIDTH = 210;
const MARGIN = 24;
const HEADER_HEIGHT = 64;
const LINE_HEIGHT = 13;
const ROW_GAP = 9;
/** Ratios beyond these are drawn at the edge. */
const LOWEST = 1 / 32;
const HIGHEST = 32;
const COLOURS: Partial<Record<SystemName, string>> = {
  "qemu-unix": "#d95f02",
  "qemu-tcp": "#7570b3",
  "qemu-nbd": "#1b9e77",
  nbdkit: "#808080",
};

export function ratioPlot(summary: Summary): string {
  const bases = BASES.filter((base) => summary.systems.includes(base));
  const rowHeight = bases.length * LINE_HEIGHT + ROW_GAP;
  const height = HEADER_HEIGHT + summary.rows.length * rowHeight + MARGIN;
  const rows = summary.rows.map((row, index) =>
    rowMarks(summary, row, bases, HEADER_HEIGHT + index * rowHeight + ROW_GAP / 2),
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="sans-serif" font-size="12">
<rect width="${WIDTH}" height="${height}" fill="white"/>
<text x="${MARGIN}" y="20" font-size="14">Throughput of our pair, as a multiple of the other's in the same round</text>
${legend(bases)}
${scale(height)}
${rows.join("\n")}
</svg>
`;
}

function legend(bases: readonly SystemName[]): string {
  return bases
    .map((base, index) => {
      const x = LABELS_WIDTH + index * 130;
      return `<circle cx="${x}" cy="36" r="4" fill="${colourOf(base)}"/><text x="${x + 9}" y="40">${base}</text>`;
    })
    .join("\n");
}

function scale(height: number): string {
  const lines: string[] = [];
  for (let ratio = LOWEST; ratio <= HIGHEST; ratio *= 2) {
    const x = position(ratio);
    const isOne = ratio === 1;
    const label = ratio < 1 ? `1/${1 / ratio}` : String(ratio);
    lines.push(
      `<line x1="${x}" x2="${x}" y1="${HEADER_HEIGHT}" y2="${height - MARGIN}" stroke="${isOne ? "black" : "#dddddd"}"/>`,
      `<text x="${x}" y="${HEADER_HEIGHT - 6}" text-anchor="middle" fill="#555555">${label}</text>`,
    );
  }
  return lines.join("\n");
}

function rowMarks(summary: Summary, row: Row, bases: readonly SystemName[], top: number): string {
  const middle = top + (bases.length * LINE_HEIGHT) / 2 + 4;
  const marks = bases.map((base, index) => {
    const y = top + index * LINE_HEIGHT + LINE_HEIGHT / 2;
    const ratio = summary.ratio(row, OURS, base);
    return ratio === null ? "" : mark(ratio, y, colourOf(base));
  });
  return `<text x="${LABELS_WIDTH - 8}" y="${middle}" text-anchor="end">${row.name}</text>${marks.join("")}`;
}

function mark({ median, minimum, maximum }: Spread, y: number, colour: string): string {
  return (
    `<line x1="${position(minimum)}" x2="${position(maximum)}" y1="${y}" y2="${y}" stroke="${colour}" stroke-width="2"/>` +
    `<circle cx="${position(median)}" cy="${y}" r="4" fill="${colour}"/>`
  );
}

function position(ratio: number): number {
  const clamped = Math.min(Math.max(ratio, LOWEST), HIGHEST);
  const share = Math.log(clamped / LOWEST) / Math.log(HIGHEST / LOWEST);
  return Math.round(LABELS_WIDTH + share * (WIDTH - LABELS_WIDTH - MARGIN));
}

function colourOf(base: SystemName): string {
  return COLOURS[base] ?? "black";
}
