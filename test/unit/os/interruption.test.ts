/** A program that is told to end early, or that nobody listens to, cleans up behind itself. */
import { once } from "node:events";
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";

import { expect } from "chai";

const MODULE = new URL("../../../src/os/interruption.js", import.meta.url).href;

/** Prints and complains all the time; what it has to clean up is a file. */
const PROGRAM = `
  import { rm } from "node:fs/promises";
  const { onInterruption } = await import(process.argv[1]);
  onInterruption(async () => {
    process.stdout.write("cleaning up\\n");
    await rm(process.argv[2]);
    if (process.argv[3] === "fails") throw new Error("there is more");
  });
  const stream = process[process.argv[4]];
  setInterval(() => stream.write("a line\\n"), 1);
`;

type Program = ChildProcessByStdio<null, Readable, Readable>;

describe("interruption", () => {
  let directory: string;
  let file: string;
  let stderr: string;

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "repl-"));
    file = join(directory, "started");
    stderr = "";
    await writeFile(file, "");
  });

  afterEach(() => rm(directory, { recursive: true }));

  /** Runs the program until it has printed to one of its outputs. */
  async function start(prints: "stdout" | "stderr", outcome: "succeeds" | "fails"): Promise<Program> {
    const args = ["--input-type=module", "-e", PROGRAM, MODULE, file, outcome, prints];
    const program = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
    program.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
    await once(program[prints], "data");
    return program;
  }

  for (const name of ["stdout", "stderr"] as const) {
    it(`cleans up and exits as by SIGPIPE when nobody reads its ${name} any more`, async () => {
      const program = await start(name, "succeeds");
      program[name].destroy();
      const [code] = (await once(program, "exit")) as [number | null];
      expect(code).to.equal(141);
      expect(existsSync(file)).to.equal(false);
    });
  }

  for (const [signal, expected] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
  ] as const) {
    it(`cleans up and exits with ${expected} on ${signal}`, async () => {
      const program = await start("stdout", "succeeds");
      program.kill(signal);
      const [code] = (await once(program, "exit")) as [number | null];
      expect(code).to.equal(expected);
      expect(existsSync(file)).to.equal(false);
    });
  }

  it("says why it could not clean up, and exits all the same", async () => {
    const program = await start("stdout", "fails");
    program.kill("SIGTERM");
    const [code] = (await once(program, "close")) as [number | null];
    expect(code).to.equal(143);
    expect(stderr).to.equal("not cleaned up: there is more\n");
  });
});
