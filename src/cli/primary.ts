/** The program repl-primary. */
import { loadPrimaryConfig } from "../config/load.js";
import type { PrimaryConfig } from "../config/schema.js";
import type { Program } from "./program.js";
import { runProgram } from "./run.js";
import { processTerminal } from "./terminal.js";
import {
  attachVerb,
  checkpointVerb,
  detachVerb,
  metricsVerb,
  statusVerb,
  stopVerb,
  switchOverVerb,
  verifyVerb,
} from "./verbs.js";

/** The program, with the function that runs a node. */
export function primaryProgram(runPrimary: (config: PrimaryConfig) => Promise<number>): Program {
  return {
    name: "repl-primary",
    role: "primary",
    describe: "Serves disks over NBD and replicates every write to a secondary node.",
    examples: [
      "repl-primary --disk disk0=primary.img --listen unix:/run/repl/primary.sock",
      "repl-primary --disk disk0=primary.img --replica nbd://secondary-host --replica-qmp tcp:secondary-host:10810",
      "repl-primary checkpoint",
      "repl-primary status --watch",
    ],
    verbs: [
      checkpointVerb,
      statusVerb,
      metricsVerb,
      attachVerb,
      detachVerb,
      switchOverVerb,
      verifyVerb,
      stopVerb,
    ],
    start: (values, environment) => runPrimary(loadPrimaryConfig(values, environment)),
  };
}

/** Resolves with the exit code. */
export function run(argv: readonly string[]): Promise<number> {
  return runProgram(primaryProgram(startNode), argv, processTerminal(), process.env);
}

/** Loaded only when needed: a verb has no use for the node's code. */
async function startNode(config: PrimaryConfig): Promise<number> {
  const { runPrimary } = await import("../app/primary.js");
  return runPrimary(config);
}
