import type { Workspace } from "../test/tools/workspace.js";
import { runLoad } from "./load.js";
import { startSystem } from "./systems/start.js";
import type { Shape, System, SystemName } from "./systems/system.js";

/** At the end of each disk: nothing that is measured works there. */
export const WARM_UP_BYTES = 64 * 1024 * 1024;
const WARM_UP_SECONDS = 2;

/** A new process is slow at first, ours most of all: load counts only after this. */
export async function warmUp(system: System, { sizeBytes }: Pick<Shape, "sizeBytes">): Promise<void> {
  const target = {
    disks: 1,
    offset: sizeBytes - WARM_UP_BYTES,
    extentBytes: WARM_UP_BYTES,
    seconds: WARM_UP_SECONDS,
    seed: 1,
  };
  await runLoad(system, { rw: "randrw", bs: "4k", iodepth: 16 }, target);
}

export async function startWarm(workspace: Workspace, name: SystemName, shape: Shape): Promise<System> {
  const system = await startSystem(workspace, name, shape);
  await warmUp(system, shape);
  return system;
}
