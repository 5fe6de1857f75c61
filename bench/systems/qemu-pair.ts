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
  for (const name of ["p", "s"]) await fillDisk(workspace.path(`${name}.img`), shape);
  const secondary = await Qemu.secondary(workspace, "s", shape.sizeBytes);
  const port = link === "tcp" ? await freePort() : undefined;
  await secondary.serve({ disk0: "disk0" }, port);
  await secondary.execute("xen-set-replication", { enable: true, primary: false });
  const primary = await Qemu.primary(workspace, "p", shape.sizeBytes);
  await primary.serve({ guest: "colo0" });
  await primary.replicateTo(
    port === undefined
      ? `file.server.type=unix,file.server.path=${secondary.nbdPath}`
      : `file.server.type=inet,file.server.host=127.0.0.1,file.server.port=${port}`,
  );
  return {
    name: `qemu-${link}`,
    workspace,
    servers: [
      { role: "primary", pid: primary.process.pid },
      { role: "secondary", pid: secondary.process.pid },
    ],
    uri: () => primary.uri("guest"),
    isAlive: () => primary.process.isRunning && secondary.process.isRunning,
    checkpoint: () => secondary.execute("xen-colo-do-checkpoint"),
  };
}
