/** The programs' man pages, from what the command line knows of them. Source: man(7), groff_man(7). */
import type { Options } from "yargs";
import { optionsOf } from "../config/options.js";
import type { NodeRole } from "../status.js";
import { EXIT_CODE_MEANINGS } from "./exit-code.js";
import { DIRECTORY_LOCATION, NODE_LOCATION } from "./node-location.js";
import type { Program } from "./program.js";

const DESCRIPTIONS: Readonly<Record<NodeRole, readonly string[]>> = {
  primary: [
    "Without a verb, runs a node in the foreground. It exports each disk to NBD clients, writes to it locally, and forwards " +
      "every write to the secondary, which keeps a view of the last checkpoint: the instant at which the disks of both were " +
      "the same.",
  ],
  secondary: [
    "Without a verb, runs a node in the foreground. It takes a primary's writes by its NBD server, and keeps the old content " +
      "of what they overwrite, so that its view, which another NBD server shows, is that of the last checkpoint. A failover " +
      "makes the view the disk, with its clients connected all through; then the node can take a secondary of its own.",
  ],
};
const WITH_A_VERB = "With a verb, talks to a running node, by its QMP server.";

const OTHER_PROGRAM: Readonly<Record<NodeRole, string>> = {
  primary: "repl-secondary",
  secondary: "repl-primary",
};

/** @returns the page's source, for section 1 */
export function manPage(program: Program, version: string): string {
  const { name, role } = program;
  return [
    `.TH ${escape(name.toUpperCase())} 1 "" "nbd\\-replication ${escape(version)}"`,
    // Long words without a place to break them: lines are not stretched.
    ".ad l",
    ".SH NAME",
    `${escape(name)} \\- ${escape(program.describe.replace(/\.$/, ""))}`,
    ".SH SYNOPSIS",
    ".nf",
    `\\fB${escape(name)}\\fR \\fB\\-\\-disk\\fR \\fINAME=PATH\\fR [options]`,
    `\\fB${escape(name)}\\fR \\fIVERB\\fR [options]`,
    ".fi",
    ".SH DESCRIPTION",
    ...[...DESCRIPTIONS[role], WITH_A_VERB].flatMap((paragraph) => [".PP", textLine(paragraph)]),
    ".SH OPTIONS OF A NODE",
    ...optionsOf(role).flatMap(({ name: option, value, describe, defaultText }) =>
      optionEntry(option, value, describe, defaultText),
    ),
    ...optionEntry("config", "FILE", "the same options as YAML; the command line wins"),
    ...optionEntry("version", null, "show the version and exit"),
    ...optionEntry("help", null, "show the options, also those of a verb, and exit"),
    ".SH VERBS",
    ...program.verbs.flatMap((verb) => [
      `.SS ${escape(verb.name)}`,
      textLine(verb.describe),
      ...verbOptions(verb.options),
    ]),
    ".SS Which node",
    textLine(`options of every verb${offlineNote(program)}`),
    ...verbOptions(NODE_LOCATION),
    ".SH EXIT STATUS",
    ...EXIT_CODE_MEANINGS.flatMap((meaning, code) => entry(`\\fB${code}\\fR`, meaning)),
    ".SH SIGNALS",
    ...entry("\\fBSIGTERM\\fR, \\fBSIGINT\\fR, \\fBSIGHUP\\fR", "as the verb stop"),
    ".SH EXAMPLES",
    ...program.examples.flatMap((example) => [".PP", ".nf", textLine(example), ".fi"]),
    ".SH SEE ALSO",
    `\\fB${escape(OTHER_PROGRAM[role])}\\fR(1), \\fBqemu\\-nbd\\fR(8), \\fBnbdinfo\\fR(1), \\fBnbd\\-client\\fR(8)`,
    "",
  ].join("\n");
}

function offlineNote({ verbs }: Program): string {
  const names = verbs.filter(({ isOffline }) => isOffline === true).map(({ name }) => name);
  const options = Object.keys(DIRECTORY_LOCATION).map((name) => `--${name}`);
  return names.length === 0 ? "" : `; of ${names.join(", ")} only ${options.join(" and ")}`;
}

function verbOptions(options: Readonly<Record<string, Options>>): string[] {
  return Object.entries(options).flatMap(([option, { describe = "", defaultDescription }]) => {
    // What takes a value has its name in front, as parse.ts does it for a node's options.
    const [, value = null, text = describe] = /^([A-Z]+|\S+\|\S+): (.*)$/s.exec(describe) ?? [];
    return optionEntry(option, value, text, defaultDescription);
  });
}

function optionEntry(name: string, value: string | null, describe: string, defaultText?: string): string[] {
  const term = `\\fB\\-\\-${escape(name)}\\fR${value === null ? "" : ` \\fI${escape(value)}\\fR`}`;
  return entry(term, defaultText === undefined ? describe : `${describe} (default: ${defaultText})`);
}

/** @param term groff source */
function entry(term: string, text: string): string[] {
  return [".TP", term, textLine(text)];
}

/** A line of text: a dot or a quote at its beginning would make it a request. */
function textLine(text: string): string {
  return `\\&${escape(text)}`;
}

/** Characters of the input that groff takes for something else. */
function escape(text: string): string {
  return text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replaceAll("'", "\\(aq")
    .replaceAll("~", "\\(ti")
    .replaceAll("^", "\\(ha")
    .replaceAll("`", "\\(ga");
}
