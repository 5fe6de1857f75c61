/** The package's door for other programs. */
import { expect } from "chai";
import { readFile, rm, writeFile } from "node:fs/promises";

import { succeed } from "../tools/process.js";

describe("nbd-replication/nbd", () => {
  it("runs the program in docs/nbd.md as it stands", async () => {
    const file = await exampleAs("mjs");
    try {
      expect(await succeed(process.execPath, [file])).to.equal("done\n");
    } finally {
      await rm(file);
    }
  });

  it("has typings that the program in docs/nbd.md agrees with, strictly", async () => {
    const file = await exampleAs("mts");
    const options = ["--ignoreConfig", "--noEmit", "--strict", "--skipLibCheck"];
    const target = ["--module", "nodenext", "--target", "es2022", "--types", "node"];
    try {
      await succeed(process.execPath, ["node_modules/typescript/bin/tsc", ...options, ...target, file]);
    } finally {
      await rm(file);
    }
  });
});

/** Inside the package, so that it finds itself by its name. */
async function exampleAs(extension: string): Promise<string> {
  const text = await readFile("docs/nbd.md", "utf8");
  const file = `dist/test/nbd-example-${process.pid}.${extension}`;
  await writeFile(file, /```js\n(.*?)```/s.exec(text)?.[1] ?? "");
  return file;
}
