/**
 * The main job in one run, for somebody who has just cloned this: a pair on loopback, writes, a checkpoint, more writes,
 * the loss of the primary, a failover, and the proof of what is left. `npm run demo`; with `-- --keep` the pair stays.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describeError } from "../errors.js";
import { type Address, formatAddress, unixAddress } from "../net/address.js";
import { connectNbd } from "../nbd/client/connect.js";
import type { NbdDevice } from "../nbd/client/device.js";
import { QmpClient } from "../qmp/client.js";
import { onInterruption } from "../os/interruption.js";
import { DemoNode, freePort } from "./demo-node.js";

const DISK = "disk0";
const DISK_SIZE = "1G";
const BLOCK_BYTES = 1024 * 1024;
/** Long enough for both sides to connect on a slow machine. */
const PATIENCE_MS = 20_000;

let stepNumber = 0;

function say(text: string): void {
  stepNumber++;
  process.stdout.write(`${String(stepNumber).padStart(2)}. ${text}\n`);
}

function prove(claim: string, isTrue: boolean): void {
  if (!isTrue) throw new Error(`NOT TRUE: ${claim}`);
  say(`proved: ${claim}`);
}

/** What an end of the demo, at whatever step, must not leave behind. */
class Leftovers {
  directory: string | null = null;
  readonly nodes: DemoNode[] = [];

  /** To live on after the demo. */
  release(): void {
    for (const node of this.nodes.splice(0)) node.release();
    this.directory = null;
  }

  async clear(): Promise<void> {
    for (const node of this.nodes) await node.kill();
    if (this.directory !== null) await rm(this.directory, { recursive: true, force: true });
  }
}

interface Pair {
  readonly directory: string;
  readonly primary: DemoNode;
  readonly secondary: DemoNode;
  readonly primarySocket: Address;
  readonly viewSocket: Address;
}

async function startPair(directory: string, leftovers: Leftovers): Promise<Pair> {
  const link: Address = { kind: "tcp", host: "127.0.0.1", port: await freePort() };
  const control: Address = { kind: "tcp", host: "127.0.0.1", port: await freePort() };
  const primarySocket = unixAddress(join(directory, "primary.sock"));
  const secondaryState = join(directory, "secondary");
  const primaryState = join(directory, "primary");

  const secondary = new DemoNode("repl-secondary", secondaryState, [
    ...["--disk", `${DISK}=${join(directory, "secondary.img")}`, "--size", DISK_SIZE],
    ...["--listen", formatAddress(link), "--qmp", formatAddress(control)],
  ]);
  leftovers.nodes.push(secondary);
  say(`starting ${secondary.commandLine}`);
  await secondary.ready(PATIENCE_MS);

  const primary = new DemoNode("repl-primary", primaryState, [
    ...["--disk", `${DISK}=${join(directory, "primary.img")}`, "--size", DISK_SIZE],
    ...["--listen", formatAddress(primarySocket)],
    ...["--replica", `nbd://${formatAddress(link)}`, "--replica-qmp", formatAddress(control)],
  ]);
  leftovers.nodes.push(primary);
  say(`starting ${primary.commandLine}`);
  try {
    await primary.ready(PATIENCE_MS);
    await waitUntilReplicating(primary);
  } catch (error) {
    await primary.kill();
    await secondary.kill();
    throw error;
  }
  say("the pair replicates: the initial copy is done and the first checkpoint taken");
  return {
    directory,
    primary,
    secondary,
    primarySocket,
    viewSocket: unixAddress(join(secondaryState, "view.sock")),
  };
}

