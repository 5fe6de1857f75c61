/**
 * Replacing a small file so that a crash, power loss included, leaves the old text or the new one.
 *
 * The text goes to `PATH.tmp`, is flushed, and takes the name; then the directory is flushed. A `.tmp`
 * left by a crash is overwritten by the next write, and nobody reads it.
 * Writes of the same path by one process happen one after the other, in the order of the calls; other processes
 * are kept out by the lock of the state directory.
 */
import { open, rename } from "node:fs/promises";
import { dirname } from "node:path";

import { syncDirectory } from "../os/sync-directory.js";

/** The last write of each path that has one under way. */
const underWay = new Map<string, Promise<void>>();

/** Resolves when the text is durable under this name; on failure the old text is still there. */
export function writeFileAtomic(path: string, text: string): Promise<void> {
  const replaceNow = (): Promise<void> => replace(path, text);
  const earlier = underWay.get(path);
  const written = earlier === undefined ? replaceNow() : earlier.then(replaceNow, replaceNow);
  underWay.set(path, written);
  const forget = (): void => {
    if (underWay.get(path) === written) underWay.delete(path);
  };
  written.then(forget, forget);
  return written;
}

async function replace(path: string, text: string): Promise<void> {
  const temporary = `${path}.tmp`;
  const file = await open(temporary, "w", 0o600);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(temporary, path);
  await syncDirectory(dirname(path));
}
