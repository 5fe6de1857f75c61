import { expect } from "chai";
import { mkdir, mkdtemp, readdir, readFile, readlink, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { openStateDirectory, type StateDirectory } from "../../../src/meta/state-directory.js";
import { failureOf, outcome } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";

describe("state directory", () => {
  let parent: string;
  let path: string;
  let directory: StateDirectory;

  beforeEach(async () => {
    parent = await mkdtemp(join(tmpdir(), "state-"));
    path = join(parent, "deep", "state");
    directory = await openStateDirectory(path);
  });

  afterEach(() => rm(parent, { recursive: true }));

  it("is made with its parents, for its owner alone", async () => {
    expect((await stat(path)).mode & 0o777).to.equal(0o700);
    const file = await directory.create("log");
    await file.close();
    expect((await stat(join(path, "log"))).mode & 0o777).to.equal(0o600);
  });

  it("takes a directory that is there, with what is in it", async () => {
    await writeFile(join(path, "metadata.json"), "{}");
    const again = await openStateDirectory(path);
    expect(await again.readText("metadata.json")).to.equal("{}");
    expect(await again.list()).to.deep.equal(["metadata.json"]);
  });

  it("refuses a path that is no directory, or lies under a file", async () => {
    const file = join(parent, "file");
    await writeFile(file, "");
    for (const bad of [file, join(file, "state")]) {
      const error = await failureOf(openStateDirectory(bad));
      expect(error).to.have.property("code", "unusable");
      expect(error.message).to.include(`state directory ${bad} can't be used`);
    }
  });

  it("writes and reads at any position, in any number of buffers", async () => {
    const random = new Random(SEED);
    const file = await directory.create("log");
    const buffers = Array.from({ length: 2500 }, () => random.bytes(random.below(40)));
    const all = Buffer.concat(buffers);
    await file.write(3, buffers);
    expect(file.sizeBytes).to.equal(3 + all.length);
    const read = Buffer.alloc(all.length);
    await file.read(3, read);
    expect(read.equals(all)).to.equal(true);
    await file.write(1, [Buffer.from([9])]);
    expect(file.sizeBytes, "a write inside it does not shorten it").to.equal(3 + all.length);
    await file.sync();
    await file.close();
    expect(await readFile(join(path, "log"))).to.deep.equal(Buffer.concat([Buffer.from([0, 9, 0]), all]));
  });

  it("fails a read past the end of a file with EIO", async () => {
    const file = await directory.create("log");
    await file.write(0, [Buffer.alloc(10)]);
    expect(await outcome(file.read(0, Buffer.alloc(10)))).to.equal("done");
    expect(await outcome(file.read(10, Buffer.alloc(0)))).to.equal("done");
    expect(await outcome(file.read(5, Buffer.alloc(6)))).to.equal("EIO");
    await file.close();
  });

  it("closes a file that could not be opened a second time, for writes that are durable, and leaves no descriptor", async () => {
    const file = await directory.create("log");
    await directory.remove("log");
    const error = await failureOf(file.writeDurably(0, [Buffer.from("content")]));
    expect(error.message).to.include(`${path}/log can't be opened again: `);
    expect(await outcome(file.writeDurably(0, [Buffer.from("content")])), "it is final").to.equal("EIO");
    await file.close();
    const targets = await Promise.all(
      (await readdir("/proc/self/fd")).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => "gone")),
    );
    expect(targets.filter((target) => target.startsWith(join(path, "log")))).to.deep.equal([]);
  });

  it("empties a file that it creates anew, and not one that it opens", async () => {
    const text = Buffer.from("content");
    let file = await directory.create("log");
    await file.write(0, [text]);
    await file.close();
    file = await directory.open("log");
    expect(file.sizeBytes).to.equal(text.length);
    await file.close();
    file = await directory.create("log");
    expect(file.sizeBytes).to.equal(0);
    await file.close();
  });

  it("says which file is missing, or can't be read", async () => {
    const missing = await failureOf(directory.open("log"));
    expect(missing).to.have.property("code", "missing");
    expect(missing.message).to.equal(`${path}/log is missing`);
    await mkdir(join(path, "metadata.json"));
    const unreadable = await failureOf(directory.readText("metadata.json"));
    expect(unreadable).to.have.property("code", "unreadable");
    expect(unreadable.message).to.include(`${path}/metadata.json can't be read: `);
    expect(await directory.readText("other")).to.equal(null);
  });

  it("replaces a text in one step: who reads sees the old or the new one, whole", async () => {
    const texts = ["a".repeat(100_000), "b".repeat(50), "c".repeat(200_000)];
    await directory.replaceText("metadata.json", texts[0] ?? "");
    const replacing = Promise.all(texts.map((text) => directory.replaceText("metadata.json", text)));
    for (let count = 0; count < 30; count++) {
      expect(texts).to.include(await readFile(join(path, "metadata.json"), "utf8"));
    }
    await replacing;
    expect(await directory.readText("metadata.json")).to.equal(texts[2]);
    expect(await readdir(path)).to.deep.equal(["metadata.json"]);
  });

  it("keeps the old text when the new one can't be written", async () => {
    await directory.replaceText("metadata.json", "old");
    await mkdir(join(path, "metadata.json.tmp"));
    await failureOf(directory.replaceText("metadata.json", "new"));
    expect(await directory.readText("metadata.json")).to.equal("old");
  });

  it("removes a file, also one that is not there", async () => {
    await directory.replaceText("a", "text");
    await directory.remove("a");
    await directory.remove("a");
    expect(await directory.list()).to.deep.equal([]);
  });
});
