/** docs/nbd.md names a test for each thing that the server and the client are said to do. */
import { expect } from "chai";
import { readFile } from "node:fs/promises";

describe("docs/nbd.md", () => {
  it("names tests that exist, by file and title, for what ours does", async () => {
    const rows = (await readFile("docs/nbd.md", "utf8"))
      .split("\n")
      .filter((line) => /^\| [^|]* \| yes \|/.test(line));
    expect(rows.length).to.be.above(60);
    for (const row of rows) {
      const files = [...row.matchAll(/`((?:conformance|unit|e2e)\/[a-z/-]+)`(?: "([^"]+)")?/g)];
      expect(files, row).not.to.have.length(0);
      for (const [, file = "", title = ""] of files) {
        expect(await readFile(`test/${file}.test.ts`, "utf8"), file).to.include(title);
      }
    }
  });
});
