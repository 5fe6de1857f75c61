/**
 * A file system on a disk that forgets, when its power fails, what it was not told to keep: ext4 on a loop device on nbdfuse on our own
 * NBD server, with a WriteBackDisk behind it. What the kernel has in its page cache is lost, too.
 *
 * Invariant: between losePower() and the end of its promise nothing is mounted; whoever used the file system has ended by then.
 */
import { mkdir, readFile, stat } from "node:fs/promises";

import { startNbdServer, type NbdServerHarness } from "./nbd-server-harness.js";
import { run, succeed, type TestProcess } from "./process.js";
import type { Random } from "./seed.js";
import { waitFor } from "./wait-for.js";
import type { Workspace } from "./workspace.js";
import { WriteBackDisk } from "./write-back-disk.js";

const SIZE_BYTES = 48 * 1024 * 1024;

export class ForgetfulFileSystem {
  /** Where it is mounted. */
  readonly directory: string;
  readonly #workspace: Workspace;
  readonly #fuseDirectory: string;
  readonly #disk: WriteBackDisk;
  #server: NbdServerHarness | null = null;
  #fuse: TestProcess | null = null;
  #loopDevice: string | null = null;

  private constructor(workspace: Workspace, name: string, disk: WriteBackDisk) {
    this.directory = workspace.path(name);
    this.#workspace = workspace;
    this.#fuseDirectory = workspace.path(`${name}-fuse`);
    this.#disk = disk;
  }

  /** Gone with the workspace. */
  static async make(workspace: Workspace, name: string): Promise<ForgetfulFileSystem> {
    const image = workspace.path(`${name}.ext4`);
    await succeed("truncate", ["-s", String(SIZE_BYTES), image]);
    // Else the kernel goes on initialising it, which takes the processor and flushes.
    await succeed("mkfs.ext4", ["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image]);
    const made = new ForgetfulFileSystem(workspace, name, new WriteBackDisk(await readFile(image)));
    await mkdir(made.directory);
    await mkdir(made.#fuseDirectory);
    await made.#mount();
    workspace.onEnd(() => made.#end());
    return made;
  }

  /** @param endUsers ends all processes that use it */
  async losePower(random: Random, endUsers: () => Promise<unknown>): Promise<void> {
    await this.#server?.server.close(0);
    this.#disk.losePower(random);
    await endUsers();
    await this.#unmount();
    await this.#mount();
  }

  async #mount(): Promise<void> {
    this.#server = await startNbdServer();
    this.#server.add("disk", this.#disk);
    const uri = `nbd+unix:///disk?socket=${this.#server.path}`;
    const fuse = await this.#workspace.start("nbdfuse", [this.#fuseDirectory, uri]);
    this.#fuse = fuse;
    const file = `${this.#fuseDirectory}/nbd`;
    await waitFor(
      "nbdfuse to mount",
      () => isThere(file).then((isMounted) => isMounted || !fuse.isRunning),
      (isSettled) => isSettled,
    );
    this.#loopDevice = (await succeed("losetup", ["--find", "--show", file])).trim();
    // Connecting to a socket there would write its time of access, and stop this process until that is done: it serves the disk itself.
    await succeed("mount", ["-t", "ext4", "-o", "noatime", this.#loopDevice, this.directory]);
  }

  async #unmount(): Promise<void> {
    await waitFor(
      `${this.directory} to be unmounted`,
      () => run("umount", [this.directory]),
      ({ code }) => code === 0,
    );
    await this.#end();
  }

  /** Somebody may still use it. */
  async #end(): Promise<void> {
    await run("umount", ["--lazy", this.directory]);
    if (this.#loopDevice !== null) await succeed("losetup", ["--detach", this.#loopDevice]);
    this.#loopDevice = null;
    await this.#fuse?.terminate();
    // Where nbdfuse has died of its server's end, it left its mount behind.
    await run("umount", [this.#fuseDirectory]);
    const server = this.#server;
    this.#server = null;
    await server?.close();
  }
}

async function isThere(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
