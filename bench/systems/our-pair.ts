/** Our pair: link and control over TCP on loopback, the guest on a unix socket. */
import { resolve } from "node:path";

import { QmpClient } from "../../src/qmp/client.js";
import { type Pair, type PairOptions, startPair } from "../../test/tools/pair.js";
import type { Workspace } from "../../test/tools/workspace.js";
import { fillDisk } from "./disk-fill.js";
import type { Shape, System, SystemName } from "./system.js";

/** The initial copy of a disk full of data takes its time beside other load. */
export const COPY_LIMIT_MS = 300_000;

/** What a pair is started with besides its disks. */
export type PairArguments = Pick<PairOptions, "primary" | "secondary" | "scheme">;

export async function startOurPair(
  workspace: Workspace,
  name: SystemName,
  shape: Shape,
  extra: PairArguments = {},
): Promise<System> {
  const disks = Array.from({ length: shape.disks }, (_, index) => `disk${index}`);
  for (const role of ["primary", "secondary"]) {
    for (const disk of disks) await fillDisk(workspace.path(`${role}-${disk}.img`), shape);
  }
  const pair = await startPair(workspace, {
    disks,
    sizeBytes: shape.sizeBytes,
    copyLimitMs: COPY_LIMIT_MS,
    ...(shape.profileDirectory !== undefined && {
      nodeOptions: ["--cpu-prof", `--cpu-prof-dir=${resolve(shape.profileDirectory)}`],
    }),
    ...extra,
  });
  return systemOf(workspace, name, pair);
}

/** A pair that replicates, as something to measure. */
export async function systemOf(workspace: Workspace, name: SystemName, pair: Pair): Promise<System> {
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
