import { expect } from "chai";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { Flag } from "../../src/block/device.js";
import { openFileDevice } from "../../src/block/file/file-device.js";
import { StateError } from "../../src/errors.js";

const SIZE_BYTES = 1024 * 1024;

interface Finished {
  readonly exitCode: number;
  readonly stderr: string;
}

async function run(program: string, ...words: string[]): Promise<Finished> {
  try {
    const { stderr } = await promisify(execFile)(program, words);
    return { exitCode: 0, stderr };
  } catch (error) {
    const { code, stderr } = error as { code: unknown; stderr: unknown };
    if (typeof code !== "number") throw error;
    return { exitCode: code, stderr: String(stderr) };
  }
}

/** qemu-io with the image open, until `body` is done. */
async function whileQemuHolds(options: string[], path: string, body: () => Promise<void>): Promise<void> {
  const qemu = spawn("qemu-io", [...options, "-f", "raw", path], { stdio: ["pipe", "pipe", "inherit"] });
  const exited = once(qemu, "exit");
  try {
    // It reads commands once the image is open.
    qemu.stdin.write("length\n");
    let said = "";
    while (!said.includes("MiB")) said += String((await once(qemu.stdout, "data"))[0]);
    await body();
  } finally {
    qemu.stdin.end();
    await exited;
  }
}

async function refusal(path: string, writable: boolean): Promise<StateError> {
  try {
    await (await openFileDevice(path, { writable })).close();
  } catch (error) {
    expect(error).to.be.instanceOf(StateError);
    return error as StateError;
  }
  throw new Error("it was opened");
}

describe("image locks", () => {
  let directory: string;
  let path: string;

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "image-lock-"));
    path = join(directory, "disk.img");
    await (await openFileDevice(path, { writable: true, createSizeBytes: SIZE_BYTES })).close();
  });

  afterEach(async () => {
    await rm(directory, { recursive: true });
  });

  it("keep QEMU's writers and readers off a disk that we write", async () => {
    const device = await openFileDevice(path, { writable: true });
    try {
      const writer = await run("qemu-io", "-f", "raw", "-c", "write -P 9 0 4096", path);
      expect(writer.stderr).to.match(/Failed to get .*lock/);
      const copy = `${path}.copy`;
      const reader = await run("qemu-img", "convert", "-f", "raw", path, copy);
      expect(reader.stderr).to.match(/Failed to get .*lock/);
      const forced = await run("qemu-img", "convert", "--force-share", "-f", "raw", path, copy);
      expect(forced, "a reader that does not mind").to.have.property("exitCode", 0);
      const content = Buffer.alloc(4096, 1);
      await device.read(0, content);
      expect(content.equals(Buffer.alloc(4096))).to.equal(true);
    } finally {
      await device.close();
    }
    expect(await run("qemu-io", "-f", "raw", "-c", "write -P 9 0 4096", path)).to.have.property(
      "exitCode",
      0,
    );
  });

  it("let QEMU's readers, but not its writers, at a disk that we only read", async () => {
    const device = await openFileDevice(path, { writable: false });
    try {
      expect(await run("qemu-img", "convert", "-f", "raw", path, `${path}.copy`)).to.have.property(
        "exitCode",
        0,
      );
      const writer = await run("qemu-io", "-f", "raw", "-c", "write -P 9 0 4096", path);
      expect(writer.stderr).to.match(/Failed to get .*lock/);
    } finally {
      await device.close();
    }
  });

  it("keep us off a disk that QEMU writes, and say which", async () => {
    await whileQemuHolds([], path, async () => {
      for (const writable of [true, false]) {
        const { code, message } = await refusal(path, writable);
        expect(code).to.equal("disk-locked");
        expect(message).to.equal(`${path} is in use by another process (pid unknown): stop it first`);
      }
    });
    await (await openFileDevice(path, { writable: true })).close();
  });

  it("let us read a disk that QEMU only reads", async () => {
    await whileQemuHolds(["-r"], path, async () => {
      await (await openFileDevice(path, { writable: false })).close();
    });
  });

  it("keep two of our own devices from writing one disk, and leave the first one working", async () => {
    const device = await openFileDevice(path, { writable: true });
    expect((await refusal(path, true)).code).to.equal("disk-locked");
    expect((await refusal(path, false)).code).to.equal("disk-locked");
    await device.write(0, Buffer.from([5]), Flag.None);
    await device.close();
    const readers = [
      await openFileDevice(path, { writable: false }),
      await openFileDevice(path, { writable: false }),
    ];
    expect((await refusal(path, true)).code).to.equal("disk-locked");
    for (const reader of readers) await reader.close();
  });
});
