/** Our pair: link and control over TCP on loopback, the guest on a unix socket. */
import { QmpClient } from "../../src/qmp/client.js";
import { startPair } from "../../test/tools/pair.js";
import type { Workspace } from "../../test/tools/workspace.js";
import { fillDisk } from "./disk-fill.js";
import type { Shape, System, SystemName } from "./system.js";

/** The initial copy of a disk full of data takes its time beside other load. */
const COPY_LIMIT_MS = 300_000;

export interface PairArguments {
  readonly primary: readonly string[];
  readonly secondary: readonly string[];
}

/** @param extra options on the command lines; none: the defaults */
export async function startOurPair(
  workspace: Workspace,
  name: SystemName,
  shape: Shape,
  extra: PairArguments = { primary: [], secondary: [] },
): Promise<System> {
  const disks = Array.from({ length: shape.disks }, (_, index) => `disk${index}`);
  for (const role of ["primary", "secondary"]) {
    for (const disk of disks) await fillDisk(workspace.path(`${role}-${disk}.img`), shape);
  }
  const pair = await startPair(workspace, {
    disks,
    sizeBytes: shape.sizeBytes,
    primary: extra.primary,
    secondary: extra.secondary,
    copyLimitMs: COPY_LIMIT_MS,
  });
  const { primary, secondary } = pair;
  const qmp = await QmpClient.connect({ kind: "unix", path: primary.qmpPath });
  workspace.onEnd(() => qmp.close());
  return {
    name,
    workspace,
    servers: [
      { role: "primary", pid: primary.process.pid },
      { role: "secondary", pid: secondary.process.pid },
    ],
    uri: (disk) => pair.primaryUri(`disk${disk}`),
    isAlive: () => primary.process.isRunning && secondary.process.isRunning,
    checkpoint: () => qmp.execute("x-repl-checkpoint"),
  };
}
