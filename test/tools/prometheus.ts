/**
 * A strict reader of Prometheus' text format, version 0.0.4: what this takes, any other reader does.
 * https://prometheus.io/docs/instrumenting/exposition_formats/#text-format-details
 */

export interface Series {
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

export interface Family {
  readonly type: string;
  readonly help: string;
  readonly series: Series[];
}

const NAME = "[a-zA-Z_:][a-zA-Z0-9_:]*";
const HELP = new RegExp(`^# HELP (${NAME}) ((?:[^\\\\]|\\\\[\\\\n])+)$`);
const TYPE = new RegExp(`^# TYPE (${NAME}) (counter|gauge)$`);
const SAMPLE = new RegExp(`^(${NAME})(?:\\{(.*)\\})? ([-+]?[0-9]+(?:\\.[0-9]+)?(?:e[-+]?[0-9]+)?)$`);
const LABEL = /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\[\\"n])*)"(?:,|$)/;

/**
 * Families by their names, in order.
 * @throws with the line that no reader has to take: each family has a HELP, a TYPE and then samples, all in one place, no series is
 * there twice, and a counter's name ends in _total
 */
export function parseMetrics(text: string): Map<string, Family> {
  if (!text.endsWith("\n")) throw new Error("the last line does not end");
  const families = new Map<string, Family>();
  const lines = text.slice(0, -1).split("\n");
  let help: readonly [name: string, text: string] | null = null;
  let current: readonly [name: string, family: Family] | null = null;
  for (const line of lines) {
    const [, helpName, helpText] = HELP.exec(line) ?? [];
    const [, typeName, type] = TYPE.exec(line) ?? [];
    if (helpName !== undefined && helpText !== undefined) {
      if (help !== null || isEmpty(current)) throw new Error(`a family without samples is before: ${line}`);
      if (families.has(helpName)) throw new Error(`the family was there before: ${line}`);
      help = [helpName, helpText];
    } else if (typeName !== undefined && type !== undefined) {
      if (help?.[0] !== typeName) throw new Error(`not below its HELP: ${line}`);
      if ((type === "counter") !== typeName.endsWith("_total")) throw new Error(`not a name for it: ${line}`);
      current = [typeName, { type, help: help[1], series: [] }];
      families.set(...current);
      help = null;
    } else {
      const [, name, labels = "", value] = SAMPLE.exec(line) ?? [];
      if (name === undefined || help !== null || current?.[0] !== name)
        throw new Error(`not a sample of the family above: ${line}`);
      current[1].series.push({ labels: parseLabels(labels), value: Number(value) });
    }
  }
  if (help !== null || isEmpty(current)) throw new Error("the last family has no samples");
  for (const [name, { series }] of families) {
    const keys = series.map(({ labels }) => JSON.stringify(Object.entries(labels).sort()));
    if (new Set(keys).size < keys.length) throw new Error(`${name} has a series twice`);
  }
  return families;
}

function isEmpty(current: readonly [string, Family] | null): boolean {
  return current?.[1].series.length === 0;
}

function parseLabels(text: string): Record<string, string> {
  const labels: Record<string, string> = {};
  for (let rest = text; rest !== "";) {
    const [all, name, value] = LABEL.exec(rest) ?? [];
    if (all === undefined || name === undefined || value === undefined) throw new Error(`no label: ${rest}`);
    if (name in labels) throw new Error(`label ${name} is there twice: ${text}`);
    labels[name] = value.replace(/\\(.)/g, (_escape, character: string) =>
      character === "n" ? "\n" : character,
    );
    rest = rest.slice(all.length);
  }
  return labels;
}
