/** A host with a disk and a state directory, on which either program may run, as roles go. */
import { access } from "node:fs/promises";
import type { NodeStatus } from "../../src/status.js";
import { isSynchronised, NodeProcess } from "./node-process.js";
import { waitFor } from "./wait-for.js";
import type { Workspace } from "./workspace.js";

export class Host {
  readonly name: string;
  readonly sizeBytes: number;
  readonly #workspace: Workspace;
  #node: NodeProcess | null = null;

  constructor(workspace: Workspace, name: string, sizeBytes: number) {
    this.#workspace = workspace;
    this.name = name;
    this.sizeBytes = sizeBytes;
  }

  get node(): NodeProcess {
    if (this.#node === null) throw new Error(`nothing runs on host ${this.name}`);
    return this.#node;
  }

  get file(): string {
    return this.#workspace.path(`${this.name}.img`);
  }

  /** Where a guest of this host finds its disk, whichever program runs. */
  get uri(): string {
    return `nbd+unix:///disk0?socket=${this.#workspace.path(`${this.name}.sock`)}`;
  }

  path(file: string): string {
    return this.#workspace.path(`${this.name}.state/${file}`);
  }

  async hasFile(file: string): Promise<boolean> {
    return access(this.path(file)).then(
      () => true,
      () => false,
    );
  }

  async startPrimary(replica: Host | null, ...options: readonly string[]): Promise<void> {
    const to = replica === null ? [] : await replica.replicaOptions();
    await this.#start("primary", ["--listen", this.#socket, ...to, ...options]);
  }

  async startSecondary(...options: readonly string[]): Promise<void> {
    const listen = ["--listen", "127.0.0.1:0", "--qmp", "tcp:127.0.0.1:0", "--view", this.#socket];
    await this.#start("secondary", [...listen, ...options]);
  }

  /** Of the other node's command line, or of `attach`: where this one is. */
  async replicaOptions(): Promise<string[]> {
    const replica = `nbd://${await this.node.tcpAddress("replication")}`;
    return ["--replica", replica, "--replica-qmp", `tcp:${await this.node.tcpAddress("qmp")}`];
  }

  /** Takes a replica, and waits until it has everything. */
  async attach(replica: Host): Promise<NodeStatus> {
    await this.node.succeed("attach", ...(await replica.replicaOptions()));
    return this.synchronised();
  }

  synchronised(): Promise<NodeStatus> {
    return this.node.waitForStatus("replicating, with a checkpoint", isSynchronised);
  }

  /** Its view becomes the disk. */
  async failOver(to: "checkpoint" | "latest"): Promise<void> {
    await this.node.succeed("failover", "--yes", "--to", to);
    await this.node.waitForStatus("failover done", ({ stage }) => stage === "done");
  }

  /** Hands over, and ends. */
  async switchOver(): Promise<string> {
    const said = await this.node.succeed("switch-over");
    await this.ended();
    return said;
  }

  async ended(): Promise<number | null> {
    return (await this.node.process.ended()).code;
  }

  async kill(): Promise<void> {
    await this.node.process.kill();
  }

  /** Waits until something is said in the log. */
  logged(what: string, pattern: RegExp): Promise<unknown> {
    return waitFor(
      `${this.name}: ${what}`,
      () => this.node.log.some((line) => pattern.test(JSON.stringify(line))),
      (isSaid) => isSaid,
    );
  }

  get #socket(): string {
    return `unix:${this.#workspace.path(`${this.name}.sock`)}`;
  }

  async #start(role: "primary" | "secondary", options: readonly string[]): Promise<void> {
    const disk = ["--disk", `disk0=${this.file}`, "--size", String(this.sizeBytes)];
    const state = this.#workspace.path(`${this.name}.state`);
    this.#node = await NodeProcess.start(this.#workspace, role, [...disk, ...options], state);
  }
}
