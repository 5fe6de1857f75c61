/** What a guest boots: Debian's kernel, and an initramfs with busybox, modules, a few programs of this machine and init.sh. */
import { access, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { run } from "../process.js";
import { type ArchiveEntry, cpioArchive } from "./cpio.js";
import { modulesInOrder } from "./kernel-modules.js";

/** Seen from dist/test/tools/guest/. */
const REPOSITORY = fileURLToPath(new URL("../../../../", import.meta.url));
const KERNEL = join(REPOSITORY, "node_modules/.cache/nbd-replication/guest-kernel");
const INIT = join(REPOSITORY, "test/tools/guest/init.sh");

const MODULES = ["virtio_pci", "virtio_blk", "virtio_net", "nbd"];
const PROGRAMS = ["busybox", "mke2fs", "e2fsck", "nbd-client"];
/** Not everybody's PATH has what only root uses. */
const SEARCHED = ["/bin", "/sbin", "/usr/bin", "/usr/sbin"];
/** What init.sh mounts on. */
const DIRECTORIES = ["bin", "dev", "mnt", "proc", "sys", "tmp", "modules"];

export interface GuestImage {
  readonly kernel: string;
  readonly initramfs: string;
}

/** Builds the initramfs at `path`, with more files if there are any. @throws if the kernel or a program is missing */
export async function buildGuestImage(path: string, more: readonly ArchiveEntry[] = []): Promise<GuestImage> {
  const kernel = join(KERNEL, "vmlinuz");
  if (!(await exists(kernel))) throw new Error(`there is no ${kernel}: run test/tools/install-tools.sh`);
  const modules = await modulesInOrder(join(KERNEL, "modules"), MODULES);
  const order = modules.map(({ name }) => `${name}\n`).join("");
  const files = [
    { path: "init", content: await readFile(INIT) },
    { path: "modules/order", content: Buffer.from(order) },
    ...modules.map(({ name, content }) => ({ path: `modules/${name}.ko`, content })),
    ...(await programs()),
    ...more,
  ];
  await writeFile(path, cpioArchive([...directories(files), ...files]));
  return { kernel, initramfs: path };
}

/** busybox; programs that it has poorer versions of; the libraries that they are linked with, where they expect them. */
async function programs(): Promise<ArchiveEntry[]> {
  const libraries = new Set<string>();
  const entries: ArchiveEntry[] = [];
  for (const name of PROGRAMS) {
    const program = await find(name);
    entries.push({
      path: name === "busybox" ? "bin/busybox" : `programs/${name}`,
      content: await readFile(program),
    });
    // Of a program that is linked statically, ldd says so and fails.
    for (const [, library] of (await run("ldd", [program])).stdout.matchAll(/(\/\S+) \(0x/g)) {
      if (library !== undefined) libraries.add(library);
    }
  }
  for (const library of libraries) entries.push({ path: library.slice(1), content: await readFile(library) });
  return entries;
}

function directories(files: readonly ArchiveEntry[]): ArchiveEntry[] {
  const paths = new Set(DIRECTORIES);
  const add = (path: string): void => {
    if (path === ".") return;
    add(dirname(path));
    paths.add(path);
  };
  for (const { path } of files) add(dirname(path));
  return [...paths].map((path) => ({ path, content: null }));
}

async function find(program: string): Promise<string> {
  for (const directory of SEARCHED) {
    const path = join(directory, program);
    if (await exists(path)) return path;
  }
  throw new Error(`${program} is in none of ${SEARCHED.join(", ")}: run test/tools/install-tools.sh`);
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
