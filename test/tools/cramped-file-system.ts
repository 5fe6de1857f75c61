/**
 * A file system whose disk takes no more than it has room for, so that writing back fails: ext4 on a loop device on a tmpfs.
 * What was written is in the page cache then, and nowhere else.
 */
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";

import { succeed } from "./process.js";
import type { Workspace } from "./workspace.js";

const ROOM = "16m";
/** Of the file system: more than there is room for. */
const SIZE = "64M";

export class CrampedFileSystem {
  readonly #room: string;
  readonly #mountPoint: string;

  private constructor(room: string, mountPoint: string) {
    this.#room = room;
    this.#mountPoint = mountPoint;
  }

  /** Gone with the workspace. */
  static async make(workspace: Workspace): Promise<CrampedFileSystem> {
    const [room, mountPoint] = [workspace.path("room"), workspace.path("cramped")];
    await mkdir(room);
    await mkdir(mountPoint);
    await succeed("mount", ["-t", "tmpfs", "-o", `size=${ROOM}`, "tmpfs", room]);
    // Busy until the node that uses it has ended: detached now, gone then.
    workspace.onEnd(() => succeed("umount", ["--lazy", room]));
    const cramped = new CrampedFileSystem(room, mountPoint);
    await succeed("truncate", ["-s", SIZE, cramped.#image]);
    await succeed("mkfs.ext4", ["-q", "-O", "^has_journal", cramped.#image]);
    await cramped.#mount();
    workspace.onEnd(() => succeed("umount", ["--lazy", mountPoint]));
    return cramped;
  }

  path(name: string): string {
    return join(this.#mountPoint, name);
  }

  /** From now on what is written where nothing was can't be written back. */
  async fill(): Promise<void> {
    await this.writeBack();
    await succeed("sh", ["-c", 'dd if=/dev/zero of="$0" bs=4k 2>/dev/null || true', this.#filler]);
  }

  /** All that is to be written back is, or given up. */
  async writeBack(): Promise<void> {
    await succeed("sync", []);
  }

  async makeRoom(): Promise<void> {
    await rm(this.#filler);
  }

  /** The host is started anew: what files hold is what the disk has. Nobody uses them. */
  async remount(): Promise<void> {
    await succeed("umount", [this.#mountPoint]);
    await this.#mount();
  }

  get #image(): string {
    return join(this.#room, "disk.img");
  }

  get #filler(): string {
    return join(this.#room, "filler");
  }

  async #mount(): Promise<void> {
    await succeed("mount", ["-o", "loop", this.#image, this.#mountPoint]);
  }
}
