/** Options from the command line and from a config file, made into one configuration; the command line wins. */
import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { isAbsolute, join } from "node:path";
import { parseDocument } from "yaml";
import { ConfigError, describeError } from "../errors.js";
import { inheritedSockets } from "../os/socket-activation.js";
import type { NodeRole } from "../status.js";
import { badOption, directoryField, readField } from "./fields.js";
import { optionsOf } from "./options.js";
import { primaryConfig, secondaryConfig } from "./schema.js";
import type { NameOption, OptionValues, PrimaryConfig, SecondaryConfig } from "./schema.js";

/** A config file has a line for each option; this is a mistaken path. */
const MAXIMUM_FILE_CHARACTERS = 1024 * 1024;

/** What the loading depends on besides the options. */
export type Environment = Readonly<Record<string, string | undefined>>;

/**
 * The configuration of a primary from its options as given on the command line, `config` among them.
 * @throws ConfigError that names the option or the file and key, the value and what would be right
 */
export function loadPrimaryConfig(commandLine: OptionValues, environment: Environment): PrimaryConfig {
  const { values, nameOption } = merge("primary", commandLine, environment);
  return primaryConfig(values, nameOption, inheritedSockets(environment, process.pid));
}

/** As loadPrimaryConfig(), for a secondary. */
export function loadSecondaryConfig(commandLine: OptionValues, environment: Environment): SecondaryConfig {
  const { values, nameOption } = merge("secondary", commandLine, environment);
  return secondaryConfig(values, nameOption, inheritedSockets(environment, process.pid));
}

/** The state directory alone, for the verbs that talk to a running node. */
export function loadStateDir(role: NodeRole, commandLine: OptionValues, environment: Environment): string {
  const { values, nameOption } = merge(role, commandLine, environment);
  return readField(directoryField, nameOption("state-dir"), String(values["state-dir"]));
}

function merge(
  role: NodeRole,
  commandLine: OptionValues,
  environment: Environment,
): { values: OptionValues; nameOption: NameOption } {
  const { config: file, ...given } = commandLine;
  if (Array.isArray(file)) throw badOption("--config", "may be given once");
  const fromFile = typeof file === "string" ? readConfigFile(role, file) : {};
  const nameOption: NameOption = (option) =>
    !(option in given) && option in fromFile ? `${String(file)}: ${option}` : `--${option}`;
  const chosen = { "state-dir": defaultStateDir(role, environment), ...fromFile, ...given };
  return { values: shape(role, chosen, nameOption), nameOption };
}

/** Lists for what may be repeated, single texts for the rest. */
function shape(role: NodeRole, values: OptionValues, nameOption: NameOption): OptionValues {
  const repeatable = new Map(optionsOf(role).map((option) => [option.name, option.repeatable === true]));
  const shaped: Record<string, string | readonly string[]> = {};
  for (const [name, value] of Object.entries(values)) {
    const repeated = [value].flat();
    const [single] = repeated;
    if (repeatable.get(name) === true) shaped[name] = repeated;
    else if (repeated.length === 1 && single !== undefined) shaped[name] = single;
    else {
      throw badOption(nameOption(name), `may be given once, not ${repeated.length} times`);
    }
  }
  return shaped;
}

function readConfigFile(role: NodeRole, file: string): OptionValues {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new ConfigError("bad-config-file", `--config: can't read "${file}": ${describeError(error)}`, {
      cause: error,
    });
  }
  if (text.length > MAXIMUM_FILE_CHARACTERS) {
    throw new ConfigError("bad-config-file", `--config: "${file}" is too large to be a configuration`);
  }
  return checkKeys(role, file, parseYaml(file, text));
}

/** All scalars as text (YAML's failsafe schema), so that `size: 4096` reads as on the command line. */
function parseYaml(file: string, text: string): unknown {
  const document = parseDocument(text, { schema: "failsafe", prettyErrors: true });
  const [problem] = [...document.errors, ...document.warnings];
  if (problem !== undefined) {
    const [summary = problem.message] = problem.message.split("\n");
    throw new ConfigError("bad-config-file", `${file}: ${summary.replace(/:$/, "")}`, { cause: problem });
  }
  try {
    const content: unknown = document.toJS({ maxAliasCount: 0 });
    return content;
  } catch (error) {
    throw new ConfigError("bad-config-file", `${file}: ${describeError(error)}`, { cause: error });
  }
}

function checkKeys(role: NodeRole, file: string, content: unknown): OptionValues {
  // A file in which everything is commented out, as in a sample.
  if (content === null) return {};
  if (typeof content !== "object" || Array.isArray(content)) {
    throw new ConfigError("bad-config-file", `${file}: must hold options as "name: value" lines`);
  }
  const lasting = optionsOf(role).filter(({ isForOneStart }) => isForOneStart !== true);
  const known = new Set(lasting.map((option) => option.name));
  for (const [key, value] of Object.entries(content)) {
    if (!known.has(key)) throw new ConfigError("unknown-key", `${file}: unknown key "${key}"`);
    const texts: unknown[] = Array.isArray(value) ? value : [value];
    if (!texts.every((text) => typeof text === "string") || texts.length === 0) {
      throw new ConfigError("bad-config-file", `${file}: ${key}: must be a value or a list of values`);
    }
  }
  return content as OptionValues;
}

/** XDG Base Directory Specification: relative paths in these variables are to be ignored. */
function defaultStateDir(role: NodeRole, environment: Environment): string {
  const configured = environment["XDG_STATE_HOME"] ?? "";
  const base = isAbsolute(configured)
    ? configured
    : join(environment["HOME"] ?? homedir(), ".local", "state");
  return join(base, "nbd-replication", role);
}
