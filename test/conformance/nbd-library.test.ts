/** The package's door for other programs. */
import { expect } from "chai";
import { readFile, rm, writeFile } from "node:fs/promises";

import { succeed } from "../tools/process.js";

describe("nbd-replication/nbd", () => {
  it("runs the program in docs/nbd.md as it stands", async () => {
    const text = await readFile("docs/nbd.md", "utf8");
    const program = /```js\n(.*?)```/s.exec(text)?.[1] ?? "";
    // Inside the package, so that it finds itself by its name.
    const file = `dist/test/nbd-example-${process.pid}.mjs`;
    await writeFile(file, program);
    try {
      expect(await succeed(process.execPath, [file])).to.equal("done\n");
    } finally {
      await rm(file);
    }
  });
});
