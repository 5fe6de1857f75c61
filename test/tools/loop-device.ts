/** Block devices for tests: files behind loop devices, where this user may make them. */
import { execFile, execFileSync } from "node:child_process";
import { promisify } from "node:util";

const run = promisify(execFile);

/** Whether this user may make loop devices here; in a container, or without root, rather not. */
export function canMakeLoopDevices(): boolean {
  try {
    execFileSync("losetup", ["--find"], { stdio: "ignore" });
    return process.getuid?.() === 0;
  } catch {
    // No program, no loop driver, or no right: all the same to the caller.
    return false;
  }
}

/** Puts a file behind a loop device and returns its path. */
export async function attachLoopDevice(path: string, sectorBytes: number): Promise<string> {
  const { stdout } = await run("losetup", ["--find", "--show", "--sector-size", String(sectorBytes), path]);
  return stdout.trim();
}

export async function detachLoopDevice(device: string): Promise<void> {
  await run("losetup", ["--detach", device]);
}
