/**
 * What a test with processes leaves behind, and how it goes away: a directory, and processes.
 *
 * Invariant: after each test, passed or not, or interrupted, every process it started has ended and its directory is gone; of a failed
 * one the output of all of them is shown first.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { type StartOptions, TestProcess } from "./process.js";

/** The end of a long log tells most, and the beginning of what a tool prints. */
const SHOWN_LOG_CHARACTERS = 8000;
const SHOWN_OUTPUT_CHARACTERS = 500;

export class Workspace {
  #directory = "";
  #processes: TestProcess[] = [];
  readonly #starting = new Set<Promise<TestProcess>>();
  #isClosed = false;
  #closers: (() => Promise<unknown>)[] = [];
  #notes: string[] = [];

  get directory(): string {
    return this.#directory;
  }

  path(name: string): string {
    return join(this.#directory, name);
  }

  /** @throws Error once the workspace is closed, so that whoever is interrupted starts nothing more */
  async start(program: string, args: readonly string[], options: StartOptions = {}): Promise<TestProcess> {
    if (this.#isClosed) throw new Error(`${program} is not started: the workspace is closed`);
    const starting = TestProcess.start(program, args, { cwd: this.#directory, ...options });
    this.#starting.add(starting);
    try {
      const started = await starting;
      this.#processes.push(started);
      return started;
    } finally {
      this.#starting.delete(starting);
    }
  }

  /** To be closed at the end of the test, before the processes are ended. */
  onEnd(close: () => Promise<unknown>): void {
    this.#closers.push(close);
  }

  /** To be shown with the processes' output if the test fails. */
  note(line: string): void {
    this.#notes.push(line);
  }

  async open(): Promise<void> {
    this.#directory = await mkdtemp(join(tmpdir(), "repl-"));
    this.#isClosed = false;
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    await Promise.allSettled(this.#starting);
    for (const close of this.#closers.reverse()) await close();
    await Promise.all(this.#processes.filter(({ isRunning }) => isRunning).map((each) => each.terminate()));
    this.#closers = [];
    this.#notes = [];
    this.#processes = [];
    await rm(this.#directory, { recursive: true });
  }

  /** What all processes have said. */
  report(): string {
    const outputs = this.#processes.map(({ name, pid, stdout, stderr }) => {
      const said = stdout.slice(0, SHOWN_OUTPUT_CHARACTERS) + stderr.slice(-SHOWN_LOG_CHARACTERS);
      return `--- ${pid}: ${name}\n${said.trim()}`;
    });
    return [...outputs, ...this.#notes].join("\n");
  }
}

/** A workspace of its own for each test of the suite. */
export function useWorkspace(): Workspace {
  const workspace = new Workspace();
  beforeEach(() => workspace.open());
  afterEach(async function () {
    if (this.currentTest?.state === "failed") process.stderr.write(`${workspace.report()}\n`);
    await workspace.close();
  });
  return workspace;
}
