/** The program repl-secondary. */
import { loadSecondaryConfig } from "../config/load.js";
import type { SecondaryConfig } from "../config/schema.js";
import { confirm } from "./confirm.js";
import { failoverVerb } from "./failover.js";
import type { Program } from "./program.js";
import { runProgram } from "./run.js";
import { salvageVerb } from "./salvage.js";
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
export function secondaryProgram(runSecondary: (config: SecondaryConfig) => Promise<number>): Program {
  return {
    name: "repl-secondary",
    role: "secondary",
    describe: "Keeps a replica of a primary's disks that can go back to the last checkpoint, and take over.",
    examples: [
      "repl-secondary --disk disk0=secondary.img --size 10G --listen 0.0.0.0:10809 --qmp tcp:0.0.0.0:10810",
      "repl-secondary failover --dry-run",
      "repl-secondary failover --to latest --yes",
    ],
    verbs: [
      failoverVerb,
      statusVerb,
      metricsVerb,
      attachVerb,
      detachVerb,
      checkpointVerb,
      switchOverVerb,
      verifyVerb,
      salvageVerb,
      stopVerb,
    ],
    start: async (values, environment, terminal) => {
      const config = loadSecondaryConfig(values, environment);
      if (config.discardLocalChanges && !config.isConfirmed) {
        await confirm(terminal, "--discard-local-changes gives up what only this node has", "Give it up?");
      }
      return runSecondary(config);
    },
  };
}

/** Resolves with the exit code. */
export function run(argv: readonly string[]): Promise<number> {
  return runProgram(secondaryProgram(startNode), argv, processTerminal(), process.env);
}

/** Loaded only when needed: a verb has no use for the node's code. */
async function startNode(config: SecondaryConfig): Promise<number> {
  const { runSecondary } = await import("../app/secondary.js");
  return runSecondary(config);
}
