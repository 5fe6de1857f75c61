/** Stopping a process as a debugger does. */
import { readFile } from "node:fs/promises";

import { waitFor } from "./wait-for.js";

/** Stops it until SIGCONT; resolves when it is stopped, which a signal that was sent does not promise. */
export async function freezeProcess(pid: number): Promise<void> {
  process.kill(pid, "SIGSTOP");
  await waitFor(
    `process ${pid} to be stopped`,
    () => readFile(`/proc/${pid}/stat`, "utf8"),
    (stat) => /\) T /.test(stat),
  );
}
