import { expect } from "chai";
import { closeSync, ftruncateSync, openSync, readSync, statSync, writeSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { Libc } from "../../../src/os/libc.js";
import { FallocateMode, libc, Seek, SystemCallError } from "../../../src/os/libc.js";

const MEBIBYTE = 1024 * 1024;
const BAD_FD = 99999;

function loaded(): Libc {
  const system = libc();
  if (system === null) throw new Error("koffi does not load on this machine: npm install");
  return system;
}

async function failure(call: Promise<unknown>): Promise<unknown> {
  try {
    await call;
  } catch (error) {
    return error;
  }
  throw new Error("it did not fail");
}

describe("libc", () => {
  let directory: string;
  let path: string;
  let fd: number;

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "libc-"));
    path = join(directory, "file");
    fd = openSync(path, "w+");
  });

  afterEach(async () => {
    closeSync(fd);
    await rm(directory, { recursive: true });
  });

  it("punches holes past 4 GiB, frees their blocks and keeps the size", async () => {
    const offset = 5 * 1024 * MEBIBYTE;
    ftruncateSync(fd, offset + MEBIBYTE);
    writeSync(fd, Buffer.alloc(MEBIBYTE, 7), 0, MEBIBYTE, offset);
    const before = statSync(path).blocks;
    await loaded().fallocate(fd, FallocateMode.PunchHole, offset, MEBIBYTE / 2);
    expect(statSync(path).blocks).to.be.lessThan(before);
    expect(statSync(path).size).to.equal(offset + MEBIBYTE);
    const content = Buffer.alloc(2);
    readSync(fd, content, 0, 2, offset + MEBIBYTE / 2 - 1);
    expect(content).to.deep.equal(Buffer.from([0, 7]));
  });

  it("finds data and holes, and null past the last data", async () => {
    ftruncateSync(fd, MEBIBYTE);
    writeSync(fd, Buffer.alloc(4096, 7), 0, 4096, 65536);
    const system = loaded();
    expect(await system.seek(fd, 0, Seek.Data)).to.equal(65536);
    expect(await system.seek(fd, 65536, Seek.Hole)).to.equal(65536 + 4096);
    expect(await system.seek(fd, 131072, Seek.Data)).to.equal(null);
  });

  it("fails with the errno of the call, each with its own when many run at once", async () => {
    const calls = Array.from({ length: 600 }, async (_, index) => {
      const call =
        index % 2 === 0
          ? loaded().seek(BAD_FD, 0, Seek.Data)
          : loaded().fallocate(fd, FallocateMode.PunchHole, 0, 0);
      const error = await failure(call);
      expect(error).to.be.instanceOf(SystemCallError);
      return (error as SystemCallError).code;
    });
    const codes = await Promise.all(calls);
    expect(codes).to.deep.equal(codes.map((_, index) => (index % 2 === 0 ? "EBADF" : "EINVAL")));
  });

  it("reads what is cached into the buffer given and no further, or nothing at all", () => {
    writeSync(fd, Buffer.from("0123456789"));
    const around = Buffer.alloc(6, "-");
    const read = loaded().readCached(fd, around.subarray(1, 5), 3);
    expect([around.toString("ascii"), read]).to.be.deep.oneOf([
      ["-3456-", 4],
      ["------", 0],
    ]);
    expect(loaded().readCached(BAD_FD, around, 0)).to.equal(0);
  });

  it("sees the byte locks of other open files, not its own", () => {
    const other = openSync(path, "r+");
    try {
      const system = loaded();
      expect(system.lockByteShared(fd, 101)).to.equal(null);
      expect(system.foreignLock(fd, 101)).to.equal(null);
      expect(system.foreignLock(other, 101)).to.deep.equal({ pid: null });
      expect(system.foreignLock(other, 102)).to.equal(null);
      expect(system.lockByteShared(other, 101), "shared with shared").to.equal(null);
    } finally {
      closeSync(other);
    }
  });

  it("lets one open file at a time have the whole-file lock", () => {
    const other = openSync(path, "r+");
    expect(loaded().tryFlock(fd)).to.equal(true);
    expect(loaded().tryFlock(other)).to.equal(false);
    closeSync(other);
    expect(() => {
      loaded().setModified(BAD_FD, 0n);
    }).to.throw(SystemCallError, "EBADF");
    expect(() => loaded().tryFlock(BAD_FD)).to.throw(SystemCallError, "EBADF");
  });
});
