/** Disks that can't be used: the node doesn't start, says why, and leaves everything as it found it. */
import { expect } from "chai";
import { link, mkdir, symlink, writeFile } from "node:fs/promises";

import { NodeProcess, runNode } from "../tools/node-process.js";
import { MEBIBYTE } from "../tools/pair.js";
import { type Outcome, run, succeed } from "../tools/process.js";
import { Exit, expectRefusal } from "../tools/refusal.js";
import { expectUnharmed, snapshot } from "../tools/snapshot.js";
import { serveOn, startNbdkit } from "../tools/socket-server.js";
import { useWorkspace } from "../tools/workspace.js";

describe("disk that can't be used", () => {
  const workspace = useWorkspace();

  const start = (role: "primary" | "secondary", disk: string, ...options: string[]): Promise<Outcome> =>
    runNode(role, [
      ...["--disk", `disk0=${disk}`, "--listen", `unix:${workspace.path("listen.sock")}`],
      ...options,
      ...["--state-dir", workspace.path("state")],
    ]);

  /** Both programs refuse it, and nothing that was there has changed then. */
  const expectRefused = async (
    disk: string,
    code: number,
    message: string | RegExp,
    ...options: string[]
  ): Promise<void> => {
    const before = await snapshot(workspace.directory);
    for (const role of ["primary", "secondary"] as const) {
      expectRefusal(await start(role, disk, ...options), code, message);
      expectUnharmed(before, await snapshot(workspace.directory));
    }
  };

  it("missing: is named, with what creates it", async () => {
    const path = workspace.path("nonesuch.img");
    await expectRefused(path, Exit.Usage, `disk ${path} does not exist: give --size to create it`);
  });

  it("missing, in a directory that is missing, or not writable by anybody", async () => {
    await expectRefused(workspace.path("no/disk.img"), Exit.Usage, "no/disk.img", "--size", "1M");
    await expectRefused("/proc/disk.img", Exit.Usage, "disk /proc/disk.img can't be created", "--size", "1M");
  });

  it("too large for the file system: leaves no file", async () => {
    const path = workspace.path("huge.img");
    await expectRefused(path, Exit.Usage, `disk ${path} of`, "--size", "7P");
  });

  it("a directory, a pipe, a character device, or beyond a file", async () => {
    await mkdir(workspace.path("directory"));
    await expectRefused(workspace.path("directory"), Exit.Usage, "is a directory: name a raw image file");
    await expectRefused("/dev/null", Exit.Usage, "is no disk: name a raw image file or a block device");
    await succeed("mkfifo", [workspace.path("pipe")]);
    expectRefusal(await start("primary", workspace.path("pipe")), Exit.Usage, "is no disk");
    await writeFile(workspace.path("file"), "x");
    await symlink("loop", workspace.path("loop"));
    expectRefusal(await start("primary", workspace.path("file/disk.img")), Exit.Usage, "can't be used");
    expectRefusal(await start("secondary", workspace.path("loop")), Exit.Usage, "can't be used");
  });

  it("the same as another one, by a link", async () => {
    const path = workspace.path("disk.img");
    await writeFile(path, Buffer.alloc(MEBIBYTE));
    for (const make of ["symlink", "link"] as const) {
      const twin = workspace.path(`${make}.img`);
      await (make === "symlink" ? symlink(path, twin) : link(path, twin));
      const message = `--disk: ${twin} is the same as ${path}: name another file or device`;
      await expectRefused(path, Exit.Usage, message, "--disk", `disk1=${twin}`);
    }
  });

  it("empty", async () => {
    await writeFile(workspace.path("empty.img"), "");
    await expectRefused(workspace.path("empty.img"), Exit.Usage, "has no bytes");
  });

  it("of another size than --size says: both are named", async () => {
    const path = workspace.path("disk.img");
    await writeFile(path, Buffer.alloc(MEBIBYTE, 0x11));
    const message = `disk ${path} has 1048576 bytes, not the 2097152 of --size: leave --size out to use it`;
    await expectRefused(path, Exit.Usage, message, "--size", "2M");
  });

  it("in use by QEMU", async () => {
    const path = workspace.path("disk.img");
    await writeFile(path, Buffer.alloc(MEBIBYTE, 0x11));
    const socket = workspace.path("qemu.sock");
    await serveOn(workspace, socket, "qemu-nbd", ["-t", "-f", "raw", "-k", socket, path]);
    await expectRefused(
      path,
      Exit.WrongState,
      new RegExp(`${path} is in use by another process \\(pid .*\\)`),
    );
  });

  it("in use by another node, which goes on; and QEMU can't have it either", async () => {
    const path = workspace.path("disk.img");
    const node = await NodeProcess.start(
      workspace,
      "primary",
      ["--disk", `disk0=${path}`, "--size", "1M", "--listen", "127.0.0.1:0"],
      workspace.path("first"),
    );
    await expectRefused(path, Exit.WrongState, `in use by another process`);
    const qemu = await run("qemu-io", ["-f", "raw", "-c", "write 0 4k", path]);
    expect(qemu.code).to.equal(1);
    expect(qemu.stderr).to.match(/Failed to get (shared )?"?\w+"? lock/);
    expect((await node.status()).role).to.equal("primary");
  });

  describe("behind an NBD URI", () => {
    /** A server with these options to nbdkit(1); returns its socket. */
    const startServer = async (...options: string[]): Promise<string> => {
      const socket = workspace.path("nbdkit.sock");
      await startNbdkit(workspace, socket, ...options);
      return socket;
    };

    it("whose server is gone: the disk and its server are named", async () => {
      const socket = workspace.path("nobody.sock");
      const message = `disk disk0: can't connect to unix:${socket}: `;
      await expectRefused(`nbd+unix:///image?socket=${socket}`, Exit.Failed, message);
    });

    it("of an export that the server doesn't have", async () => {
      const socket = await startServer(
        "memory",
        "1M",
        "--filter=exportname",
        "exportname-strict=true",
        "exportname=image",
      );
      await expectRefused(`nbd+unix:///other?socket=${socket}`, Exit.Failed, "other");
    });

    it("that is read-only", async () => {
      const socket = await startServer("-r", "memory", "1M");
      await expectRefused(`nbd+unix:///image?socket=${socket}`, Exit.Usage, "is read-only");
    });

    it("of another size than --size says", async () => {
      const socket = await startServer("memory", "1M");
      await expectRefused(`nbd+unix:///image?socket=${socket}`, Exit.Usage, "2097152", "--size", "2M");
    });
  });
});
