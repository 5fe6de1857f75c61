/** What a process has to do at its end whose terminal was closed. */
import { closeSync } from "node:fs";

const STANDARD_STREAMS = [0, 1, 2] as const;

/**
 * At its end Node.js gives a terminal back the settings that it found, and aborts where it can't, as with one that is gone (SIGHUP).
 * So that is let go of before. Nothing is printed after it: to be called again does no harm.
 */
export function letGoOfTerminalAtExit(): void {
  process.off("exit", letGo);
  process.once("exit", letGo);
}

function letGo(): void {
  for (const fd of STANDARD_STREAMS) closeSync(fd);
}
