/** What a process has used, as the kernel counts it (proc(5)): CPU time of all its threads, and its largest memory. */
import { readFile, writeFile } from "node:fs/promises";

/** USER_HZ, the unit of times in /proc, is 100 on every architecture that Node runs on. */
const MICROSECONDS_PER_TICK = 1e6 / 100;
/** proc(5): resets the peak of the resident set. */
const RESET_PEAK = "5";

/** User and system time since its start. */
export async function cpuMicroseconds(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8");
  // The second field is the name in parentheses, and may hold anything; what follows starts with the third.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * MICROSECONDS_PER_TICK;
}

export function resetPeakMemory(pid: number): Promise<void> {
  return writeFile(`/proc/${pid}/clear_refs`, RESET_PEAK);
}

/** The largest resident set since the reset, in bytes. */
export async function peakMemoryBytes(pid: number): Promise<number> {
  const kibibytes = /^VmHWM:\s+(\d+) kB/m.exec(await readFile(`/proc/${pid}/status`, "utf8"))?.[1];
  if (kibibytes === undefined) throw new Error(`/proc/${pid}/status has no VmHWM`);
  return Number(kibibytes) * 1024;
}
