import { spawnSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect } from "chai";

/** Seen from dist/test/unit/cli/. */
const BIN = fileURLToPath(new URL("../../../../bin/", import.meta.url));

type Role = "primary" | "secondary";

/** One mistake of each kind; test/unit/cli/mistakes.test.ts has them all. */
const MISTAKES: readonly (readonly [Role, readonly string[], string])[] = [
  ["primary", [], "no disk given: use --disk NAME=PATH"],
  ["primary", ["--disk", "a=/a", "--size", "12Q"], '--size: "12Q" is not a size'],
  ["primary", ["--disk"], "--disk: needs a value"],
  ["primary", ["--disk", "a=/a", "--foo"], "unknown option --foo"],
  ["primary", ["frobnicate"], '"frobnicate" is not one of the verbs '],
  ["primary", ["attach"], "--replica: is missing"],
  ["secondary", ["failover"], "failover can lose data: without a terminal to ask on, it needs --yes"],
];

function runBin(
  role: Role,
  args: readonly string[],
): { code: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(BIN, `repl-${role}`), ...args], {
    encoding: "utf8",
  });
  return { code: status, stdout, stderr };
}

describe("bin", () => {
  for (const [role, args, message] of MISTAKES) {
    it(`repl-${role} ${args.join(" ")}: one line, exit code 2`, () => {
      const { code, stdout, stderr } = runBin(role, args);
      expect(stderr.split("\n")).to.have.length(2).and.have.property("1", "");
      expect(stderr)
        .to.match(new RegExp(`^repl-${role}: .* \\(see repl-${role} --help\\)\n$`))
        .and.include(message);
      expect([code, stdout]).to.deep.equal([2, ""]);
    });
  }

  it("names file and key of a mistake in a config file", () => {
    const directory = mkdtempSync(join(tmpdir(), "bin-"));
    try {
      const file = join(directory, "pair.yaml");
      writeFileSync(file, "disk: a=/a\nspeed: 5\n");
      const { code, stderr } = runBin("secondary", ["--config", file]);
      expect(stderr).to.equal(`repl-secondary: ${file}: unknown key "speed" (see repl-secondary --help)\n`);
      expect(code).to.equal(2);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  it("exits with 1, and says why, when its output can't be written", () => {
    const full = openSync("/dev/full", "w");
    const { status, stderr } = spawnSync(process.execPath, [join(BIN, "repl-primary"), "--help"], {
      stdio: ["ignore", full, "pipe"],
      encoding: "utf8",
    });
    closeSync(full);
    expect(stderr).to.equal("standard output can't be written: ENOSPC: no space left on device, write\n");
    expect(status).to.equal(1);
  });

  it("exits with the code of an error that it can't tell", () => {
    const full = openSync("/dev/full", "w");
    const codes = [["status", "--state-dir", "/nonexistent"], ["frobnicate"]].map((args) => {
      const stdio = ["ignore", "pipe", full] as const;
      return spawnSync(process.execPath, [join(BIN, "repl-primary"), ...args], { stdio: [...stdio] }).status;
    });
    closeSync(full);
    expect(codes).to.deep.equal([4, 2]);
  });

  it("exits with 4 when it can't reach the node", () => {
    const { code, stderr } = runBin("secondary", ["status", "--state-dir", "/nonexistent"]);
    expect(code).to.equal(4);
    expect(stderr).to.equal(
      "repl-secondary: can't reach a QMP server at unix:/nonexistent/qmp.sock: connect ENOENT /nonexistent/qmp.sock: start the node, or name another by --state-dir, --config or --qmp\n",
    );
  });

  it("salvages nothing from a state directory that is not there, and doesn't make it", () => {
    const directory = mkdtempSync(join(tmpdir(), "bin-"));
    try {
      const path = join(directory, "nowhere");
      const { code, stderr } = runBin("secondary", ["salvage", "--output", "out", "--state-dir", path]);
      expect(stderr).to.equal(
        `repl-secondary: there is no state directory ${path}: name the node's by --state-dir\n`,
      );
      expect(code).to.equal(3);
      expect(readdirSync(directory)).to.deep.equal([]);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  it("shows its version", () => {
    const { code, stdout } = runBin("primary", ["--version"]);
    expect(stdout).to.match(/^\d+\.\d+\.\d+\n$/);
    expect(code).to.equal(0);
  });

  for (const role of ["primary", "secondary"] as const) {
    it(`repl-${role} --help names its options, defaults, verbs and exit codes, and nothing that isn't there`, () => {
      const { code, stdout } = runBin(role, ["--help"]);
      expect(code).to.equal(0);
      const own =
        role === "primary"
          ? ["--ack-mode", "checkpoint", "attach"]
          : ["--view", "--on-undo-error", "failover"];
      for (const word of [
        "--disk",
        "[default: 127.0.0.1:10809]",
        "--config",
        "--tls-certificates",
        "status",
        "metrics",
        "Exit codes",
        ...own,
      ]) {
        expect(stdout).to.include(word);
      }
      expect(stdout).to.not.include("invalidate");
    });
  }
});
