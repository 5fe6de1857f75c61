/** One command line from beginning to end: exit codes, and errors on one line. */
import type { Environment } from "../config/load.js";
import { ConfigError, LinkError, StateError, UnreachableError, describeError } from "../errors.js";
import { QmpClient } from "../qmp/client.js";
import { QmpError } from "../qmp/errors.js";
import { ExitCode } from "./exit-code.js";
import { nodeAddress } from "./node-location.js";
import { parseCommandLine } from "./parse.js";
import type { Program, VerbArguments, VerbContext } from "./program.js";
import type { Terminal } from "./terminal.js";

/** A node on this host that runs at all greets at once. */
const CONNECT_TIMEOUT_MS = 5000;

/** Runs one command line to its end; resolves with the exit code and never rejects. */
export async function runProgram(
  program: Program,
  argv: readonly string[],
  terminal: Terminal,
  environment: Environment,
): Promise<number> {
  try {
    const invocation = parseCommandLine(program, argv, terminal.columns);
    switch (invocation.kind) {
      case "text":
        terminal.print(invocation.text);
        return ExitCode.Done;
      case "start":
        return await program.start(invocation.values, environment, terminal);
      case "verb":
        await invocation.verb.run(verbContext(program, invocation.args, terminal, environment));
        return ExitCode.Done;
    }
  } catch (error) {
    const code = exitCodeOf(error);
    const hint = error instanceof ConfigError ? ` (see ${program.name} --help)` : "";
    terminal.complain(`${program.name}: ${oneLine(describeError(error))}${hint}`);
    return code;
  }
}

function verbContext(
  program: Program,
  args: VerbArguments,
  terminal: Terminal,
  environment: Environment,
): VerbContext {
  return {
    args,
    terminal,
    environment,
    withNode: async (work) => {
      const address = nodeAddress(program.role, args, environment);
      const client = await QmpClient.connect(address, { timeoutMs: CONNECT_TIMEOUT_MS }).catch(
        (error: unknown) => {
          if (!(error instanceof UnreachableError) || args.texts["qmp"] !== undefined) throw error;
          const remedy = "start the node, or name another by --state-dir, --config or --qmp";
          throw new UnreachableError(error.code, `${error.message}: ${remedy}`, { cause: error });
        },
      );
      try {
        return await work(client);
      } finally {
        await client.close();
      }
    },
  };
}

function exitCodeOf(error: unknown): number {
  if (error instanceof ConfigError) return ExitCode.Usage;
  if (error instanceof StateError) return ExitCode.WrongState;
  if (error instanceof UnreachableError || error instanceof LinkError) return ExitCode.Unreachable;
  if (error instanceof QmpError) {
    switch (error.kind) {
      case "state":
        return ExitCode.WrongState;
      case "config":
        return ExitCode.Usage;
      case "failed":
        return ExitCode.Failed;
    }
  }
  return ExitCode.Failed;
}

function oneLine(text: string): string {
  return text.replace(/\s*\n\s*/g, " ");
}
