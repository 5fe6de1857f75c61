/**
 * The same random sequence on a QEMU pair, on ours, and on both mixed pairs: after every step each primary, each view and
 * in the end each disk is what the model says. SEED repeats a run.
 */
import { expect } from "chai";
import { readFile } from "node:fs/promises";

import { qemuIo } from "../tools/clients.js";
import { NodeProcess } from "../tools/node-process.js";
import { MEBIBYTE } from "../tools/pair.js";
import { succeed } from "../tools/process.js";
import { Qemu } from "../tools/qemu.js";
import { Random, SEED } from "../tools/seed.js";
import { waitFor } from "../tools/wait-for.js";
import { useWorkspace, type Workspace } from "../tools/workspace.js";

const SIZE_BYTES = 2 * MEBIBYTE;
const SECTOR_BYTES = 512;
const LONGEST_BYTES = 192 * 1024;
const STEPS = 12;
const REQUESTS_PER_STEP = 6;

interface Secondary {
  readonly view: string;
  readonly disk: string;
  /** Where its primary finds it. */
  readonly nbdPath: string;
  readonly qmp: string;
  execute(command: string, args?: object): Promise<unknown>;
  promoted(): Promise<unknown>;
  end(): Promise<unknown>;
}

interface Couple {
  readonly name: string;
  readonly guest: string;
  readonly secondary: Secondary;
  checkpoint(): Promise<unknown>;
}

/** What a pair has to hold. */
class Model {
  readonly primary = Buffer.alloc(SIZE_BYTES);
  view = Buffer.alloc(SIZE_BYTES);

  checkpoint(): void {
    this.view = Buffer.from(this.primary);
  }
}

async function qemuSecondary(workspace: Workspace, name: string): Promise<Secondary> {
  const qemu = await Qemu.secondary(workspace, name, SIZE_BYTES);
  await qemu.serve({ disk0: "disk0", view: "top" });
  return {
    view: qemu.uri("view"),
    disk: workspace.path(`${name}.img`),
    nbdPath: qemu.nbdPath,
    qmp: qemu.peerQmp,
    execute: (command, args) => qemu.execute(command, args),
    promoted: () =>
      waitFor(
        "QEMU to have merged its overlays",
        async () => (await qemu.execute("query-named-block-nodes", { flat: true })) as { drv: string }[],
        (nodes) => !nodes.some(({ drv }) => drv === "qcow2"),
      ),
    end: () => qemu.process.terminate(),
  };
}

async function ourSecondary(workspace: Workspace, name: string): Promise<Secondary> {
  const [nbdPath, view] = [workspace.path(`${name}-nbd.sock`), workspace.path(`${name}-view.sock`)];
  const disk = workspace.path(`${name}.img`);
  const node = await NodeProcess.start(
    workspace,
    "secondary",
    [
      ...["--disk", `disk0=${disk}`, "--size", String(SIZE_BYTES)],
      ...["--listen", `unix:${nbdPath}`, "--view", `unix:${view}`],
    ],
    workspace.path(name),
  );
  return {
    view: `nbd+unix:///disk0?socket=${view}`,
    disk,
    nbdPath,
    qmp: `unix:${node.qmpPath}`,
    execute: (command, args) => node.withQmp((client) => client.execute(command, args)),
    promoted: () => node.waitForStatus("done", ({ stage }) => stage === "done"),
    end: () => node.succeed("stop"),
  };
}

async function withQemuPrimary(workspace: Workspace, name: string, secondary: Secondary): Promise<Couple> {
  const qemu = await Qemu.primary(workspace, `${name}-p`, SIZE_BYTES);
  await qemu.serve({ guest: "colo0" });
  await secondary.execute("xen-set-replication", { enable: true, primary: false });
  await qemu.replicateTo(`file.server.type=unix,file.server.path=${secondary.nbdPath}`);
  const checkpoint = (): Promise<unknown> => secondary.execute("xen-colo-do-checkpoint");
  return { name, guest: qemu.uri("guest"), secondary, checkpoint };
}

