/** A pair of nodes on loopback TCP, with disks of their own, as two hosts would run it. */
import type { NodeStatus } from "../../src/status.js";
import { isSynchronised, NodeProcess } from "./node-process.js";
import type { Workspace } from "./workspace.js";

/** HOST:PORT of what a secondary serves to its primary. */
export interface SecondaryAddresses {
  readonly replication: string;
  readonly qmp: string;
}

export interface PairOptions {
  /** Names; one disk, disk0, if absent. */
  readonly disks?: readonly string[];
  readonly sizeBytes?: number;
  /** Further options on the command lines. */
  readonly primary?: readonly string[];
  readonly secondary?: readonly string[];
  /** Of the link; plain if absent. */
  readonly scheme?: "nbd" | "nbds";
  /** Where the primary is told that the secondary is: a proxy may stand between. */
  readonly route?: (addresses: SecondaryAddresses) => Promise<SecondaryAddresses>;
  /** What a node uses for a disk; its own file if absent. */
  readonly diskPath?: (role: "primary" | "secondary", name: string) => string;
  /** Of Node.js itself, for both nodes. */
  readonly nodeOptions?: readonly string[];
  /** How long the initial copy may take, if longer than other things. */
  readonly copyLimitMs?: number;
}

export const MEBIBYTE = 1024 * 1024;
const DEFAULT_SIZE_BYTES = 64 * MEBIBYTE;

export class Pair {
  readonly sizeBytes: number;
  readonly #workspace: Workspace;
  readonly #options: PairOptions;
  readonly #disks: readonly string[];
  #primary: NodeProcess | null = null;
  #secondary: NodeProcess | null = null;
  #addresses: SecondaryAddresses = { replication: "127.0.0.1:0", qmp: "127.0.0.1:0" };
  #route: SecondaryAddresses = this.#addresses;

  constructor(workspace: Workspace, options: PairOptions) {
    this.#workspace = workspace;
    this.#options = options;
    this.#disks = options.disks ?? ["disk0"];
    this.sizeBytes = options.sizeBytes ?? DEFAULT_SIZE_BYTES;
  }

  get primary(): NodeProcess {
    if (this.#primary === null) throw new Error("the primary was not started");
    return this.#primary;
  }

  get secondary(): NodeProcess {
    if (this.#secondary === null) throw new Error("the secondary was not started");
    return this.#secondary;
  }

  /** Of the secondary itself, whatever stands between. */
  get addresses(): SecondaryAddresses {
    return this.#addresses;
  }

  /** The guest's disk. */
  primaryUri(disk = "disk0"): string {
    return `nbd+unix:///${disk}?socket=${this.#workspace.path("guest.sock")}`;
  }

  /** The secondary's view of it. */
  viewUri(disk = "disk0"): string {
    return `nbd+unix:///${disk}?socket=${this.#workspace.path("secondary/view.sock")}`;
  }

  primaryFile(disk = "disk0"): string {
    return this.#workspace.path(`primary-${disk}.img`);
  }

  secondaryFile(disk = "disk0"): string {
    return this.#workspace.path(`secondary-${disk}.img`);
  }

  /** Starts or restarts the secondary, at the same addresses as the last time. */
  /** @param options for this start only */
  async startSecondary(...options: readonly string[]): Promise<NodeProcess> {
    const { replication, qmp } = this.#addresses;
    this.#secondary = await this.#start("secondary", [
      ...["--listen", replication, "--qmp", `tcp:${qmp}`],
      ...(this.#options.secondary ?? []),
      ...options,
    ]);
    const isFirst = replication.endsWith(":0");
    this.#addresses = {
      replication: await this.#secondary.tcpAddress("replication"),
      qmp: await this.#secondary.tcpAddress("qmp"),
    };
    if (isFirst) this.#route = (await this.#options.route?.(this.#addresses)) ?? this.#addresses;
    return this.#secondary;
  }

  async startPrimary(): Promise<NodeProcess> {
    this.#primary = await this.#start("primary", [
      ...["--listen", `unix:${this.#workspace.path("guest.sock")}`],
      ...[
        "--replica",
        `${this.#options.scheme ?? "nbd"}://${this.#route.replication}`,
        "--replica-qmp",
        `tcp:${this.#route.qmp}`,
      ],
      ...(this.#options.primary ?? []),
    ]);
    return this.#primary;
  }

  /** Waits until the replica has everything and the checkpoint that makes it one to go back to is taken. */
  synchronised(): Promise<NodeStatus> {
    return this.primary.waitForStatus(
      "replicating, with a checkpoint",
      isSynchronised,
      this.#options.copyLimitMs,
    );
  }

  /** Takes a checkpoint; returns the epoch that begins. */
  async checkpoint(): Promise<number> {
    const answer = await this.primary.withQmp((client) => client.execute("x-repl-checkpoint"));
    return (answer as { epoch: number }).epoch;
  }

  /** Fails over by the command line and waits until the view is the disk. */
  async failOver(...options: readonly string[]): Promise<void> {
    await this.secondary.succeed("failover", "--yes", ...options);
    await this.secondary.waitForStatus("failover done", ({ stage }) => stage === "done");
  }

  #start(role: "primary" | "secondary", options: readonly string[]): Promise<NodeProcess> {
    const all = [...this.#diskOptions(role), ...options];
    return NodeProcess.start(this.#workspace, role, all, undefined, this.#options.nodeOptions);
  }

  #diskOptions(role: "primary" | "secondary"): string[] {
    const own = (_role: string, disk: string): string =>
      role === "primary" ? this.primaryFile(disk) : this.secondaryFile(disk);
    const path = this.#options.diskPath ?? own;
    const disks = this.#disks.flatMap((disk) => ["--disk", `${disk}=${path(role, disk)}`]);
    return this.#options.diskPath === undefined ? [...disks, "--size", String(this.sizeBytes)] : disks;
  }
}

/** Starts both nodes and waits until they replicate. */
export async function startPair(workspace: Workspace, options: PairOptions = {}): Promise<Pair> {
  const pair = new Pair(workspace, options);
  await pair.startSecondary();
  await pair.startPrimary();
  await pair.synchronised();
  return pair;
}
