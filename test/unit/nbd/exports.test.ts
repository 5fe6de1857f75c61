import { expect } from "chai";

import { StateError } from "../../../src/errors.js";
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
