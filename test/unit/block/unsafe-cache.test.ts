import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { unsafeCache } from "../../../src/block/filters/unsafe-cache.js";
import { unsafeDirectory } from "../../../src/meta/unsafe-directory.js";
import { FailingDevice } from "../../tools/failing-device.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";

describe("cache unsafe", () => {
  it("a disk is never asked for stable storage before it is closed", async () => {
    const disk = new FailingDevice(new MemoryDevice(8192));
    const device = unsafeCache(disk);
    await device.write(0, Buffer.alloc(512, 1), Flag.Fua);
    await device.zero(512, 512, Flag.Fua | Flag.NoHole);
    await device.trim(4096, 4096, Flag.Fua);
    await device.flush();
    expect(disk.log.map(({ operation, flags }) => [operation, flags])).to.deep.equal([
      ["write", Flag.None],
      ["zero", Flag.NoHole],
      ["trim", Flag.None],
    ]);
    await device.close();
    expect(disk.log.filter(({ operation }) => operation === "flush")).to.have.length(1);
  });

  it("files of the state directory are never synced, and read back as written", async () => {
    const memory = new MemoryStateDirectory();
    const directory = unsafeDirectory(memory);
    const file = await directory.create("log");
    await file.write(0, [Buffer.from("before-image")]);
    await file.sync();
    await file.close();
    const again = await directory.open("log");
    const into = Buffer.alloc(12);
    await again.read(0, into);
    expect([into.toString(), again.sizeBytes, memory.count("sync")]).to.deep.equal(["before-image", 12, 0]);
  });
});