async function waitUntilReplicating(primary: DemoNode): Promise<void> {
  const qmp = await QmpClient.connect(primary.qmp, { timeoutMs: PATIENCE_MS });
  try {
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
      const status = (await qmp.execute("x-repl-status")) as { lastCheckpoint: unknown };
      if (status.lastCheckpoint !== null) return;
      if (Date.now() > deadline) throw new Error(`the pair does not replicate; see ${primary.logFile}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  } finally {
    await qmp.close();
  }
}

async function command(node: DemoNode, name: string, args: object = {}): Promise<unknown> {
  const qmp = await QmpClient.connect(node.qmp, { timeoutMs: PATIENCE_MS });
  try {
    return await qmp.execute(name, args, { timeoutMs: PATIENCE_MS });
  } finally {
    await qmp.close();
  }
}

/** Whether a block of the disk is filled with `byte`. */
async function holds(device: NbdDevice, block: number, byte: number): Promise<boolean> {
  const content = Buffer.alloc(BLOCK_BYTES);
  await device.read(block * BLOCK_BYTES, content);
  return content.equals(Buffer.alloc(BLOCK_BYTES, byte));
}

async function writeAndCheckpoint(pair: Pair, view: NbdDevice): Promise<void> {
  const guest = await connectNbd({ address: pair.primarySocket, exportName: DISK });
  try {
    await guest.write(0, Buffer.alloc(BLOCK_BYTES, 0xaa), 0);
    say("wrote 1 MiB of 0xaa through the primary");
    prove("the view does not show it before a checkpoint", await holds(view, 0, 0));
    await command(pair.primary, "x-repl-checkpoint");
    say("took a checkpoint (repl-primary checkpoint)");
    prove("the view shows it now", await holds(view, 0, 0xaa));
    await guest.write(0, Buffer.alloc(BLOCK_BYTES, 0xbb), 0);
    await guest.write(BLOCK_BYTES, Buffer.alloc(BLOCK_BYTES, 0xbb), 0);
    say("went on: overwrote it and the next MiB with 0xbb");
    prove("the view still shows the checkpoint", (await holds(view, 0, 0xaa)) && (await holds(view, 1, 0)));
    await view.write(2 * BLOCK_BYTES, Buffer.alloc(BLOCK_BYTES, 0xcc), 0);
    say("wrote 1 MiB of 0xcc through the view, as a guest on the secondary would");
  } finally {
    await guest.close();
  }
}

async function failOver(pair: Pair, view: NbdDevice): Promise<void> {
  await pair.primary.kill();
  say("killed the primary (kill -9)");
  await command(pair.secondary, "x-repl-failover", { to: "checkpoint" });
  say("failed over (repl-secondary failover --to checkpoint); the view's client stayed connected");
  prove(
    "the disk is the last checkpoint plus what was written through the view",
    (await holds(view, 0, 0xaa)) && (await holds(view, 1, 0)) && (await holds(view, 2, 0xcc)),
  );
  await view.write(3 * BLOCK_BYTES, Buffer.alloc(BLOCK_BYTES, 0xdd), 0);
  prove("it takes writes and keeps them", await holds(view, 3, 0xdd));
}

function explain(pair: Pair): void {
  const { directory, primary, secondary, primarySocket, viewSocket } = pair;
  const socketOf = (address: Address): string =>
    address.kind === "unix" ? address.path : formatAddress(address);
  const guest = socketOf(primarySocket);
  const view = socketOf(viewSocket);
  process.stdout.write(`
The pair keeps running; its files are in ${directory}. Attach a client:
  qemu-system-x86_64 -m 512 -drive 'file=nbd+unix:///${DISK}?socket=${guest},format=raw,if=virtio'
  nbd-client -nonetlink -unix ${guest} -N ${DISK} /dev/nbd0
  qemu-img info 'nbd+unix:///${DISK}?socket=${guest}'
  qemu-img convert -f raw -O raw 'nbd+unix:///${DISK}?socket=${view}' checkpoint.img     (the view)
Command it:
  bin/repl-primary status --state-dir ${primary.stateDirectory}
  bin/repl-primary checkpoint --state-dir ${primary.stateDirectory}
  bin/repl-secondary failover --dry-run --state-dir ${secondary.stateDirectory}
Stop it:
  bin/repl-primary stop --state-dir ${primary.stateDirectory}
  bin/repl-secondary stop --state-dir ${secondary.stateDirectory}
`);
}

async function demo(keeps: boolean, leftovers: Leftovers): Promise<void> {
  leftovers.directory = await mkdtemp(join(tmpdir(), "nbd-replication-demo-"));
  const pair = await startPair(leftovers.directory, leftovers);
  const view = await connectNbd({ address: pair.viewSocket, exportName: DISK });
  try {
    await writeAndCheckpoint(pair, view);
    if (!keeps) await failOver(pair, view);
  } finally {
    await view.close();
  }
  if (keeps) {
    leftovers.release();
    explain(pair);
    return;
  }
  await command(pair.secondary, "quit");
  prove("the secondary stopped cleanly", (await pair.secondary.exited) === 0);
}

const leftovers = new Leftovers();
onInterruption(() => leftovers.clear());
try {
  const unknown = process.argv.slice(2).find((argument) => argument !== "--keep");
  if (unknown !== undefined) throw new Error(`unknown argument "${unknown}": there is only --keep`);
  await demo(process.argv.includes("--keep"), leftovers);
} catch (error) {
  process.stderr.write(`demo: ${describeError(error)}\n`);
  process.exitCode = 1;
} finally {
  await leftovers.clear();
}
