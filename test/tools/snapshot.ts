/** All there is under a directory, so that a test can say: nothing has changed. */
import { createHash } from "node:crypto";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";

import { expect } from "chai";

import { isErrno } from "../../src/errors.js";

const SETTLING_ATTEMPTS = 100;
const SETTLING_MS = 100;

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

/** Of a directory that a node works in: what is there once it has written down what it has to. */
export async function settledSnapshot(directory: string): Promise<Snapshot> {
  for (let attempt = 0; attempt < SETTLING_ATTEMPTS; attempt++) {
    const [before, after] = [
      await trySnapshot(directory),
      await sleep(SETTLING_MS, directory).then(trySnapshot),
    ];
    if (before !== null && after !== null && isDeepStrictEqual(before, after)) return after;
  }
  throw new Error(`${directory} does not come to rest`);
}

/** @returns null if a file was replaced meanwhile */
async function trySnapshot(directory: string): Promise<Snapshot | null> {
  try {
    return await snapshot(directory);
  } catch (error) {
    if (isErrno(error, "ENOENT")) return null;
    throw error;
  }
}

/** Everything that was there is as it was, and nobody listens on anything new. */
export function expectUnharmed(before: Snapshot, after: Snapshot): void {
  const isNew = (path: string): boolean => !(path in before);
  expect(Object.fromEntries(Object.entries(after).filter(([path]) => !isNew(path)))).to.deep.equal(before);
  expect(Object.keys(after).filter((path) => isNew(path) && after[path] === "socket")).to.deep.equal([]);
}
