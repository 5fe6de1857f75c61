/** What the two programs and their verbs are to the command line. */
import type { Options } from "yargs";
import type { Environment } from "../config/load.js";
import type { OptionValues } from "../config/schema.js";
import type { QmpClient } from "../qmp/client.js";
import type { NodeRole } from "../status.js";
import type { Terminal } from "./terminal.js";

export interface VerbArguments {
  readonly texts: Readonly<Record<string, string>>;
  /** The flags that were given. */
  readonly flags: ReadonlySet<string>;
}

export interface VerbContext {
  readonly args: VerbArguments;
  readonly terminal: Terminal;
  readonly environment: Environment;
  /** Does `work` with a connection to the node, and closes it. @throws UnreachableError */
  readonly withNode: <T>(work: (client: QmpClient) => Promise<T>) => Promise<T>;
}

export interface Verb {
  readonly name: string;
  readonly describe: string;
  /** Whether it reads the state directory itself, so that the node need not run. */
  readonly isOffline?: true;
  /** Besides those that tell where the node is. */
  readonly options: Readonly<Record<string, Options>>;
  run(context: VerbContext): Promise<void>;
}

export interface Program {
  readonly name: string;
  readonly role: NodeRole;
  readonly describe: string;
  /** Command lines that can be pasted. */
  readonly examples: readonly string[];
  readonly verbs: readonly Verb[];
  /** Runs the node in the foreground; resolves with the exit code. */
  start(values: OptionValues, environment: Environment, terminal: Terminal): Promise<number>;
}
