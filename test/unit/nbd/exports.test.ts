import { expect } from "chai";

import type { BlockSize } from "../../../src/block/device.js";
import { ConfigError, StateError } from "../../../src/errors.js";
import { ExportTable } from "../../../src/nbd/server/exports.js";
import type { NbdExport } from "../../../src/nbd/server/exports.js";
import { MemoryDevice } from "../../tools/memory-device.js";

const exportNamed = (name: string, isDefault = false): NbdExport => ({
  name,
  isDefault,
  readOnly: false,
  device: new MemoryDevice(4096),
});

describe("ExportTable", () => {
  it("finds exports by name and lists them in the order they were added", () => {
    const table = new ExportTable();
    const [b, a] = [exportNamed("b"), exportNamed("a")];
    table.add(b);
    table.add(a);
    expect(table.list()).to.deep.equal([b, a]);
    expect(table.get("a")).to.equal(a);
    expect(table.get("c")).to.be.undefined;
    expect(table.remove("b")).to.be.true;
    expect(table.remove("b")).to.be.false;
    expect(table.list()).to.deep.equal([a]);
  });

  it("refuses a name that is taken with export-exists", () => {
    const table = new ExportTable();
    table.add(exportNamed("a"));
    expect(() => {
      table.add(exportNamed("a"));
    })
      .to.throw(StateError, '"a"')
      .with.property("code", "export-exists");
  });

  describe("refuses with bad-export what no client could live with:", () => {
    const context = (name: string) => ({ name, describe: () => Promise.resolve([]) });
    const sized = (sizeBytes: number): NbdExport["device"] => {
      const device = new MemoryDevice(4096);
      return Object.assign(device, { info: { ...device.info, sizeBytes } });
    };
    const withBlocks = (blockSize: Partial<BlockSize>): NbdExport["device"] => {
      const device = new MemoryDevice(4096);
      const { info } = device;
      return Object.assign(device, { info: { ...info, blockSize: { ...info.blockSize, ...blockSize } } });
    };
    const wrong: [string, Partial<NbdExport>][] = [
      ["a name of 4097 bytes of UTF-8", { name: "a".repeat(4095) + "é" }],
      ["a name with NUL", { name: "a\0" }],
      ["a description of 4097 bytes", { description: "a".repeat(4097) }],
      ["a context whose name is too long", { contexts: [context("a:".padEnd(4097, "b"))] }],
      ["a context without a namespace", { contexts: [context("allocation")] }],
      ["a context whose namespace is empty", { contexts: [context(":allocation")] }],
      ["a context that is there already", { contexts: [context("base:allocation")] }],
      ["two contexts of one name", { contexts: [context("a:b"), context("a:b")] }],
      ...[NaN, -1, 0.5, 2 ** 53].map((size): [string, Partial<NbdExport>] => [
        `a size of ${size}`,
        { device: sized(size) },
      ]),
      ["a minimum block size that is no power of two", { device: withBlocks({ minimumBytes: 3 }) }],
      ["a minimum block size of more than 64 KiB", { device: withBlocks({ minimumBytes: 131072 }) }],
      ["a preferred block size that is no power of two", { device: withBlocks({ preferredBytes: 5000 }) }],
      ["a maximum block size of 0", { device: withBlocks({ maximumBytes: 0 }) }],
    ];
    for (const [what, options] of wrong) {
      it(what, () => {
        const table = new ExportTable();
        expect(() => {
          table.add({ ...exportNamed("a"), ...options });
        })
          .to.throw(ConfigError)
          .with.property("code", "bad-export");
        expect(table.list()).to.deep.equal([]);
      });
    }
  });

  it("takes the empty name for an export of that name, the only one, or the default one, in this order", () => {
    const table = new ExportTable();
    expect(table.get("")).to.be.undefined;
    const [a, b, unnamed] = [exportNamed("a"), exportNamed("b", true), exportNamed("")];
    table.add(a);
    expect(table.get("")).to.equal(a);
    table.add(b);
    expect(table.get("")).to.equal(b);
    table.add(unnamed);
    expect(table.get("")).to.equal(unnamed);
    table.remove("");
    table.remove("b");
    table.add(exportNamed("c"));
    expect(table.get("")).to.be.undefined;
  });
});
