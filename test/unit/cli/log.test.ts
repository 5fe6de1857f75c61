import { spawnSync } from "node:child_process";
import { expect } from "chai";
import { createLogger } from "../../../src/log.js";

describe("log", () => {
  function lines(format: "pretty" | "json" | null): string[] {
    const written: string[] = [];
    const destination = { write: (line: string): void => void written.push(line) };
    const log = createLogger({ level: "info", format, destination });
    log.debug("not shown");
    log.child({ component: "qmp" }).info({ disk: "disk0" }, "shown");
    return written;
  }

  it("writes JSON where there is no terminal", () => {
    const [line = "", ...more] = lines(null);
    expect(more).to.deep.equal([]);
    expect(JSON.parse(line)).to.include({ level: 30, component: "qmp", disk: "disk0", msg: "shown" });
    expect(lines("json")).to.have.length(1);
  });

  it("writes for people when told so", () => {
    const [line = ""] = lines("pretty");
    expect(line).to.match(/^\[\d\d:\d\d:\d\d\.\d{3}\] INFO: shown {"component":"qmp","disk":"disk0"}\n$/);
  });

  it("writes to stderr, and loses nothing when the process exits at once", () => {
    const module = new URL("../../../src/log.js", import.meta.url).href;
    for (const format of ["json", "pretty"]) {
      const script =
        `const { createLogger } = await import(${JSON.stringify(module)});` +
        `const log = createLogger({ level: "info", format: "${format}" });` +
        `for (let i = 0; i < 100; i += 1) log.info("line " + i); process.exit(0);`;
      const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
        encoding: "utf8",
      });
      expect(stdout).to.equal("");
      expect(stderr.trimEnd().split("\n")).to.have.length(100);
    }
  });
});
