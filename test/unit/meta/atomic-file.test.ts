import { expect } from "chai";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { writeFileAtomic } from "../../../src/meta/atomic-file.js";
import { failureOf } from "../../tools/outcome.js";

describe("writeFileAtomic", () => {
  let directory: string;
  let path: string;

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "atomic-"));
    path = join(directory, "metadata.json");
  });

  afterEach(async () => {
    await rm(directory, { recursive: true });
  });

  it("makes a file and replaces it, leaving nothing else behind", async () => {
    await writeFileAtomic(path, "a longer first text");
    await writeFileAtomic(path, "second");
    expect(await readFile(path, "utf8")).to.equal("second");
    expect(await readdir(directory)).to.deep.equal(["metadata.json"]);
  });

  it("is not hindered by what a crash left", async () => {
    await writeFile(`${path}.tmp`, "half of a very long text that never took the na");
    await writeFileAtomic(path, "whole");
    expect(await readFile(path, "utf8")).to.equal("whole");
  });

  it("ends with the text of the last of many calls at once", async () => {
    const texts = Array.from({ length: 20 }, (_, index) => `${index}`.repeat(1000));
    await Promise.all(texts.map((text) => writeFileAtomic(path, text)));
    expect(await readFile(path, "utf8")).to.equal(texts.at(-1));
  });

  it("rejects and keeps the old text when it can't be replaced, then works again", async () => {
    await writeFileAtomic(path, "old");
    await mkdir(`${path}.tmp`);
    let failure: unknown;
    await writeFileAtomic(path, "new").catch((error: unknown) => (failure = error));
    expect(failure).to.have.property("code", "EISDIR");
    expect(await readFile(path, "utf8")).to.equal("old");
    await rm(`${path}.tmp`, { recursive: true });
    await writeFileAtomic(path, "newer");
    expect(await readFile(path, "utf8")).to.equal("newer");
  });

  it("writes after one that failed", async () => {
    const failed = writeFileAtomic(path, undefined as unknown as string);
    const written = writeFileAtomic(path, "new");
    await failureOf(failed);
    await written;
    expect(await readFile(path, "utf8")).to.equal("new");
  });
});
