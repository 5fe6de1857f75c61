/** A node as a service of systemd, which a socket stands for here: sd_notify(3). */
import { expect } from "chai";
import { existsSync } from "node:fs";

import { expectPattern } from "../tools/clients.js";
import { NodeProcess } from "../tools/node-process.js";
import { waitFor } from "../tools/wait-for.js";
import { useWorkspace } from "../tools/workspace.js";

describe("node as a service", () => {
  const workspace = useWorkspace();

  const start = (role: "primary" | "secondary", notifySocket: string): Promise<NodeProcess> => {
    const options = [
      ...["--disk", `disk0=${workspace.path(`${role}.img`)}`, "--size", "1M"],
      ...["--listen", `unix:${workspace.path("nbd.sock")}`],
    ];
    const launcher = ["env", `NOTIFY_SOCKET=${notifySocket}`];
    return NodeProcess.start(workspace, role, options, workspace.path(role), [], launcher);
  };

  for (const role of ["primary", "secondary"] as const) {
    it(`${role}: tells that it serves, and that it has been told to end`, async () => {
      const path = workspace.path("notify.sock");
      const manager = await workspace.start("socat", ["-u", `UNIX-RECV:${path}`, "STDOUT"]);
      await waitFor(
        "the socket",
        () => existsSync(path),
        (isThere) => isThere,
      );
      const expectTold = (expected: string): Promise<string> =>
        waitFor(
          "what the node tells",
          () => manager.stdout,
          (told) => told === expected,
        );

      const node = await start(role, path);
      await expectTold("READY=1\n");
      await expectPattern(`nbd+unix:///disk0?socket=${workspace.path("nbd.sock")}`, [0, "0", "1M"]);
      node.process.signal("SIGTERM");
      expect((await node.process.ended()).code).to.equal(0);
      await expectTold("READY=1\nSTOPPING=1\n");
    });
  }

  it("serves all the same where nobody can be told, and says so", async () => {
    const path = workspace.path("nobody.sock");
    const node = await start("primary", path);
    await expectPattern(`nbd+unix:///disk0?socket=${workspace.path("nbd.sock")}`, [0, "0", "1M"]);
    const { msg } = await node.logged("a warning", ({ level }) => level === 40);
    expect(msg).to.equal(
      `systemd can't be told READY=1 (NOTIFY_SOCKET "${path}"): ENOENT: sendto: use Type=exec`,
    );
  });
});
