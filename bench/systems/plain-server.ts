/** Servers of one plain raw file that nobody replicates: the price of replication is seen beside them. */
import { serveOn, startNbdkit } from "../../test/tools/socket-server.js";
import type { TestProcess } from "../../test/tools/process.js";
import type { Workspace } from "../../test/tools/workspace.js";
import { fillDisk } from "./disk-fill.js";
import type { Shape, System, SystemName } from "./system.js";

/** qemu-nbd with its defaults written out: page cache, a pool of threads; --shared=0 takes any number of clients. */
const QEMU_NBD = ["--persistent", "--shared=0", "--format=raw", "--cache=writeback", "--aio=threads"];

export function startQemuNbd(workspace: Workspace, shape: Shape): Promise<System> {
  return startPlain(workspace, "qemu-nbd", shape, (socket, disk) =>
    serveOn(workspace, socket, "qemu-nbd", [...QEMU_NBD, `--socket=${socket}`, disk]),
  );
}

export function startNbdkitFile(workspace: Workspace, shape: Shape): Promise<System> {
  return startPlain(workspace, "nbdkit", shape, (socket, disk) =>
    startNbdkit(workspace, socket, "file", disk),
  );
}

/** One process for each disk. */
async function startPlain(
  workspace: Workspace,
  name: SystemName,
  shape: Shape,
  serve: (socket: string, disk: string) => Promise<TestProcess>,
): Promise<System> {
  const socketOf = (index: number): string => workspace.path(`disk${index}.sock`);
  const processes: TestProcess[] = [];
  for (let index = 0; index < shape.disks; index++) {
    const disk = workspace.path(`disk${index}.img`);
    await fillDisk(disk, shape);
    processes.push(await serve(socketOf(index), disk));
  }
  return {
    name,
    workspace,
    servers: processes.map(({ pid }) => ({ role: "server", pid })),
    uri: (index) => `nbd+unix:///?socket=${socketOf(index)}`,
    isAlive: () => processes.every(({ isRunning }) => isRunning),
    checkpoint: null,
  };
}
