/** A node as its operator has it: bin/repl-primary or bin/repl-secondary in a process, and the verbs that talk to it. */
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { formatAddress, parseAddress } from "../../src/net/address.js";
import { QmpClient } from "../../src/qmp/client.js";
import type { NodeRole, NodeStatus } from "../../src/status.js";
import { type Outcome, run, type TestProcess } from "./process.js";
import { waitFor } from "./wait-for.js";
import type { Workspace } from "./workspace.js";

/** Seen from dist/test/tools/. */
const BIN = fileURLToPath(new URL("../../../bin/", import.meta.url));

export interface LogLine {
  readonly level: number;
  readonly msg: string;
  readonly [member: string]: unknown;
}

export class NodeProcess {
  readonly role: NodeRole;
  readonly stateDirectory: string;
  readonly process: TestProcess;

  private constructor(role: NodeRole, stateDirectory: string, process: TestProcess) {
    this.role = role;
    this.stateDirectory = stateDirectory;
    this.process = process;
  }

  /**
   * Starts a node and waits until it is ready.
   * @param options as on the command line, without --state-dir
   * @param nodeOptions of Node.js itself
   * @param launcher a program with its arguments that runs another: taskset, chrt
   * @throws with what it said if it ends instead
   */
  static async start(
    workspace: Workspace,
    role: NodeRole,
    options: readonly string[],
    stateDirectory: string = workspace.path(role),
    nodeOptions: readonly string[] = [],
    launcher: readonly string[] = [],
  ): Promise<NodeProcess> {
    const args = [...nodeOptions, programOf(role), ...options, "--state-dir", stateDirectory];
    const [first, ...rest] = [...launcher, globalThis.process.execPath];
    const process = await workspace.start(first, [...rest, ...args]);
    const node = new NodeProcess(role, stateDirectory, process);
    await waitFor(
      `${role} to be ready`,
      () => process.stderr.includes('"msg":"ready"') || !process.isRunning,
      (isSettled) => isSettled,
    );
    if (!process.isRunning) throw new Error(`repl-${role} did not start: ${(await process.ended()).stderr}`);
    return node;
  }

  /** Its log so far. */
  get log(): LogLine[] {
    return this.process.stderr
      .split("\n")
      .filter((line) => line.startsWith("{") && line.endsWith("}"))
      .map((line) => JSON.parse(line) as LogLine);
  }

  /** Resolves with the first line of its log that satisfies: the log goes another way than QMP, and may come later. */
  async logged(what: string, satisfies: (line: LogLine) => boolean): Promise<LogLine> {
    const found = await waitFor(
      `the log of ${this.role}: ${what}`,
      () => this.log.find(satisfies) ?? null,
      (line) => line !== null,
    );
    if (found === null) throw new Error(`no line of the log satisfies: ${what}`);
    return found;
  }

  get qmpPath(): string {
    return join(this.stateDirectory, "qmp.sock");
  }

  /** Runs a verb of the command line against it. */
  verb(...args: readonly string[]): Promise<Outcome> {
    return runNode(this.role, [...args, "--state-dir", this.stateDirectory]);
  }

  /** Runs a verb that has to succeed; returns what it prints. */
  async succeed(...args: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await this.verb(...args);
    if (code !== 0)
      throw new Error(`repl-${this.role} ${args.join(" ")} ended with ${String(code)}: ${stderr}`);
    return stdout;
  }

  /** Does `work` with a QMP connection, and closes it. */
  async withQmp<T>(work: (client: QmpClient) => Promise<T>): Promise<T> {
    const client = await QmpClient.connect({ kind: "unix", path: this.qmpPath });
    try {
      return await work(client);
    } finally {
      await client.close();
    }
  }

  status(): Promise<NodeStatus> {
    return this.withQmp(async (client) => (await client.execute("x-repl-status")) as NodeStatus);
  }

  /** Asks for the status over one connection until it satisfies. */
  waitForStatus(
    what: string,
    satisfies: (status: NodeStatus) => boolean,
    limitMs?: number,
  ): Promise<NodeStatus> {
    const ask = (client: QmpClient) => async (): Promise<NodeStatus> =>
      (await client.execute("x-repl-status")) as NodeStatus;
    return this.withQmp((client) => waitFor(`${this.role}: ${what}`, ask(client), satisfies, limitMs));
  }

  /** HOST:PORT of its TCP listeners for a purpose. */
  async tcpAddress(purpose: "replication" | "qmp" | "guest" | "view"): Promise<string> {
    const { listeners } = await this.status();
    const found = listeners.find(
      (listener) => listener.purpose === purpose && parseAddress(listener.address).kind === "tcp",
    );
    if (found === undefined) throw new Error(`${this.role} has no TCP listener for ${purpose}`);
    return formatAddress(parseAddress(found.address));
  }
}

/** Whether the replica of this primary has everything, and a checkpoint of it: one from before the link was up is none. */
export function isSynchronised({ primary, lastCheckpoint, checkpointRefusal }: NodeStatus): boolean {
  if (primary?.link.state !== "replicating" || checkpointRefusal !== null) return false;
  return lastCheckpoint !== null && lastCheckpoint.at >= primary.link.since;
}

/** Runs one of the programs to its end: a verb, or a node that is not expected to start. */
export function runNode(role: NodeRole, args: readonly string[]): Promise<Outcome> {
  return run(process.execPath, [programOf(role), ...args]);
}

export function programOf(role: NodeRole): string {
  return join(BIN, `repl-${role}`);
}
