/** A whole guest as a process: QEMU boots the image, init.sh does a job on a disk and says on the console how it fares. */
import { createHash } from "node:crypto";

import { QmpClient } from "../../../src/qmp/client.js";
import { serveOn } from "../socket-server.js";
import type { TestProcess } from "../process.js";
import { waitFor } from "../wait-for.js";
import { Workspace } from "../workspace.js";
import { workingAccelerator } from "./accelerator.js";
import type { ArchiveEntry } from "./cpio.js";
import type { GuestDisk } from "./guest-disk.js";
import { buildGuestImage, type GuestImage } from "./guest-image.js";

const MEMORY_MEBIBYTES = "192";
/** A guest that takes longer hangs; only for messages better than mocha's. */
const LIMIT_MS = 60_000;

/** What all guests of a suite share. */
interface Machine {
  readonly image: GuestImage;
  readonly accelerator: readonly string[];
}

/** Guests of a suite, which share what they boot, `more` files of it included; each ends with its test. */
export function useGuests(
  workspace: Workspace,
  more: () => Promise<readonly ArchiveEntry[]> = () => Promise.resolve([]),
): { start: (options: GuestOptions) => Promise<Guest> } {
  const shared = new Workspace();
  let machine: Machine;
  before(async () => {
    await shared.open();
    const image = await buildGuestImage(shared.path("initramfs"), await more());
    machine = { image, accelerator: await workingAccelerator(image) };
  });
  after(() => shared.close());
  return { start: (options) => Guest.start(workspace, machine, options) };
}

/** A record that a guest wrote, as it reads it back. */
export interface GuestRecord {
  readonly number: number;
  /** The disk's serial number when it was written. */
  readonly host: string;
}

export interface GuestOptions {
  readonly name: string;
  /** As init.sh knows them. */
  readonly job: "append" | "recover";
  readonly disk: GuestDisk;
  /** The file with another guest's state, to go on from instead of booting; it then waits for goOn(). */
  readonly incoming?: string;
}

export class Guest {
  readonly process: TestProcess;
  readonly qmp: QmpClient;

  private constructor(process: TestProcess, qmp: QmpClient) {
    this.process = process;
    this.qmp = qmp;
  }

  static async start(
    workspace: Workspace,
    { image, accelerator }: Machine,
    { name, job, disk, incoming }: GuestOptions,
  ): Promise<Guest> {
    const socket = workspace.path(`${name}.qmp`);
    const process = await serveOn(workspace, socket, "qemu-system-x86_64", [
      ...[...accelerator, "-m", MEMORY_MEBIBYTES, "-name", name],
      ...["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"],
      ...["-kernel", image.kernel, "-initrd", image.initramfs],
      ...["-append", `console=ttyS0 loglevel=0 panic=-1 ${disk.parameters} job=${job}`],
      ...["-qmp", `unix:${socket},server=on,wait=off`, ...disk.devices],
      ...(incoming === undefined ? [] : ["-S", "-incoming", `exec:cat ${incoming}`]),
    ]);
    const qmp = await QmpClient.connect({ kind: "unix", path: socket });
    workspace.onEnd(() => qmp.close());
    return new Guest(process, qmp);
  }

  /** What stands behind "@WORD" in lines of the console, so far. */
  said(word: string): string[] {
    const lines = this.process.stdout.split(/\r*\n/).slice(0, -1);
    return lines.filter((line) => line.startsWith(`@${word}`)).map((line) => line.slice(word.length + 2));
  }

  /** The numbers of all records whose fsync has succeeded. */
  get acknowledged(): number[] {
    return this.said("acknowledged").map((text) => Number(text.split(" ")[0]));
  }

  /** The last of them; 0 if there is none. */
  get lastAcknowledged(): number {
    return this.acknowledged.at(-1) ?? 0;
  }

  /** Waits until so many more records than now are acknowledged. @throws if the guest fails or ends before */
  async goesOn(records: number): Promise<void> {
    const wanted = this.acknowledged.length + records;
    await waitFor(
      `${records} records`,
      () => this.acknowledged.length >= wanted || !this.process.isRunning,
      (isSettled) => isSettled,
      LIMIT_MS,
    );
    if (this.acknowledged.length < wanted)
      throw new Error(`the guest did not go on:\n${this.process.stdout}`);
  }

  /** Waits until the guest has given up and powered off; what it says about it. */
  async failure(): Promise<string> {
    await this.process.ended(LIMIT_MS);
    return this.said("failed").join("\n");
  }

  /**
   * Waits until a guest that recovers has powered off; all records on its disk.
   * @throws unless the journal was replayed, the file system found clean, and the records whole and without a gap
   */
  async recovered(): Promise<GuestRecord[]> {
    await this.process.ended(LIMIT_MS);
    const isReplayed = this.said("kernel").some((line) => line.includes("recovery complete"));
    if (this.said("clean").length !== 1 || !isReplayed)
      throw new Error(`the guest did not find its disk as it has to be:\n${this.process.stdout}`);
    const records = this.said("record").map(parseRecord);
    const misplaced = records.findIndex(({ number }, index) => number !== index + 1);
    if (misplaced === -1) return records;
    throw new Error(`record ${misplaced + 1} is not there, but ${JSON.stringify(records[misplaced])}`);
  }

  async kill(): Promise<void> {
    await this.process.kill();
  }

  /** From where it was stopped, or from the state of another guest once that has come in. */
  async goOn(): Promise<void> {
    await waitFor(
      "the guest to be ready",
      async () => (await this.qmp.execute("query-status")) as { status: string },
      ({ status }) => status !== "inmigrate",
    );
    await this.qmp.execute("cont");
  }

  /** Stops the guest and writes its memory and devices to a file; it stays stopped. */
  async saveState(file: string): Promise<void> {
    await this.qmp.execute("stop");
    await this.qmp.execute("migrate", { uri: `exec:cat > ${file}` });
    const { status } = await waitFor(
      "the state to be saved",
      async () => (await this.qmp.execute("query-migrate")) as { status: string },
      (answer) => answer.status === "completed" || answer.status === "failed",
    );
    if (status !== "completed") throw new Error(`saving the guest's state: ${status}`);
  }
}

/** @throws if its checksum is wrong */
function parseRecord(line: string): GuestRecord {
  const end = line.lastIndexOf(" ");
  const [number, host] = line.split(" ");
  const sum = createHash("sha256").update(line.slice(0, end)).digest("hex");
  if (sum !== line.slice(end + 1)) throw new Error(`a record is damaged: ${line}`);
  return { number: Number(number), host: host ?? "" };
}
