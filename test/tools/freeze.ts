/** Stopping a node between two steps that nothing outside of it can hold apart. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { setImmediate as turn } from "node:timers/promises";

import { freezeProcess } from "./freeze-process.js";
import type { NodeProcess } from "./node-process.js";

/** What a state directory says at an instant. */
export interface StateOnDisk {
  readonly files: readonly string[];
  /** 0: it is not there. */
  readonly sizeOf: (file: string) => number;
  readonly metadata: { readonly epoch: number; readonly stage?: string };
}

export function readState(node: NodeProcess): StateOnDisk {
  const files = readdirSync(node.stateDirectory);
  const text = readFileSync(join(node.stateDirectory, "metadata.json"), "utf8");
  const sizeOf = (file: string): number =>
    statSync(join(node.stateDirectory, file), { throwIfNoEntry: false })?.size ?? 0;
  return { files, sizeOf, metadata: JSON.parse(text) as StateOnDisk["metadata"] };
}

/**
 * Looks at the state directory without a pause until it is as wanted, and stops the process there.
 * @param isOver the moment will not come any more
 * @returns whether it was caught: stopped, and still in that state; else it runs on
 */
export async function freezeAt(
  node: NodeProcess,
  isWanted: (state: StateOnDisk) => boolean,
  isOver: () => boolean,
): Promise<boolean> {
  while (!isWanted(readState(node))) {
    if (isOver()) return false;
    await turn();
  }
  await freezeProcess(node.process.pid);
  if (isWanted(readState(node))) return true;
  node.process.signal("SIGCONT");
  return false;
}
