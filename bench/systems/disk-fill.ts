/** Disk files as the rows need them: data at the beginning, holes behind. */
import { randomFillSync } from "node:crypto";
import { open } from "node:fs/promises";

import type { Shape } from "./system.js";

const CHUNK_BYTES = 8 * 1024 * 1024;
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
