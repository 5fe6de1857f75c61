import { expect } from "chai";
import { readFile, stat } from "node:fs/promises";

import { Lab } from "../../../bench/lab.js";
import { parseBenchOptions } from "../../../bench/options.js";
import { fillDisk } from "../../../bench/systems/disk-fill.js";
import { cpuMicroseconds, peakMemoryBytes } from "../../../bench/usage.js";
import { allocatedBytes } from "../../tools/disk-files.js";

const MEBIBYTE = 2 ** 20;

describe("parts of the benchmark", () => {
  it("a disk has data at its beginning, none of it zero throughout, and a hole behind", async () => {
    const lab = new Lab();
    const workspace = await lab.workspace();
    const path = workspace.path("disk.img");
    await fillDisk(path, { sizeBytes: 64 * MEBIBYTE, dataBytes: 3 * MEBIBYTE });
    const content = await readFile(path);
    expect(content.length).to.equal(64 * MEBIBYTE);
    for (let at = 0; at < 3 * MEBIBYTE; at += 4096) {
      expect(content.subarray(at, at + 4096).some((byte) => byte !== 0)).to.equal(true);
    }
    expect(content.subarray(3 * MEBIBYTE).every((byte) => byte === 0)).to.equal(true);
    expect(await allocatedBytes(path)).to.be.within(3 * MEBIBYTE, 4 * MEBIBYTE);
    await lab.close();
  });

  it("a lab that is closed twice at once has ended its processes when either says so", async () => {
    for (const first of [0, 1]) {
      const lab = new Lab();
      const workspace = await lab.workspace();
      const sleeper = await workspace.start("sleep", ["60"]);
      const ends = [lab.close(), lab.close()];
      await ends[first];
      expect(sleeper.isRunning).to.equal(false);
      await Promise.all(ends);
    }
  });

  it("a lab that closes ends processes, removes files and starts nothing more", async () => {
    const lab = new Lab();
    const workspace = await lab.workspace();
    const { directory } = workspace;
    const sleeper = await workspace.start("sleep", ["60"]);
    await lab.close();
    expect(sleeper.isRunning).to.equal(false);
    let failure: unknown = null;
    await stat(directory).catch((error: unknown) => (failure = error));
    expect(failure).to.have.property("code", "ENOENT");
    failure = null;
    await lab.workspace().catch((error: unknown) => (failure = error));
    expect(failure).to.be.instanceOf(Error).with.property("message", "interrupted");
  });

  it("CPU time is that of all threads, whatever the process is named, as the process itself sees it", async () => {
    const before = await cpuMicroseconds(process.pid);
    const { user, system } = process.cpuUsage();
    expect(before).to.be.closeTo(user + system, 1e6);
    expect(await peakMemoryBytes(process.pid)).to.be.greaterThan(10 * MEBIBYTE);
  });

  it("without a mode systems are compared; with modes only these are run, whatever their order", () => {
    expect(parseBenchOptions([]).modes).to.deep.equal(["comparison"]);
    const options = parseBenchOptions(["--report", "--micro", "one.json", "two.json"]);
    expect(options.modes).to.deep.equal(["micro", "report"]);
    expect(options.files).to.deep.equal(["one.json", "two.json"]);
  });

  it("systems keep the order of the tables, ours first, and unknown ones are refused", () => {
    expect(parseBenchOptions(["--systems", "qemu-nbd,ours"]).systems).to.deep.equal(["ours", "qemu-nbd"]);
    expect(() => parseBenchOptions(["--systems", "drbd"])).to.throw(RangeError, /no system drbd/);
    expect(() => parseBenchOptions(["--rounds", "0"])).to.throw(RangeError, /--rounds 0/);
  });
});
