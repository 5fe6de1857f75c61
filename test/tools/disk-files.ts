/** Disk images as files: what they hold and what they take. */
import { open, stat } from "node:fs/promises";

const CHUNK_BYTES = 4 * 1024 * 1024;
const BLOCK_BYTES = 4096;
/** The unit of st_blocks, whatever the file system's own. */
const STAT_BLOCK_BYTES = 512;

/** Compares two files to the last byte; @throws with the first block that differs, and how many do */
export async function expectSameContent(left: string, right: string): Promise<void> {
  const [leftFile, rightFile] = await Promise.all([open(left), open(right)]);
  try {
    const sizes = [(await leftFile.stat()).size, (await rightFile.stat()).size] as const;
    if (sizes[0] !== sizes[1]) throw new Error(`${left} has ${sizes[0]} bytes, ${right} has ${sizes[1]}`);
    const [leftBytes, rightBytes] = [Buffer.alloc(CHUNK_BYTES), Buffer.alloc(CHUNK_BYTES)];
    const different: number[] = [];
    for (let offset = 0; offset < sizes[0]; offset += CHUNK_BYTES) {
      const length = Math.min(CHUNK_BYTES, sizes[0] - offset);
      await leftFile.read(leftBytes, 0, length, offset);
      await rightFile.read(rightBytes, 0, length, offset);
      if (leftBytes.compare(rightBytes, 0, length, 0, length) === 0) continue;
      for (let at = 0; at < length; at += BLOCK_BYTES) {
        const end = Math.min(at + BLOCK_BYTES, length);
        if (leftBytes.compare(rightBytes, at, end, at, end) !== 0) different.push(offset + at);
      }
    }
    const [first] = different;
    if (first === undefined) return;
    throw new Error(
      `${left} and ${right} differ in ${different.length} blocks of ${BLOCK_BYTES}, first at ${first}`,
    );
  } finally {
    await leftFile.close();
    await rightFile.close();
  }
}

/** What the file takes on its file system, in bytes; holes take nothing. */
export async function allocatedBytes(path: string): Promise<number> {
  return (await stat(path)).blocks * STAT_BLOCK_BYTES;
}

/** Changes one bit of a file. */
export async function flipByte(path: string, position: number): Promise<void> {
  const file = await open(path, "r+");
  try {
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, position);
    byte.writeUInt8(byte.readUInt8(0) ^ 0x10);
    await file.write(byte, 0, 1, position);
  } finally {
    await file.close();
  }
}
