/** Replicas that can't be used, are not there, or talk nonsense: one line, or a primary that serves its guest anyway. */
import { expect } from "chai";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { type AddressInfo, createServer, type Socket } from "node:net";

import { expectPattern, writePattern } from "../tools/clients.js";
import { NodeProcess, runNode } from "../tools/node-process.js";
import { MEBIBYTE, Pair } from "../tools/pair.js";
import { type Outcome, succeed } from "../tools/process.js";
import { Exit, expectRefusal } from "../tools/refusal.js";
import { expectUnharmed, snapshot } from "../tools/snapshot.js";
import { freePort, serveOn, startNbdkit } from "../tools/socket-server.js";
import { useWorkspace } from "../tools/workspace.js";

const REPLICATION_SIZE = "4M";

describe("replica that can't be used", () => {
  const workspace = useWorkspace();

  beforeEach(async () => {
    await writeFile(workspace.path("primary.img"), Buffer.alloc(4 * MEBIBYTE, 0x11));
  });

  const guestUri = (): string => `nbd+unix:///disk0?socket=${workspace.path("guest.sock")}`;
  const primaryOptions = (replicaTimeout: string, ...options: string[]): string[] => [
    ...[
      "--disk",
      `disk0=${workspace.path("primary.img")}`,
      "--listen",
      `unix:${workspace.path("guest.sock")}`,
    ],
    ...["--replica-timeout", replicaTimeout],
    ...options,
  ];
  const tryPrimary = (...options: string[]): Promise<Outcome> =>
    // nbd-server listens before it has its parameters for TLS, which takes it seconds of a busy processor.
    runNode("primary", [...primaryOptions("30s", ...options), "--state-dir", workspace.path("primary")]);
  const startPrimary = (...options: string[]): Promise<NodeProcess> =>
    NodeProcess.start(workspace, "primary", primaryOptions("1s", ...options));

  /** The primary doesn't start, and says why. */
  const expectRefused = async (message: string, ...options: string[]): Promise<void> => {
    const before = await snapshot(workspace.directory);
    expectRefusal(await tryPrimary(...options), Exit.Failed, message);
    expectUnharmed(before, await snapshot(workspace.directory));
  };

  const startSecondary = async (...options: string[]): Promise<string[]> => {
    const secondary = await NodeProcess.start(workspace, "secondary", [
      ...["--listen", "127.0.0.1:0", "--qmp", "tcp:127.0.0.1:0"],
      ...options,
    ]);
    const [nbd, qmp] = [await secondary.tcpAddress("replication"), await secondary.tcpAddress("qmp")];
    return ["--replica", `nbd://${nbd}`, "--replica-qmp", `tcp:${qmp}`];
  };

  /** A TCP server that does with its clients what it likes; returns HOST:PORT. */
  const startStranger = async (meet: (socket: Socket) => void): Promise<string> => {
    const sockets = new Set<Socket>();
    const server = createServer((socket) => {
      sockets.add(socket);
      socket.on("error", (error) => {
        workspace.note(`stranger: ${error.message}`);
      });
      meet(socket);
    });
    server.listen({ host: "127.0.0.1", port: 0 });
    await once(server, "listening");
    workspace.onEnd(() => {
      for (const socket of sockets) socket.destroy();
      return new Promise((resolve) => server.close(resolve));
    });
    return `127.0.0.1:${(server.address() as AddressInfo).port}`;
  };

  describe("is refused at the start", () => {
    it("a plain nbd-server without that export", async () => {
      const socket = workspace.path("nbd-server.sock");
      await succeed("truncate", ["--size", REPLICATION_SIZE, workspace.path("other.img")]);
      await writeFile(
        workspace.path("nbd-server.conf"),
        `[generic]\nunixsock = ${socket}\nport = ${await freePort()}\n[other]\nexportname = ${workspace.path("other.img")}\n`,
      );
      await serveOn(workspace, socket, "nbd-server", ["-d", "-C", workspace.path("nbd-server.conf")]);
      await expectRefused("disk0", "--replica", `nbd+unix:///?socket=${socket}`);
    });

    for (const [size, sizeBytes, remedy] of [
      ["2M", 2097152, "export one that is as large"],
      [
        "8M",
        8388608,
        "start this node with --grow disk0=8388608, or export one that is as large as its disk",
      ],
    ] as const) {
      it(`an export of another size, ${size}: both are named, and what to do`, async () => {
        const socket = workspace.path("nbdkit.sock");
        await startNbdkit(workspace, socket, "memory", size);
        await expectRefused(
          `the replica of disk disk0 has ${sizeBytes} bytes, the primary disk 4194304: ${remedy}`,
          ...["--replica", `nbd+unix:///?socket=${socket}`],
        );
      });
    }

    it("an export that is read-only", async () => {
      const socket = workspace.path("nbdkit.sock");
      await startNbdkit(workspace, socket, "-r", "memory", REPLICATION_SIZE);
      await expectRefused(
        "the replica of disk disk0 is read-only: export it writable",
        ...["--replica", `nbd+unix:///?socket=${socket}`],
      );
    });

    it("a secondary whose disk has another size: both are named", async () => {
      const disk = `disk0=${workspace.path("secondary.img")}`;
      await expectRefused(
        "disk disk0 has 4194304 bytes on the primary and 2097152 on the secondary: start the smaller one with --grow disk0=4194304",
        ...(await startSecondary("--disk", disk, "--size", "2M")),
      );
    });

    it("a secondary with other disks", async () => {
      const [a, b] = [workspace.path("a.img"), workspace.path("b.img")];
      const other = await startSecondary("--disk", `other=${a}`, "--size", REPLICATION_SIZE);
      await expectRefused("the secondary has no disk disk0, only other", ...other);
      const second = await NodeProcess.start(
        workspace,
        "secondary",
        [
          ...[
            "--disk",
            `disk0=${b}`,
            "--disk",
            `disk1=${workspace.path("c.img")}`,
            "--size",
            REPLICATION_SIZE,
          ],
          ...["--listen", "127.0.0.1:0", "--qmp", "tcp:127.0.0.1:0"],
        ],
        workspace.path("second"),
      );
      await expectRefused(
        "the secondary's disk disk1 is not replicated by the primary",
        ...["--replica", `nbd://${await second.tcpAddress("replication")}`],
        ...["--replica-qmp", `tcp:${await second.tcpAddress("qmp")}`],
      );
    });

    it("the QMP server of a primary", async () => {
      const secondary = await startSecondary(
        ...["--disk", `disk0=${workspace.path("secondary.img")}`, "--size", REPLICATION_SIZE],
      );
      const other = await NodeProcess.start(
        workspace,
        "primary",
        [
          ...["--disk", `disk0=${workspace.path("other.img")}`, "--size", REPLICATION_SIZE],
          ...["--listen", "127.0.0.1:0", "--qmp", "tcp:127.0.0.1:0"],
        ],
        workspace.path("other"),
      );
      const qmp = await other.tcpAddress("qmp");
      await expectRefused(
        `the QMP server at ${qmp} is a primary's: name that of the secondary (--replica-qmp)`,
        ...[...secondary.slice(0, 2), "--replica-qmp", `tcp:${qmp}`],
      );
    });

    it("the exports of one secondary and the QMP server of another", async () => {
      const disks = ["a.img", "b.img"].map((name) => [
        ...["--disk", `disk0=${workspace.path(name)}`, "--size", REPLICATION_SIZE],
      ]);
      const [, , ...qmp] = await startSecondary(...(disks[0] ?? []));
      const other = await NodeProcess.start(
        workspace,
        "secondary",
        [...(disks[1] ?? []), "--listen", "127.0.0.1:0"],
        workspace.path("other"),
      );
      const nbd = await other.tcpAddress("replication");
      expectRefusal(
        await tryPrimary("--replica", `nbd://${nbd}`, ...qmp),
        Exit.Failed,
        `${nbd}: the server refuses the export "disk0": there is no export "disk0": it has to be the node of --replica-qmp, and to export the disk`,
      );
    });

    it("a server that answers garbage", async () => {
      const stranger = await startStranger((socket) =>
        socket.write("HTTP/1.1 400 Bad Request\r\n\r\n".repeat(9)),
      );
      await expectRefused(stranger, "--replica", `nbd://${stranger}`);
    });

    it("a secondary that was promoted", async () => {
      const disk = `disk0=${workspace.path("secondary.img")}`;
      const replica = await startSecondary("--disk", disk, "--size", REPLICATION_SIZE);
      const primary = await startPrimary(...replica);
      await primary.waitForStatus("a checkpoint", ({ lastCheckpoint }) => lastCheckpoint !== null);
      await primary.succeed("stop");
      const promoted = await runNode("secondary", [
        "failover",
        "--yes",
        "--state-dir",
        workspace.path("secondary"),
      ]);
      expect(promoted.code).to.equal(Exit.Done);
      const message =
        "the secondary was promoted by a failover and takes no replication writes any more: start the primary's node as its secondary (repl-secondary on its state directory), or, if the primary was promoted later, the secondary with --demote";
      expectRefusal(await tryPrimary(...replica), Exit.WrongState, message);
    });
  });

  describe("is tried again, while the guest is served", () => {
    const expectServing = async (primary: NodeProcess): Promise<void> => {
      await writePattern(guestUri(), 0x22, "1M", "1M");
      await expectPattern(guestUri(), [0x11, "0", "1M"], [0x22, "1M", "1M"]);
      const status = await primary.status();
      expect(status.primary?.link.state).to.be.oneOf([
        "connecting",
        "handshaking",
        "disconnected",
        "refused",
      ]);
      expect(status.checkpointRefusal).to.be.a("string");
      const checkpoint = await primary.verb("checkpoint");
      expectRefusal(checkpoint, Exit.WrongState, /^repl-primary: checkpoint refused: /);
      await primary.succeed("stop");
      expect((await primary.process.ended()).code).to.equal(0);
    };

    it("nobody is there; the secondary comes later", async () => {
      const pair = new Pair(workspace, { sizeBytes: 4 * MEBIBYTE });
      await pair.startSecondary();
      await pair.secondary.succeed("stop");
      const primary = await pair.startPrimary();
      await writePattern(pair.primaryUri(), 0x22, "0", "1M");
      const { primary: status, checkpointRefusal } = await primary.status();
      expect(status?.link.lastError).to.include("ECONNREFUSED");
      expect(checkpointRefusal).to.match(/^the replica is .* not replicated$/);
      expectRefusal(await primary.verb("checkpoint"), Exit.WrongState, "checkpoint refused: the replica is");
      await pair.startSecondary();
      await pair.synchronised();
      await expectPattern(pair.viewUri(), [0x22, "0", "1M"], [0, "1M", "3M"]);
    });

    it("a host name that doesn't exist", async () => {
      await expectServing(await startPrimary("--replica", "nbd://nonesuch.invalid"));
    });

    it("a server that takes the connection and says nothing", async () => {
      const stranger = await startStranger(() => undefined);
      const primary = await startPrimary(
        "--replica",
        `nbd://${stranger}`,
        "--replica-qmp",
        `tcp:${stranger}`,
      );
      await expectServing(primary);
    });

    it("a server that hangs up", async () => {
      const stranger = await startStranger((socket) => socket.destroy());
      await expectServing(await startPrimary("--replica", `nbd://${stranger}`));
    });

    it("garbage instead of QMP", async () => {
      const stranger = await startStranger((socket) => socket.write("SSH-2.0-OpenSSH_9.2\r\n"));
      const replica = ["--replica", `nbd://${stranger}`, "--replica-qmp", `tcp:${stranger}`];
      await expectServing(await startPrimary(...replica));
    });
  });

  it("a plain NBD server is one, without checkpoints: a manager drives them", async () => {
    const socket = workspace.path("nbdkit.sock");
    await startNbdkit(workspace, socket, "memory", REPLICATION_SIZE);
    const replica = `nbd+unix:///?socket=${socket}`;
    const primary = await startPrimary("--replica", replica);
    await primary.waitForStatus("replicating", (status) => status.primary?.link.state === "replicating");
    await writePattern(guestUri(), 0x22, "1M", "1M");
    await expectPattern(
      `nbd+unix:///disk0?socket=${socket}`,
      [0x11, "0", "1M"],
      [0x22, "1M", "1M"],
      [0x11, "2M", "2M"],
    );
    expectRefusal(await primary.verb("checkpoint"), Exit.WrongState, "a manager drives the checkpoints");
  });
});
