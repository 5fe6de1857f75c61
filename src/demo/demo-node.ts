/** A node that the demo runs as a process of its own, the way an operator would start it. */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, mkdirSync, openSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { type Address, unixAddress } from "../net/address.js";

/** Seen from dist/src/demo/. */
const BIN = fileURLToPath(new URL("../../../bin/", import.meta.url));

const POLL_MS = 50;

export class DemoNode {
  readonly stateDirectory: string;
  readonly commandLine: string;
  readonly logFile: string;
  /** Resolves with the exit code; null if a signal ended it. */
  readonly exited: Promise<number | null>;
  readonly #child: ChildProcess;
  #hasExited = false;

  constructor(program: string, stateDirectory: string, args: readonly string[]) {
    this.stateDirectory = stateDirectory;
    this.commandLine = [program, ...args].join(" ");
    this.logFile = `${stateDirectory}.log`;
    mkdirSync(stateDirectory, { recursive: true });
    const log = openSync(this.logFile, "w");
    this.#child = spawn(
      process.execPath,
      [join(BIN, program), ...args, "--state-dir", stateDirectory, "--log-format", "json"],
      {
        stdio: ["ignore", "ignore", log],
        detached: true,
      },
    );
    closeSync(log);
    this.exited = new Promise((resolve) => {
      this.#child.once("exit", (code) => {
        this.#hasExited = true;
        resolve(code);
      });
    });
  }

  get qmp(): Address {
    return unixAddress(join(this.stateDirectory, "qmp.sock"));
  }

  /** @throws Error if the node does not say that it is ready in time */
  async ready(patienceMs: number): Promise<void> {
    const deadline = Date.now() + patienceMs;
    while (Date.now() < deadline && !this.#hasExited) {
      if ((await readFile(this.logFile, "utf8")).includes('"msg":"ready"')) return;
      await sleep(POLL_MS);
    }
    throw new Error(`${this.commandLine} does not start: ${(await readFile(this.logFile, "utf8")).trim()}`);
  }

  /** kill -9, as a power cut is to the process. */
  async kill(): Promise<void> {
    if (this.#hasExited) return;
    this.#child.kill("SIGKILL");
    await this.exited;
  }

  /** Lets it live on after this process. */
  release(): void {
    this.#child.unref();
  }
}

/** A TCP port of loopback that nobody uses at the moment. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer().once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => {
        if (address === null || typeof address === "string") reject(new Error("no port"));
        else resolve(address.port);
      });
    });
  });
}
