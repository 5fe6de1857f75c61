/** What is measured: a server of a disk, replicated or not, that fio(1) can be pointed at. */
import type { Workspace } from "../../test/tools/workspace.js";

/** In the order of the tables: ours first, what it is compared with after. */
export const SYSTEM_NAMES = [
  "ours",
  "ours-tls",
  "ours-async",
  "ours-sync",
  "ours-unsafe",
  "qemu-unix",
  "qemu-tcp",
  "qemu-nbd",
  "nbdkit",
] as const;
export type SystemName = (typeof SYSTEM_NAMES)[number];

/** The disks that a system is started with. */
export interface Shape {
  readonly disks: number;
  readonly sizeBytes: number;
  /** Bytes at the beginning of each disk, on both nodes, that hold data; the rest are holes. */
  readonly dataBytes: number;
  /** Where our nodes leave CPU profiles when they end. */
  readonly profileDirectory?: string;
}

/** A process whose CPU time and memory are counted. */
export interface Server {
  readonly role: "primary" | "secondary" | "server";
  readonly pid: number;
}

export interface System {
  readonly name: SystemName;
  /** Its directory and processes; whoever started the system closes it. */
  readonly workspace: Workspace;
  readonly servers: readonly Server[];
  uri(disk: number): string;
  /** Whether every process of it still runs. */
  isAlive(): boolean;
  /** Null if it is not replicated. */
  readonly checkpoint: (() => Promise<unknown>) | null;
}
