/** Modules of a kernel that is not installed: no modules.dep tells which needs which, but they say so themselves. */
import { readdir, readFile } from "node:fs/promises";
import { basename, join } from "node:path";

export interface KernelModule {
  readonly name: string;
  readonly content: Buffer;
}

/** These modules and what they need, in an order in which they can be loaded. @throws if one is not there */
export async function modulesInOrder(tree: string, names: readonly string[]): Promise<KernelModule[]> {
  const files = await readdir(tree, { recursive: true });
  const ordered = new Map<string, KernelModule>();
  const add = async (name: string): Promise<void> => {
    if (ordered.has(name)) return;
    const file = files.find((path) => basename(path) === `${name}.ko`);
    if (file === undefined) throw new Error(`the kernel module ${name} is not in ${tree}`);
    const content = await readFile(join(tree, file));
    for (const needed of dependencies(content)) await add(needed);
    ordered.set(name, { name, content });
  };
  for (const name of names) await add(name);
  return [...ordered.values()];
}

/** The section .modinfo has "depends=a,b" as a string that ends with a zero byte. */
function dependencies(module: Buffer): string[] {
  const key = "\0depends=";
  const at = module.indexOf(key) + key.length;
  if (at < key.length) return [];
  return module
    .subarray(at, module.indexOf(0, at))
    .toString()
    .split(",")
    .filter((name) => name !== "");
}
