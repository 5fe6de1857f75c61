/** argv -> what is to be done, with yargs; no I/O. What yargs says about mistakes becomes one line in our words. */
import yargs from "yargs";
import type { Argv, Options } from "yargs";
import { optionsOf } from "../config/options.js";
import type { NodeOption } from "../config/options.js";
import type { OptionValues } from "../config/schema.js";
import { ConfigError, asError } from "../errors.js";
import { readVersion } from "../version.js";
import { EXIT_CODE_MEANINGS } from "./exit-code.js";
import { DIRECTORY_LOCATION, NODE_LOCATION } from "./node-location.js";
import type { Program, Verb, VerbArguments } from "./program.js";

export type Invocation =
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "start"; readonly values: OptionValues }
  | { readonly kind: "verb"; readonly verb: Verb; readonly args: VerbArguments };

type Parsed = Readonly<Record<string, unknown>>;

const TEXT = { type: "string", requiresArg: true } as const;

/** Values are texts to us, and a hyphen is a hyphen. */
const PARSER_CONFIGURATION = {
  "boolean-negation": false,
  "camel-case-expansion": false,
  "dot-notation": false,
  "parse-numbers": false,
  "parse-positional-numbers": false,
  "short-option-groups": false,
};

/**
 * @throws ConfigError with one line that names what is wrong
 */
export function parseCommandLine(program: Program, argv: readonly string[], columns: number): Invocation {
  const found: Invocation[] = [];
  let text = "";
  let failure: Error | null = null;
  try {
    void describeProgram(program, columns, found).parse([...argv], {}, (error, _parsed, output) => {
      failure = error ?? null;
      text = output;
    });
  } catch (error) {
    // yargs trips over names like --constructor.
    failure = asError(error);
  }
  if (failure !== null) throw usageError(program, argv, failure);
  const [invocation = { kind: "text", text }] = found;
  if (invocation.kind === "verb") checkFlags(invocation.verb.options, argv);
  if (invocation.kind === "start") checkFlags(nodeOptions(program), argv);
  return invocation;
}

function describeProgram(program: Program, columns: number, found: Invocation[]): Argv {
  const parser = yargs()
    .scriptName(program.name)
    .usage(`$0 --disk NAME=PATH [options]\n$0 VERB [options]\n\n${program.describe}`)
    .parserConfiguration(PARSER_CONFIGURATION)
    .locale("en")
    .exitProcess(false)
    .showHelpOnFail(false)
    .wrap(columns)
    .strict()
    .help("help", "show this, or the help of a verb, and exit")
    .version("version", "show the version and exit", readVersion())
    .command(
      "$0",
      "run the node in the foreground",
      (options) =>
        options.options({
          ...nodeOptions(program),
          config: { ...TEXT, describe: "FILE: the same options as YAML; the command line wins" },
        }),
      (parsed) => {
        refuseOperands(parsed, 0);
        found.push({ kind: "start", values: optionValues(parsed) });
      },
    )
    .epilogue(epilogue(program));
  for (const verb of program.verbs) {
    parser.command(
      verb.name,
      verb.describe,
      (options) =>
        options
          .usage(`$0 ${verb.name} [options]\n\n${verb.describe}`)
          .options({ ...verb.options, ...(verb.isOffline === true ? DIRECTORY_LOCATION : NODE_LOCATION) }),
      (parsed) => {
        refuseOperands(parsed, 1);
        found.push({ kind: "verb", verb, args: verbArguments(parsed) });
      },
    );
  }
  return parser;
}

/** Not yargs' examples, which it breaks into columns. */
function epilogue(program: Program): string {
  const meanings = EXIT_CODE_MEANINGS.map((meaning, code) => `${code} ${meaning}`);
  return ["Examples:", ...program.examples, "", `Exit codes: ${meanings.join(", ")}.`].join("\n");
}

function nodeOptions(program: Program): Readonly<Record<string, Options>> {
  return Object.fromEntries(optionsOf(program.role).map((option) => [option.name, nodeOption(option)]));
}

function nodeOption(option: NodeOption): Options {
  if (option.value === null) return { type: "boolean", describe: option.describe };
  return {
    ...TEXT,
    describe: `${option.value}: ${option.describe}`,
    ...(option.defaultText !== undefined && { defaultDescription: option.defaultText }),
  };
}

/** What follows `--` escapes yargs' strictness. */
function refuseOperands(parsed: Parsed, expected: number): void {
  const operand = (parsed["_"] as readonly string[])[expected];
  if (operand !== undefined) throw new ConfigError("usage", `unexpected argument "${operand}"`);
}

function optionValues(parsed: Parsed): OptionValues {
  const options = Object.entries(parsed).filter(([name]) => name !== "_" && name !== "$0");
  return Object.fromEntries(
    options.map(([name, value]) => [name, value === true ? "true" : value]),
  ) as OptionValues;
}

function verbArguments(parsed: Parsed): VerbArguments {
  const texts: Record<string, string> = {};
  const flags = new Set<string>();
  for (const [name, value] of Object.entries(parsed)) {
    if (name === "_" || name === "$0") continue;
    if (typeof value === "string") texts[name] = value;
    else if (value === true) flags.add(name);
    else if (Array.isArray(value))
      throw new ConfigError("usage", `--${name}: may be given once, not ${value.length} times`);
  }
  return { texts, flags };
}

/** To yargs, `--dry-run=yes` is false. */
function checkFlags(options: Readonly<Record<string, Options>>, argv: readonly string[]): void {
  for (const argument of argv) {
    const [, name = "", value = ""] = /^--([^=]+)=(.*)$/s.exec(argument) ?? [];
    if (options[name]?.type === "boolean") {
      throw new ConfigError("usage", `--${name}: takes no value, "${value}" was given`);
    }
  }
}

/** yargs tells its errors apart by their text alone. */
function usageError(program: Program, argv: readonly string[], error: Error): ConfigError {
  if (error instanceof ConfigError) return error;
  const verbs = program.verbs.map(({ name }) => name);
  const [first = "-"] = argv;
  if (!first.startsWith("-") && !verbs.includes(first)) {
    const what = `"${first}" is not one of the verbs ${verbs.join(", ")}`;
    return new ConfigError("usage", what, { cause: error });
  }
  const verb = program.verbs.find(({ name }) => argv.includes(name));
  const [, unknown] = /^Unknown (?:argument|command)s?: ([^,]*)/.exec(error.message) ?? [];
  if (unknown !== undefined) {
    const option = argv.find(
      (argument) => argument.replace(/=.*$/s, "").replace(/^--?/, "") === unknown && argument.startsWith("-"),
    );
    const what = option === undefined ? `argument "${unknown}"` : `option ${option.replace(/=.*$/s, "")}`;
    const where = verb === undefined ? "" : ` for "${verb.name}"`;
    return new ConfigError("usage", `unknown ${what}${where}`, { cause: error });
  }
  const [, lacking] = /^Not enough arguments following: (.*)$/.exec(error.message) ?? [];
  if (lacking !== undefined) return new ConfigError("usage", `--${lacking}: needs a value`, { cause: error });
  return new ConfigError("usage", `can't make sense of the command line: ${error.message}`, { cause: error });
}
