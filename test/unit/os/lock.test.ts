import { expect } from "chai";
import type { ChildProcess } from "node:child_process";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";

import { StateError } from "../../../src/errors.js";
import { lockStateDirectory } from "../../../src/os/lock.js";

const LOCK_MODULE = new URL("../../../src/os/lock.js", import.meta.url).href;

/** Takes the lock, says "holds it" or the error's code, and keeps it until it is killed. */
const HOLDER = `
  const { lockStateDirectory } = await import(process.argv[1]);
  try {
    await lockStateDirectory(process.argv[2]);
    process.stdout.write("holds it");
    setInterval(() => {}, 1000);
  } catch (error) {
    process.stdout.write(error.code);
  }`;

interface Holder {
  readonly child: ChildProcess;
  readonly said: string;
}

async function start(directory: string, environment: NodeJS.ProcessEnv = {}): Promise<Holder> {
  const child = spawn(process.execPath, ["--input-type=module", "-e", HOLDER, LOCK_MODULE, directory], {
    env: { ...process.env, ...environment },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const [said] = (await once(child.stdout, "data")) as [Buffer];
  return { child, said: said.toString() };
}

async function kill({ child }: Holder): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, "exit");
  child.kill("SIGKILL");
  await exited;
}

async function refusal(directory: string): Promise<StateError> {
  try {
    await lockStateDirectory(directory);
  } catch (error) {
    expect(error).to.be.instanceOf(StateError);
    return error as StateError;
  }
  throw new Error("the lock was given");
}

describe("lockStateDirectory", () => {
  let directory: string;

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "lock-"));
  });

  afterEach(async () => {
    await rm(directory, { recursive: true });
  });

  it("writes the pid for people, and takes it out at release", async () => {
    const lock = await lockStateDirectory(directory);
    expect(await readFile(join(directory, "lock"), "ascii")).to.equal(`${process.pid}\n`);
    await lock.release();
    expect(await readFile(join(directory, "lock"), "ascii")).to.equal("");
  });

  it("refuses a second start and names the directory and the process", async () => {
    const holder = await start(directory);
    try {
      expect(holder.said).to.equal("holds it");
      const { code, message } = await refusal(directory);
      expect(code).to.equal("locked");
      expect(message)
        .to.include(directory)
        .and.include(`process ${String(holder.child.pid)}:`);
    } finally {
      await kill(holder);
    }
  });

  it("is free again when the holder was killed", async () => {
    await kill(await start(directory));
    const lock = await lockStateDirectory(directory);
    await lock.release();
  });

  it("refuses the process that holds it already, until it has released it", async () => {
    const lock = await lockStateDirectory(directory);
    expect((await refusal(directory)).code).to.equal("locked");
    await lock.release();
    await (await lockStateDirectory(directory)).release();
  });

  it("holds between processes with and without koffi, both ways", async () => {
    const without = { REPL_NO_KOFFI: "1" };
    const holder = await start(directory, without);
    try {
      expect(holder.said).to.equal("holds it");
      expect((await refusal(directory)).code).to.equal("locked");
    } finally {
      await kill(holder);
    }
    const lock = await lockStateDirectory(directory);
    expect((await start(directory, without)).said).to.equal("locked");
    await lock.release();
  });

  it("refuses to start unlocked where neither koffi nor flock(1) is there", async () => {
    const holder = await start(directory, { REPL_NO_KOFFI: "1", PATH: directory });
    await kill(holder);
    expect(holder.said).to.equal("lock-unavailable");
  });
});
