import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect } from "chai";
import { manPage } from "../../../src/cli/man-page.js";
import { primaryProgram } from "../../../src/cli/primary.js";
import { secondaryProgram } from "../../../src/cli/secondary.js";
import { readVersion } from "../../../src/version.js";

const neverRun = (): never => {
  throw new Error("a man page starts no node");
};

describe("man pages", () => {
  for (const program of [primaryProgram(neverRun), secondaryProgram(neverRun)]) {
    it(`docs/man/${program.name}.1 is what the command line has, as "npm run man" writes it`, () => {
      const file = fileURLToPath(new URL(`../../../../docs/man/${program.name}.1`, import.meta.url));
      expect(readFileSync(file, "utf8")).to.equal(manPage(program, readVersion()));
    });
  }

  it("have characters that groff takes for something else escaped, and no text that groff takes for a request", () => {
    const page = manPage(
      {
        ...primaryProgram(neverRun),
        examples: [".SH it's a \\ ~/x-y"],
      },
      "1.2.3",
    );
    expect(page).to.contain("\n\\&.SH it\\(aqs a \\e \\(ti/x\\-y\n");
    expect(page).to.match(/^\.TH REPL\\-PRIMARY 1 "" "nbd\\-replication 1\.2\.3"$/m);
  });
});
