/** How a program in the foreground ends early: by a signal, or because nobody reads what it prints (`| head`). */
import { constants } from "node:os";
import { describeError } from "../errors.js";
import { letGoOfTerminalAtExit } from "./hang-up.js";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/**
 * On the first signal, or when an output pipe is closed, cleans up and then exits with the code by which a shell reports
 * that signal; a closed pipe counts as SIGPIPE, which Node.js ignores. The same signal once more ends the process at once.
 * @param cleanUp called at most once; what is printed meanwhile may be lost
 */
export function onInterruption(cleanUp: () => Promise<void>): void {
  let isInterrupted = false;
  const interrupt = (signal: (typeof SIGNALS)[number] | "SIGPIPE"): void => {
    if (isInterrupted) return;
    isInterrupted = true;
    if (signal === "SIGHUP") letGoOfTerminalAtExit();
    cleanUp()
      .catch((error: unknown) => process.stderr.write(`not cleaned up: ${describeError(error)}\n`))
      .finally(() => process.exit(128 + constants.signals[signal]));
  };
  for (const signal of SIGNALS) process.once(signal, interrupt);
  for (const stream of [process.stdout, process.stderr]) {
    stream.on("error", () => {
      interrupt("SIGPIPE");
    });
  }
}
