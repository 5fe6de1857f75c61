/** Disk files as the rows need them: data at the beginning, holes behind. */
import { randomFillSync } from "node:crypto";
import { open } from "node:fs/promises";

import type { Shape } from "./system.js";

/**
 * As a guest writes, not in one go: from long writes ext4 makes folios of 2 MiB (Linux 6.18), in which each later write of
 * 4 KiB costs whoever makes it three times as much.
 */
const CHUNK_BYTES = 64 * 1024;
/** Not zero anywhere and the same on both nodes of a pair. */
const CHUNK = randomFillSync(Buffer.alloc(CHUNK_BYTES));

/** Makes a file of the shape's size. What it writes is on the device when it returns, so that no row pays for it. */
export async function fillDisk(
  path: string,
  { sizeBytes, dataBytes }: Pick<Shape, "sizeBytes" | "dataBytes">,
): Promise<void> {
  const file = await open(path, "wx");
  try {
    await file.truncate(sizeBytes);
    for (let offset = 0; offset < dataBytes; offset += CHUNK_BYTES) {
      await file.write(CHUNK, 0, Math.min(CHUNK_BYTES, dataBytes - offset), offset);
    }
    await file.datasync();
  } finally {
    await file.close();
  }
}
