/** Who may connect to a node: sockets with a mode and an owner, networks, sockets from systemd, and what it warns of. */
import { expect } from "chai";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, link, stat } from "node:fs/promises";
import { createServer } from "node:net";
import type { Server } from "node:net";
import { fileURLToPath } from "node:url";

import { expectPattern, tryQemuIo, writePattern } from "../tools/clients.js";
import { NodeProcess, runNode } from "../tools/node-process.js";
import { run } from "../tools/process.js";
import { Exit } from "../tools/refusal.js";
import { waitFor } from "../tools/wait-for.js";
import { useWorkspace } from "../tools/workspace.js";

const PRIMARY = fileURLToPath(new URL("../../../bin/repl-primary", import.meta.url));

describe("access to a node", () => {
  const workspace = useWorkspace();

  const disk = (): string[] => ["--disk", `disk0=${workspace.path("disk.img")}`, "--size", "16M"];
  /** Its warnings are these: the last may be on its way yet when a client has noticed what it tells of. */
  const expectWarnings = async (node: NodeProcess, expected: readonly string[]): Promise<void> => {
    const last = expected.at(-1);
    await node.logged(`"${last}"`, ({ msg }) => msg === last);
    expect(node.log.filter(({ level }) => level === 40).map(({ msg }) => msg)).to.deep.equal(expected);
  };
  const modeOf = async (path: string): Promise<number> => (await stat(path)).mode & 0o777;

  it("--unix-mode and --unix-owner are those of the NBD sockets; QMP stays the node's own", async () => {
    const path = workspace.path("guest.sock");
    const { uid, gid } = await stat(workspace.directory);
    const owner = ["--unix-mode", "0660", "--unix-owner", `${uid}:${gid}`];
    const node = await NodeProcess.start(workspace, "primary", [
      ...disk(),
      "--listen",
      `unix:${path}`,
      ...owner,
    ]);
    expect(await modeOf(path)).to.equal(0o660);
    expect(await stat(path)).to.deep.include({ uid, gid });
    expect(await modeOf(node.qmpPath)).to.equal(0o600);
    await writePattern(`nbd+unix:///disk0?socket=${path}`, 0x11, "0", "64k");
  });

  it("--unix-owner that can't be set is an error, and nothing is left listening", async function () {
    // As root, any owner can be.
    const { uid } = await stat(workspace.directory);
    await chmod(workspace.directory, 0o777);
    const path = workspace.path("guest.sock");
    const owner = uid === 0 ? "no-such-user" : "0";
    const args = [
      ...disk(),
      "--listen",
      `unix:${path}`,
      "--unix-owner",
      owner,
      "--state-dir",
      workspace.path("s"),
    ];
    const { code, stderr } = await runNode("primary", args);
    expect(code).to.equal(uid === 0 ? Exit.Usage : Exit.Failed);
    expect(stderr).to.include(uid === 0 ? 'there is no user "no-such-user"' : "EPERM");
  });

  it("--allow lets in only these networks, over NBD and QMP, and unix sockets still", async () => {
    const path = workspace.path("guest.sock");
    const listen = ["--listen", `unix:${path}`, "--listen", "127.0.0.1:0", "--qmp", "tcp:127.0.0.1:0"];
    const node = await NodeProcess.start(workspace, "primary", [
      ...disk(),
      ...listen,
      "--allow",
      "192.0.2.0/24",
    ]);
    const address = await node.tcpAddress("guest");
    expect((await run("nbdinfo", [`nbd://${address}/disk0`])).code).to.not.equal(0);
    expect((await run("nbdinfo", [`nbd://${address}/disk0`])).code).to.not.equal(0);
    const status = await runNode("primary", ["status", "--qmp", `tcp:${await node.tcpAddress("qmp")}`]);
    expect(status.code).to.equal(Exit.Unreachable);
    await writePattern(`nbd+unix:///disk0?socket=${path}`, 0x11, "0", "64k");
    await expectWarnings(node, [
      "client refused: its address is not allowed",
      "client refused: its address is not allowed",
      "QMP client refused: its address is not allowed",
    ]);
  });

  it("--allow with the client's network lets it in", async () => {
    const options = [...disk(), "--listen", "127.0.0.1:0", "--allow", "10.0.0.0/8", "--allow", "127.0.0.0/8"];
    const node = await NodeProcess.start(workspace, "primary", options);
    await writePattern(`nbd://${await node.tcpAddress("guest")}/disk0`, 0x11, "0", "64k");
  });

  it("--max-connections-per-peer and --max-connections are kept to", async () => {
    const path = workspace.path("guest.sock");
    const limits = ["--max-connections-per-peer", "1", "--max-connections", "2"];
    const listen = ["--listen", `unix:${path}`, "--listen", "127.0.0.1:0"];
    const node = await NodeProcess.start(workspace, "primary", [...disk(), ...listen, ...limits]);
    const uri = `nbd://${await node.tcpAddress("guest")}/disk0`;
    const unixUri = `nbd+unix:///disk0?socket=${path}`;
    for (const held of [uri, unixUri]) {
      await workspace.start("qemu-io", ["-f", "raw", "-c", "sleep 60000", held]);
      const expected = held === uri ? "0,1" : "1,1";
      await node.waitForStatus("the client, at the listener that it came by", ({ listeners }) => {
        const guests = listeners.filter(({ purpose }) => purpose === "guest");
        return guests.map(({ clients }) => clients).join() === expected;
      });
      expect((await tryQemuIo(held, "read 0 4k")).code).to.not.equal(0);
    }
    await expectWarnings(node, [
      "client refused: there are 1 connections from its address already",
      "client refused: there are 2 connections already",
    ]);
  });

  it("warns once of TCP listeners that other hosts reach without TLS, and not of loopback", async () => {
    const listen = ["--listen", "0.0.0.0:0", "--listen", "127.0.0.1:0", "--qmp", "tcp:0.0.0.0:0"];
    const node = await NodeProcess.start(workspace, "primary", [...disk(), ...listen]);
    await expectWarnings(node, ["no TLS: whoever is on the network can read and change what goes over it"]);
    const [warning] = node.log.filter(({ level }) => level === 40);
    expect(warning?.["listeners"]).to.have.length(2);
  });

  for (const kind of ["TCP", "unix"] as const) {
    it(`serves guests on a ${kind} socket that systemd would hand over, instead of the default address`, async () => {
      const server = createServer();
      if (kind === "TCP") server.listen(0, "127.0.0.1");
      else server.listen(workspace.path("activated.sock"));
      await once(server, "listening");
      const bound = server.address();
      const uri =
        typeof bound === "object" && bound !== null
          ? `nbd://127.0.0.1:${bound.port}/disk0`
          : `nbd+unix:///disk0?socket=${workspace.path("kept.sock")}`;
      // close() removes the path that it made.
      if (kind === "unix") await link(workspace.path("activated.sock"), workspace.path("kept.sock"));
      const said = await serveOn(server);
      server.close();
      await writePattern(uri, 0x77, "0", "64k");
      await expectPattern(uri, [0x77, "0", "64k"]);
      const listening = said().match(/"address":"([^"]*)","msg":"NBD server listens"/g) ?? [];
      expect(listening).to.have.length(1);
      expect(listening[0]).to.include(kind === "TCP" ? "127.0.0.1:" : "activated.sock");
    });
  }

  /** Starts a primary that inherits the socket as descriptor 3; returns what it has said. */
  async function serveOn(server: Server): Promise<() => string> {
    const command = 'LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=guests exec "$@"';
    const args = [process.execPath, PRIMARY, ...disk(), "--state-dir", workspace.path("primary")];
    // Node has no public way to a server's descriptor.
    const { fd } = Reflect.get(server, "_handle") as { fd: number };
    const child = spawn("sh", ["-c", command, "sh", ...args], {
      stdio: ["ignore", "ignore", "pipe", fd],
    });
    let said = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    const exited = once(child, "exit");
    workspace.onEnd(async () => {
      child.kill("SIGTERM");
      await exited;
    });
    await waitFor(
      "ready",
      () => said,
      (text) => text.includes('"msg":"ready"') || child.exitCode !== null,
    );
    expect(child.exitCode, said).to.equal(null);
    return () => said;
  }
});
