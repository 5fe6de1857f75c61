import { expect } from "chai";
import {
  formatSeconds,
  formatSize,
  parseDiskName,
  parseDuration,
  parseRate,
  parseSize,
} from "../../../src/config/units.js";
import { ConfigError } from "../../../src/errors.js";

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;

describe("config/units", () => {
  describe("sizes", () => {
    const good: readonly (readonly [string, number])[] = [
      ["4096", 4096],
      ["0", 0],
      ["512B", 512],
      ["1k", KIB],
      ["1K", KIB],
      ["512M", 512 * MIB],
      ["1G", GIB],
      ["1GiB", GIB],
      ["1.5G", 1.5 * GIB],
      ["2T", 2048 * GIB],
    ];
    for (const [text, bytes] of good) {
      it(`reads ${text} as ${bytes}`, () => {
        expect(parseSize(text)).to.equal(bytes);
      });
    }
    for (const text of [
      "",
      "G",
      "1GB",
      "1 G",
      "-1",
      "+1",
      "1e3",
      "0x10",
      "1.",
      ".5G",
      "1GG",
      "1.3",
      "1.0001K",
      "9P",
      "16E",
    ]) {
      it(`refuses "${text}" and repeats it`, () => {
        expect(() => parseSize(text)).to.throw(ConfigError, `"${text}"`);
      });
    }
  });

  describe("durations", () => {
    const good: readonly (readonly [string, number])[] = [
      ["0", 0],
      ["500ms", 500],
      ["5s", 5000],
      ["1.5s", 1500],
      ["2m", 120_000],
      ["1h", 3_600_000],
    ];
    for (const [text, durationMs] of good) {
      it(`reads ${text} as ${durationMs} ms`, () => {
        expect(parseDuration(text)).to.equal(durationMs);
      });
    }
    for (const text of ["", "5", "s", "5 s", "-5s", "5sec", "constructor", "1d", "600h", "25000h"]) {
      it(`refuses "${text}" and repeats it`, () => {
        expect(() => parseDuration(text)).to.throw(ConfigError, `"${text}"`);
      });
    }
  });

  it("reads rates with and without /s", () => {
    expect(["100M", "100M/s", "0"].map(parseRate)).to.deep.equal([100 * MIB, 100 * MIB, 0]);
    expect(() => parseRate("fast")).to.throw(ConfigError, '"fast" is not a rate');
  });

  it("takes names of disks that are safe as file and export names", () => {
    const longest = "x".repeat(64);
    for (const name of ["disk0", "a", "A.b_c-1", longest]) expect(parseDiskName(name)).to.equal(name);
    for (const name of ["", ".", "..", "a/b", "a b", "ä", `${longest}x`, "a\n"]) {
      expect(() => parseDiskName(name), name).to.throw(ConfigError);
    }
  });

  it("shows sizes with three digits", () => {
    const sizes = [0, 512, 1023, 1024, 1536, 4096, 10 * MIB, 1023.6 * KIB, 1.5 * GIB, 12_345_678, 1e15];
    expect(sizes.map(formatSize)).to.deep.equal([
      "0 B",
      "512 B",
      "1023 B",
      "1 KiB",
      "1.5 KiB",
      "4 KiB",
      "10 MiB",
      "1 MiB",
      "1.5 GiB",
      "11.8 MiB",
      "909 TiB",
    ]);
  });

  it("shows times in their two largest units", () => {
    const times = [0, 0.04, 0.44, 3, 9.96, 59.4, 59.6, 200, 3600, 18_720, 273_600, 86_400];
    expect(times.map(formatSeconds)).to.deep.equal([
      "0 s",
      "0 s",
      "0.4 s",
      "3 s",
      "10 s",
      "59 s",
      "1 min",
      "3 min 20 s",
      "1 h",
      "5 h 12 min",
      "3 d 4 h",
      "1 d",
    ]);
  });
});
