/** Images made and read by qemu-img. */
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";

const execute = promisify(execFile);

export async function createImage(path: string, format: "raw" | "qcow2", sizeBytes: number): Promise<void> {
  await execute("qemu-img", ["create", "-q", "-f", format, path, String(sizeBytes)]);
}

/** What a guest would read from the image; writes a raw copy beside it. */
export async function imageContent(path: string, format: "raw" | "qcow2"): Promise<Buffer> {
  if (format === "raw") return readFile(path);
  const copy = `${path}.raw`;
  await execute("qemu-img", ["convert", "-f", format, "-O", "raw", path, copy]);
  return readFile(copy);
}
