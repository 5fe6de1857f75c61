/**
 * One process for each state directory.
 *
 * The lock is flock(2) on the file `lock`: the kernel lifts it when the process dies, however it dies, so a
 * file left behind means nothing. The pid in it is for people. Nobody removes the file: a second process could
 * be about to lock the removed one.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import type { FileHandle } from "node:fs/promises";
import { constants, open } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";

import { StateError, describeError, isErrno } from "../errors.js";
import { libc } from "./libc.js";

export interface StateDirectoryLock {
  release(): Promise<void>;
}

/** Exit code of flock(1) when the lock is taken: its default for --nonblock. */
const FLOCK_PROGRAM_LOCKED = 1;

/** More than the decimal digits of a pid and a newline. */
const PID_TEXT_MAXIMUM_BYTES = 32;

/**
 * Locks the state directory, which must exist, until release() or the end of the process.
 * @throws StateError "locked" while another process, or this one, holds it
 */
export async function lockStateDirectory(directory: string): Promise<StateDirectoryLock> {
  const file = await open(join(directory, "lock"), constants.O_RDWR | constants.O_CREAT, 0o600);
  try {
    if (!(await tryLock(file.fd))) throw new StateError("locked", await lockedMessage(directory, file));
    await writePid(file);
  } catch (error) {
    await file.close();
    throw error;
  }
  return {
    async release(): Promise<void> {
      await file.truncate(0);
      await file.close();
    },
  };
}

/** For people alone: a file system that is full is no reason not to start. */
async function writePid(file: FileHandle): Promise<void> {
  await file.truncate(0);
  try {
    await file.write(`${process.pid}\n`, 0);
  } catch (error) {
    if (!isErrno(error, "ENOSPC")) throw error;
  }
}

async function lockedMessage(directory: string, file: FileHandle): Promise<string> {
  const { buffer, bytesRead } = await file.read(
    Buffer.alloc(PID_TEXT_MAXIMUM_BYTES),
    0,
    PID_TEXT_MAXIMUM_BYTES,
    0,
  );
  const text = buffer.toString("ascii", 0, bytesRead).trim();
  const owner = /^\d+$/.test(text) ? `process ${text}` : "another process";
  return `state directory ${directory} is in use by ${owner}: stop that first, or give another --state-dir`;
}

async function tryLock(fd: number): Promise<boolean> {
  const system = libc();
  return system === null ? tryLockByProgram(fd) : system.tryFlock(fd);
}

/**
 * flock(1) locks the file it inherits, which is the very open file we hold: the lock stays when it exits.
 * Where that program is missing too, we refuse to start rather than run unlocked.
 */
async function tryLockByProgram(fd: number): Promise<boolean> {
  const program = spawn("flock", ["-x", "-n", "3"], { stdio: ["ignore", "ignore", "ignore", fd] });
  let exitCode: unknown;
  try {
    [exitCode] = (await once(program, "exit")) as [unknown];
  } catch (error) {
    const reason = `neither koffi nor flock(1) can be used to lock it: ${describeError(error)}`;
    throw new StateError("lock-unavailable", `the state directory can't be locked: ${reason}`, {
      cause: error,
    });
  }
  if (exitCode === 0) return true;
  if (exitCode === FLOCK_PROGRAM_LOCKED) return false;
  throw new StateError(
    "lock-unavailable",
    `the state directory can't be locked: flock(1) exited with ${String(exitCode)}`,
  );
}
