/** The verb that turns what a node gave up into images; the node need not run. */
import { resolve } from "node:path";
import { formatSize } from "../config/units.js";
import { ConfigError } from "../errors.js";
import { openStateDirectory } from "../meta/state-directory.js";
import { extractSalvage } from "../replication/salvage.js";
import { nodeStateDir } from "./node-location.js";
import type { Verb } from "./program.js";

export const salvageVerb: Verb = {
  name: "salvage",
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
    const directory = await openStateDirectory(nodeStateDir("secondary", args, environment));
    for (const { image, bytes } of await extractSalvage(directory, resolve(output))) {
      terminal.print(`${image}: ${formatSize(bytes)}, listed in ${image}.extents`);
    }
  },
};
