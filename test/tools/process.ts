/** Processes of a test: output collected, awaited within a limit, ended by their own pid and no other way. */
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import type { Readable } from "node:stream";

/** What a process left behind. `code` is null if a signal ended it. */
export interface Outcome {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface StartOptions {
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
}

/** A process that does not end on SIGTERM is killed after this. */
const TERMINATION_GRACE_MS = 10_000;
/** A tool that takes longer hangs. */
const RUN_LIMIT_MS = 90_000;

export class TestProcess {
  /** The command line, for messages. */
  readonly name: string;
  readonly #child: ChildProcessByStdio<null, Readable, Readable>;
  readonly #closed: Promise<unknown>;
  #stdout = "";
  #stderr = "";

  private constructor(name: string, child: ChildProcessByStdio<null, Readable, Readable>) {
    this.name = name;
    this.#child = child;
    this.#closed = once(child, "close");
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      this.#stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr += text;
    });
  }

  /** @throws if there is no such program */
  static async start(
    program: string,
    args: readonly string[],
    options: StartOptions = {},
  ): Promise<TestProcess> {
    const child = spawn(program, args, {
      ...(options.cwd !== undefined && { cwd: options.cwd }),
      env: { ...process.env, ...options.env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    const started = new TestProcess([program, ...args].join(" "), child);
    await once(child, "spawn");
    return started;
  }

  get pid(): number {
    const { pid } = this.#child;
    if (pid === undefined) throw new Error(`${this.name} was not started`);
    return pid;
  }

  get isRunning(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  get stdout(): string {
    return this.#stdout;
  }

  get stderr(): string {
    return this.#stderr;
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Resolves when the process has ended, however; kills it if that takes too long. */
  async ended(limitMs: number = RUN_LIMIT_MS): Promise<Outcome> {
    const timer = setTimeout(() => {
      this.#stderr += `\n(killed by the test: still running after ${limitMs} ms)\n`;
      this.signal("SIGKILL");
    }, limitMs);
    await this.#closed;
    clearTimeout(timer);
    const { exitCode: code, signalCode: signal } = this.#child;
    return { code, signal, stdout: this.#stdout, stderr: this.#stderr };
  }

  /** Ends the process with SIGTERM, or with SIGKILL if it doesn't listen. */
  terminate(): Promise<Outcome> {
    this.signal("SIGTERM");
    return this.ended(TERMINATION_GRACE_MS);
  }

  /** Ends the process at once, as a crash does. */
  kill(): Promise<Outcome> {
    this.signal("SIGKILL");
    return this.ended();
  }
}

/** Runs a program to its end. */
export async function run(
  program: string,
  args: readonly string[],
  options: StartOptions & { readonly limitMs?: number } = {},
): Promise<Outcome> {
  const process = await TestProcess.start(program, args, options);
  return process.ended(options.limitMs);
}

/** Runs a program that has to succeed; returns its standard output. */
export async function succeed(
  program: string,
  args: readonly string[],
  options: StartOptions = {},
): Promise<string> {
  const { code, signal, stdout, stderr } = await run(program, args, options);
  if (code === 0) return stdout;
  throw new Error(
    `${program} ${args.join(" ")} ended with ${code ?? signal ?? "?"}:\n${stderr.trim()}\n${stdout.trim()}`,
  );
}
