/** Any system by its name. */
import { PSK, writePskFile } from "../../test/tools/certificates.js";
import type { Workspace } from "../../test/tools/workspace.js";
import { startOurPair } from "./our-pair.js";
import { startNbdkitFile, startQemuNbd } from "./plain-server.js";
import { startQemuPair } from "./qemu-pair.js";
import type { Shape, System, SystemName } from "./system.js";

export async function startSystem(workspace: Workspace, name: SystemName, shape: Shape): Promise<System> {
  switch (name) {
    case "ours":
      return startOurPair(workspace, name, shape);
    case "ours-tls": {
      // Link and control are encrypted; the guest's unix socket stays as it is for the others.
      const keys = await writePskFile(workspace.path("keys.psk"), { pair: PSK });
      const tls = ["--tls", "on", "--tls-psk", keys];
      return startOurPair(workspace, name, shape, { scheme: "nbds", primary: tls, secondary: tls });
    }
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
