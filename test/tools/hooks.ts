/** Root hooks: what a test leaves unhandled fails the run instead of passing unseen; all random tests of a run have its seed. */
import fc from "fast-check";

import { SEED } from "./seed.js";

process.on("unhandledRejection", (reason) => {
  throw reason instanceof Error ? reason : new Error(String(reason));
});

// Also for the processes that mocha starts to run test files side by side.
process.env["SEED"] = `${SEED}`;
fc.configureGlobal({ seed: SEED });