async function withOurPrimary(workspace: Workspace, name: string, secondary: Secondary): Promise<Couple> {
  const socket = workspace.path(`${name}-p.sock`);
  const node = await NodeProcess.start(
    workspace,
    "primary",
    [
      ...["--disk", `disk0=${workspace.path(`${name}-p.img`)}`, "--size", String(SIZE_BYTES)],
      ...["--listen", `unix:${socket}`, "--replica", `nbd+unix:///?socket=${secondary.nbdPath}`],
      ...["--replica-qmp", secondary.qmp],
    ],
    workspace.path(`${name}-p`),
  );
  await node.waitForStatus("a checkpoint", ({ lastCheckpoint }) => lastCheckpoint !== null);
  const checkpoint = (): Promise<unknown> => node.withQmp((client) => client.execute("x-repl-checkpoint"));
  return { name, guest: `nbd+unix:///disk0?socket=${socket}`, secondary, checkpoint };
}

/** Random requests as qemu-io's commands, which change `content` too. */
function requests(random: Random, content: Buffer, alignment: number): string[] {
  return Array.from({ length: REQUESTS_PER_STEP }, () => {
    const units = SIZE_BYTES / alignment;
    const offset = random.below(units) * alignment;
    const longest = Math.min(SIZE_BYTES - offset, LONGEST_BYTES) / alignment;
    const lengthBytes = (1 + random.below(longest)) * alignment;
    const isZero = random.below(4) === 0;
    const pattern = isZero ? 0 : 1 + random.below(255);
    content.fill(pattern, offset, offset + lengthBytes);
    const write = isZero
      ? `write -z ${offset} ${lengthBytes}`
      : `write -P ${pattern} ${offset} ${lengthBytes}`;
    // What a trimmed block reads as is each disk's own affair, so it is written to afterwards.
    return random.below(4) === 0 ? [`discard ${offset} ${lengthBytes}`, write] : [write];
  }).flat();
}

describe(`pairs of QEMU and ours (SEED=${SEED})`, () => {
  const workspace = useWorkspace();

  const contentOf = async (source: string): Promise<Buffer> => {
    const copy = workspace.path("copy.img");
    await succeed("qemu-img", ["convert", "-f", "raw", "-O", "raw", source, copy]);
    return readFile(copy);
  };

  const expectContent = async (what: string, source: string, expected: Buffer): Promise<void> => {
    const content = await contentOf(source);
    if (content.equals(expected)) return;
    const at = content.findIndex((byte, index) => byte !== expected[index]);
    expect.fail(`${what}: byte ${at} is ${String(content[at])}, not ${String(expected[at])}`);
  };

  const runSequence = async (couples: readonly Couple[], alignment: number): Promise<void> => {
    const random = new Random(SEED);
    const model = new Model();
    for (let step = 0; step < STEPS; step++) {
      const isCheckpoint = random.below(3) === 0;
      const guest = requests(random, model.primary, alignment);
      if (isCheckpoint) model.checkpoint();
      const view = random.below(2) === 0 ? requests(random, model.view, alignment) : [];
      for (const couple of couples) {
        const { name, guest: guestUri, secondary } = couple;
        await qemuIo(guestUri, ...guest);
        if (isCheckpoint) await couple.checkpoint();
        if (view.length > 0) await qemuIo(secondary.view, ...view);
        await expectContent(`step ${step}, primary of ${name}`, guestUri, model.primary);
        await expectContent(`step ${step}, view of ${name}`, secondary.view, model.view);
      }
    }
    for (const { name, secondary } of couples) {
      await secondary.execute("xen-set-replication", { enable: false, primary: false, failover: true });
      await secondary.promoted();
      await expectContent(`view of ${name} after the failover`, secondary.view, model.view);
      await secondary.end();
      await expectContent(`disk of ${name} after the failover`, secondary.disk, model.view);
    }
  };

  it("whole sectors: all four pairs hold the same after every step", async () => {
    await runSequence(
      [
        await withQemuPrimary(workspace, "qemu-qemu", await qemuSecondary(workspace, "qemu-qemu")),
        await withQemuPrimary(workspace, "qemu-ours", await ourSecondary(workspace, "qemu-ours")),
        await withOurPrimary(workspace, "ours-qemu", await qemuSecondary(workspace, "ours-qemu")),
        await withOurPrimary(workspace, "ours-ours", await ourSecondary(workspace, "ours-ours")),
      ],
      SECTOR_BYTES,
    );
  });

  // A QEMU primary doesn't replicate what is no multiple of 512 bytes.
  it("any bytes: our primary with either secondary holds the same after every step", async () => {
    await runSequence(
      [
        await withOurPrimary(workspace, "ours-qemu", await qemuSecondary(workspace, "ours-qemu")),
        await withOurPrimary(workspace, "ours-ours", await ourSecondary(workspace, "ours-ours")),
      ],
      1,
    );
  });
});
