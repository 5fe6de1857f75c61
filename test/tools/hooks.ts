/** Root hooks: what a test leaves unhandled fails the run instead of passing unseen; SEED repeats a random run. */
import fc from "fast-check";

process.on("unhandledRejection", (reason) => {
  throw reason instanceof Error ? reason : new Error(String(reason));
});

const seed = process.env["SEED"];
if (seed !== undefined) fc.configureGlobal({ seed: Number(seed) });
