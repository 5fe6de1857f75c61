/** Making a file's name durable: fsync of a file says nothing about the directory that lists it. */
import { open } from "node:fs/promises";

/** Flushes a directory, so that files created, renamed or removed in it stay so after a power loss. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}
