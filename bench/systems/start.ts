/** Any system by its name. */
import type { Workspace } from "../../test/tools/workspace.js";
import { startOurPair } from "./our-pair.js";
import { startNbdkitFile, startQemuNbd } from "./plain-server.js";
import { startQemuPair } from "./qemu-pair.js";
import type { Shape, System, SystemName } from "./system.js";

export function startSystem(workspace: Workspace, name: SystemName, shape: Shape): Promise<System> {
  switch (name) {
    case "ours":
      return startOurPair(workspace, name, shape);
    case "ours-async":
      return startOurPair(workspace, name, shape, { primary: ["--ack-mode", "async"] });
    case "ours-sync":
      return startOurPair(workspace, name, shape, { primary: ["--ack-mode", "sync"] });
    case "ours-unsafe": {
      const unsafe = ["--cache", "unsafe"];
      return startOurPair(workspace, name, shape, { primary: unsafe, secondary: unsafe });
    }
    case "qemu-unix":
      return startQemuPair(workspace, "unix", shape);
    case "qemu-tcp":
      return startQemuPair(workspace, "tcp", shape);
    case "qemu-nbd":
      return startQemuNbd(workspace, shape);
    case "nbdkit":
      return startNbdkitFile(workspace, shape);
  }
}
