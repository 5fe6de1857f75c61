import { spawnSync } from "node:child_process";
import { closeSync, constants, openSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
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

  const module = JSON.stringify(new URL("../../../src/log.js", import.meta.url).href);

  it("loses nothing at the end of a process if its reader is only slow", () => {
    const script =
      `const { createLogger } = await import(${module});` +
      `const log = createLogger({ level: "info", format: "json" });` +
      `for (let i = 0; i < 100; i += 1) log.info("x".repeat(10_000)); process.exit(0);`;
    const { stdout } = spawnSync(
      "sh",
      ["-c", `"$0" --input-type=module -e '${script}' 2>&1 | (sleep 0.2; cat)`, process.execPath],
      { encoding: "utf8", timeout: 20_000 },
    );
    expect(stdout.trimEnd().split("\n")).to.have.length(100);
  });

  it("costs the process nothing if it can't be written: a full file system", () => {
    const full = openSync("/dev/full", "w");
    for (const end of ["", "process.exit(0);"]) {
      const script =
        `const { createLogger } = await import(${module});` +
        `const log = createLogger({ level: "info", format: "json" });` +
        `for (let i = 0; i < 3; i += 1) { log.info("line " + i); await new Promise((go) => setTimeout(go, 20)); }` +
        `log.info("last"); console.log("alive"); ${end}`;
      const { stdout, status } = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
        stdio: ["ignore", "pipe", full],
        encoding: "utf8",
        timeout: 20_000,
      });
      expect([stdout, status], end).to.deep.equal(["alive\n", 0]);
    }
    closeSync(full);
  });

  it("does not keep a process from ending whose log nobody reads any more", async () => {
    const directory = await mkdtemp(join(tmpdir(), "log-"));
    const pipe = join(directory, "pipe");
    expect(spawnSync("mkfifo", [pipe]).status).to.equal(0);
    const reader = openSync(pipe, constants.O_RDWR | constants.O_NONBLOCK);
    const full = openSync(pipe, constants.O_WRONLY);
    const script =
      `const { createLogger } = await import(${module});` +
      `const log = createLogger({ level: "info", format: "json" });` +
      `for (let i = 0; i < 3; i += 1) { log.info("x".repeat(100_000)); await new Promise((go) => setTimeout(go, 20)); }` +
      `console.log("done");`;
    const { stdout, status } = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
      stdio: ["ignore", "pipe", full],
      encoding: "utf8",
      timeout: 20_000,
    });
    closeSync(full);
    closeSync(reader);
    await rm(directory, { recursive: true });
    expect([stdout, status]).to.deep.equal(["done\n", 0]);
  });

  it("loses the lines that did not fit, and none of those before and after them", async () => {
    const directory = await mkdtemp(join(tmpdir(), "log-"));
    const [first, second] = [join(directory, "first"), join(directory, "second")];
    const script =
      `const { createLogger } = await import(${module}); const fs = await import("node:fs");` +
      `const log = createLogger({ level: "info", format: "json" });` +
      `for (const letter of "abc") log.info(letter.repeat(3000));` +
      `while (fs.statSync("${first}").size < 4096) await fs.promises.stat(".");` +
      `for (let i = 0; i < 3; i += 1) await fs.promises.stat(".");` +
      `fs.closeSync(2); fs.openSync("${second}", "w"); log.info("kept");`;
    // A file may have 4096 bytes.
    const { status } = spawnSync(
      "sh",
      ["-c", `ulimit -f 8; exec "$0" --input-type=module -e '${script}' 2> "${first}"`, process.execPath],
      { env: { ...process.env, UV_THREADPOOL_SIZE: "1" }, timeout: 20_000 },
    );
    expect(status).to.equal(0);
    const text = (await readFile(first, "utf8")) + (await readFile(second, "utf8"));
    await rm(directory, { recursive: true });
    const [whole, cut, ...after] = text.trimEnd().split("\n");
    const parsed = [whole, ...after].map((line = "") => JSON.parse(line) as Record<string, unknown>);
    expect(parsed.map(({ msg }) => msg)).to.deep.equal([
      "a".repeat(3000),
      "kept",
      "lines of the log were lost",
    ]);
    expect(cut).to.match(/^\{.*b$/);
    expect(parsed[2]).to.deep.include({ lines: 2, reason: "EFBIG: file too large, write" });
  });

  it("tells how many lines were lost when the next one can be written", async () => {
    const directory = await mkdtemp(join(tmpdir(), "log-"));
    const file = join(directory, "log");
    const full = openSync("/dev/full", "w");
    const script =
      `const { createLogger } = await import(${module}); const fs = await import("node:fs");` +
      `const log = createLogger({ level: "info", format: "json" });` +
      // Behind the line that is lost, by the one thread.
      `for (let i = 0; i < 3; i += 1) { log.info("lost"); await fs.promises.stat("."); }` +
      `fs.closeSync(2); fs.openSync(${JSON.stringify(file)}, "w"); log.info("kept");`;
    const { status } = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
      stdio: ["ignore", "pipe", full],
      env: { ...process.env, UV_THREADPOOL_SIZE: "1" },
      timeout: 20_000,
    });
    closeSync(full);
    expect(status).to.equal(0);
    const text = await readFile(file, "utf8");
    await rm(directory, { recursive: true });
    const written = text
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(written.map(({ msg }) => msg)).to.deep.equal(["kept", "lines of the log were lost"]);
    expect(written[1]).to.deep.include({ lines: 3, reason: "ENOSPC: no space left on device, write" });
  });
});
