/** The verb that turns what a node gave up into images; the node need not run. */
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { formatSize } from "../config/units.js";
import { ConfigError, StateError } from "../errors.js";
import { openStateDirectory } from "../meta/state-directory.js";
import { extractSalvage } from "../replication/secondary/salvage.js";
import { nodeStateDir } from "./node-location.js";
import type { Verb } from "./program.js";

export const salvageVerb: Verb = {
  name: "salvage",
  isOffline: true,
  describe: "write what this node gave up last (--discard-local-changes) to images that can be looked into",
  options: {
    output: {
      type: "string",
      requiresArg: true,
      describe: "DIR: a directory to make, for an image of each disk (required)",
    },
  },
  run: async ({ args, terminal, environment }) => {
    const { output } = args.texts;
    if (output === undefined) throw new ConfigError("usage", "--output: is missing, as in --output salvaged");
    const path = nodeStateDir("secondary", args, environment);
    // To open it would make it.
    if (!existsSync(path)) {
      throw new StateError(
        "no-state-directory",
        `there is no state directory ${path}: name the node's by --state-dir`,
      );
    }
    const directory = await openStateDirectory(path);
    for (const { image, bytes } of await extractSalvage(directory, resolve(output))) {
      terminal.print(`${image}: ${formatSize(bytes)}, listed in ${image}.extents`);
    }
  },
};
