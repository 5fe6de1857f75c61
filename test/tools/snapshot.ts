/** All there is under a directory, so that a test can say: nothing has changed. */
import { createHash } from "node:crypto";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";

import { expect } from "chai";

/** Path below the directory -> what is there: size and digest of a file, or its kind. */
export type Snapshot = Readonly<Record<string, string>>;

export async function snapshot(directory: string): Promise<Snapshot> {
  const found: Record<string, string> = {};
  for (const name of (await readdir(directory, { recursive: true })).sort()) {
    const path = join(directory, name);
    const status = await stat(path);
    if (status.isFile()) {
      const digest = createHash("sha256")
        .update(await readFile(path))
        .digest("hex");
      found[name] = `${status.size} bytes, ${digest}`;
    } else if (status.isDirectory()) found[name] = "directory";
    else found[name] = status.isSocket() ? "socket" : "special file";
  }
  return found;
}

/** Everything that was there is as it was, and nobody listens on anything new. */
export function expectUnharmed(before: Snapshot, after: Snapshot): void {
  const isNew = (path: string): boolean => !(path in before);
  expect(Object.fromEntries(Object.entries(after).filter(([path]) => !isNew(path)))).to.deep.equal(before);
  expect(Object.keys(after).filter((path) => isNew(path) && after[path] === "socket")).to.deep.equal([]);
}
