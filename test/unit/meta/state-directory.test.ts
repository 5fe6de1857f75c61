import { expect } from "chai";
import { constants } from "node:fs";
import {
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  readlink,
  rm,
  stat,
  symlink,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { payloadBuffers } from "../../../src/block/buffer-pool.js";
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
    for (const made of [path, join(parent, "deep")]) {
      expect((await stat(made)).mode & 0o777).to.equal(0o700);
    }
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

  it("is made once by many at the same time", async () => {
    const deeper = join(parent, "a", "b", "c");
    const opened = await Promise.all(Array.from({ length: 8 }, () => openStateDirectory(deeper)));
    expect(opened.map((one) => one.path)).to.deep.equal(Array.from({ length: 8 }, () => deeper));
  });

  it("uses no file that is closed: by then its descriptor is another file's", async () => {
    const page = Buffer.alloc(4096, 1);
    const closed = await directory.create("closed");
    await closed.writeDurably(0, [page]);
    await closed.close();
    const others = await Promise.all(["a", "b", "c"].map((name) => directory.create(name)));
    const uses = [
      closed.read(0, Buffer.alloc(1)),
      closed.write(0, [page]),
      closed.writeDurably(0, [page]),
      closed.punch(0, page.length),
      closed.sync(),
      closed.close(),
    ];
    expect(await Promise.all(uses.map(outcome))).to.deep.equal(uses.map(() => "EIO"));
    expect(others.map(({ sizeBytes }) => sizeBytes)).to.deep.equal([0, 0, 0]);
    await Promise.all(others.map((other) => other.close()));
    for (const name of ["a", "b", "c"]) expect((await stat(join(path, name))).size).to.equal(0);
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

  it("gives back the space of a hole that is punched, which reads as zeroes, and keeps the length of the file", async () => {
    const file = await directory.create("data");
    const content = Buffer.alloc(16 * 4096, 7);
    await file.write(0, [content]);
    await file.sync();
    const { blocks } = await stat(join(path, "data"));
    expect(await file.punch(4096, 32 * 4096)).to.equal(true);
    await file.sync();
    expect((await stat(join(path, "data"))).blocks).to.be.below(blocks);
    expect(file.sizeBytes).to.equal(content.length);
    await file.close();
    expect(await readFile(join(path, "data"))).to.deep.equal(content.fill(0, 4096));
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

  it("writes whole pages past the page cache, other content through it, all of it durably", async () => {
    const file = await directory.create("log");
    const buffer = payloadBuffers.take(8192);
    const pages = buffer.subarray(0, 8192);
    pages.fill(1);
    await file.writeDurably(4096, [pages.subarray(0, 4096), pages.subarray(4096)]);
    expect(await isOpenDirect(join(path, "log"))).to.equal(await canBeDirect(join(path, "log")));
    await file.writeDurably(10, [Buffer.from("short")]);
    await file.writeDurably(12288, [Buffer.alloc(4097, 2).subarray(1)]);
    const whole = Buffer.alloc(16384);
    await file.read(0, whole);
    const expected = Buffer.concat([Buffer.alloc(4096), Buffer.alloc(8192, 1), Buffer.alloc(4096, 2)]);
    expected.write("short", 10);
    expect(whole.equals(expected)).to.equal(true);
    expect(file.sizeBytes).to.equal(16384);
    await file.close();
    payloadBuffers.give(buffer);
  });

  it("is told of the failures of each write through the page cache, however many are under way: each has its own descriptor", async () => {
    const file = await directory.create("log");
    const write = (position: number): Promise<void> => file.writeDurably(position, [Buffer.from("short")]);
    const name = join(path, "log");
    const before = (await descriptors(name)).length;
    await write(1);
    await write(10);
    expect((await descriptors(name)).length - before, "one after the other").to.equal(1);
    await Promise.all([write(20), write(5000), write(9000)]);
    expect((await descriptors(name)).length - before, "three at once").to.equal(3);
    await file.close();
    expect(await descriptors(name)).to.deep.equal([]);
  });

  it("fails for good when a sync has failed: a later one would succeed over the loss", async () => {
    // It takes any write, also one that is to be durable, and can't be synced.
    await symlink("/dev/null", join(path, "log"));
    const file = await directory.open("log");
    const failure = await failureOf(file.sync());
    expect(failure.message).to.match(/fdatasync of .*log failed/);
    expect(await failureOf(file.sync())).to.equal(failure);
    expect(await failureOf(file.writeDurably(0, [Buffer.from("content")]))).to.equal(failure);
    await file.close();
  });

  it("does not fail for good for want of space", async () => {
    await symlink("/dev/full", join(path, "log"));
    const file = await directory.open("log");
    const write = (): Promise<void> => file.writeDurably(0, [Buffer.from("content")]);
    const first = await failureOf(write());
    expect(first).to.have.property("code", "ENOSPC");
    const second = await failureOf(write());
    expect(second).to.have.property("code", "ENOSPC");
    expect(second, "it was tried again").to.not.equal(first);
    await file.close();
  });

  it("shortens a file that is longer, and only such a one", async () => {
    const file = await directory.create("log");
    await file.write(0, [Buffer.from("content")]);
    await file.close();
    await directory.truncate("log", 9);
    expect(await readFile(join(path, "log"), "utf8")).to.equal("content");
    await directory.truncate("log", 4);
    expect(await readFile(join(path, "log"), "utf8")).to.equal("cont");
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

async function canBeDirect(path: string): Promise<boolean> {
  const file = await open(path, constants.O_RDONLY | constants.O_DIRECT).catch(() => null);
  await file?.close();
  return file !== null;
}

/** Whether this process has the file open with O_DIRECT. */
async function isOpenDirect(path: string): Promise<boolean> {
  for (const fd of await descriptors(path)) {
    const flags = /^flags:\s*(\d+)$/m.exec(await readFile(`/proc/self/fdinfo/${fd}`, "utf8"))?.[1] ?? "0";
    if ((parseInt(flags, 8) & constants.O_DIRECT) !== 0) return true;
  }
  return false;
}

/** What of this process has the file open. */
async function descriptors(path: string): Promise<string[]> {
  const found: string[] = [];
  for (const fd of await readdir("/proc/self/fd")) {
    const target = await readlink(`/proc/self/fd/${fd}`).catch(() => "gone");
    if (target === path) found.push(fd);
  }
  return found;
}
