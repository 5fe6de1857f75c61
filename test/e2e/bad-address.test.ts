/** Addresses that are taken: the node doesn't start, and whoever has them goes on. */
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { type AddressInfo, createServer, type Server } from "node:net";

import { runNode } from "../tools/node-process.js";
import { Exit, expectRefusal } from "../tools/refusal.js";
import { expectUnharmed, snapshot } from "../tools/snapshot.js";
import { useWorkspace } from "../tools/workspace.js";

describe("address that is taken", () => {
  const workspace = useWorkspace();

  const occupy = async (address: { path: string } | { host: string; port: number }): Promise<Server> => {
    const server = createServer();
    server.listen(address);
    await once(server, "listening");
    workspace.onEnd(() => new Promise((resolve) => server.close(resolve)));
    return server;
  };

  // Once: a disk that changes between two starts is another one to the node.
  beforeEach(() => writeFile(workspace.path("disk.img"), Buffer.alloc(4096, 0x11)));

  const expectTaken = async (
    role: "primary" | "secondary",
    address: string,
    message: string,
    ...options: string[]
  ): Promise<void> => {
    const before = await snapshot(workspace.directory);
    const outcome = await runNode(role, [
      ...["--disk", `disk0=${workspace.path("disk.img")}`, ...options],
      ...["--state-dir", workspace.path(`state-of-${role}`)],
    ]);
    expectRefusal(outcome, Exit.Failed, `can't listen on ${address}: ${message}`);
    expectUnharmed(before, await snapshot(workspace.directory));
  };

  it("a TCP port, for guests, the primary, the view or QMP", async () => {
    const { port } = (await occupy({ host: "127.0.0.1", port: 0 })).address() as AddressInfo;
    const address = `127.0.0.1:${port}`;
    const message = "another process listens there";
    await expectTaken("primary", address, message, "--listen", address);
    await expectTaken("secondary", address, message, "--listen", address);
    await expectTaken("secondary", address, message, "--listen", "none", "--view", address);
    await expectTaken("primary", address, message, "--listen", "127.0.0.1:0", "--qmp", `tcp:${address}`);
    await expectTaken("secondary", address, message, "--listen", "127.0.0.1:0", "--qmp", `tcp:${address}`);
  });

  it("the second of two: nobody listens on the first any more", async () => {
    const path = workspace.path("taken.sock");
    await occupy({ path });
    const first = ["--listen", `unix:${workspace.path("first.sock")}`];
    await expectTaken("primary", `unix:${path}`, "another process", ...first, "--listen", `unix:${path}`);
    await expectTaken("secondary", `unix:${path}`, "another process", ...first, "--qmp", `unix:${path}`);
  });

  it("a file that is no socket: it is kept", async () => {
    const path = workspace.path("precious");
    await writeFile(path, "of value");
    await expectTaken("primary", `unix:${path}`, "there is a file of that name", "--listen", `unix:${path}`);
    await expectTaken("secondary", `unix:${path}`, "there is a file of that name", "--view", `unix:${path}`);
  });

  it("an address of another host, and a directory that is missing", async () => {
    await expectTaken("primary", "192.0.2.1:10809", "", "--listen", "192.0.2.1:10809");
    const path = workspace.path("missing/guest.sock");
    await expectTaken(
      "primary",
      `unix:${path}`,
      `${workspace.path("missing")} is not there: make it`,
      ...["--listen", `unix:${path}`],
    );
  });
});
