/** QEMU's own pair (block/replication.c) without guests, linked by a unix socket or by TCP on loopback. */
import { Qemu } from "../../test/tools/qemu.js";
import { freePort } from "../../test/tools/socket-server.js";
import type { Workspace } from "../../test/tools/workspace.js";
import { fillDisk } from "./disk-fill.js";
import type { Shape, System } from "./system.js";

/** Both disks have to hold the same at the start: this one is filled, not copied. */
export async function startQemuPair(
  workspace: Workspace,
  link: "unix" | "tcp",
  shape: Shape,
): Promise<System> {
  const disks = Array.from({ length: shape.disks }, (_, disk) => disk);
  for (const disk of disks) {
    for (const name of ["p", "s"]) await fillDisk(workspace.path(Qemu.imageOf(name, disk)), shape);
  }
  const secondary = await Qemu.secondary(workspace, "s", shape.sizeBytes, shape.disks);
  const port = link === "tcp" ? await freePort() : undefined;
  await secondary.serve(Object.fromEntries(disks.map((disk) => [`disk${disk}`, `disk${disk}`])), port);
  await secondary.execute("xen-set-replication", { enable: true, primary: false });
  const primary = await Qemu.primary(workspace, "p", shape.sizeBytes, shape.disks);
  await primary.serve(Object.fromEntries(disks.map((disk) => [`guest${disk}`, `colo${disk}`])));
  await primary.replicateTo(
    port === undefined
      ? `file.server.type=unix,file.server.path=${secondary.nbdPath}`
      : `file.server.type=inet,file.server.host=127.0.0.1,file.server.port=${port}`,
    shape.disks,
  );
  return {
    name: `qemu-${link}`,
    workspace,
    servers: [
      { role: "primary", pid: primary.process.pid },
      { role: "secondary", pid: secondary.process.pid },
    ],
    uri: (disk) => primary.uri(`guest${disk}`),
    isAlive: () => primary.process.isRunning && secondary.process.isRunning,
    checkpoint: () => secondary.execute("xen-colo-do-checkpoint"),
  };
}
