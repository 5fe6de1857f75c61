import { expect } from "chai";
import { primaryProgram } from "../../../src/cli/primary.js";
import { runProgram } from "../../../src/cli/run.js";
import { secondaryProgram } from "../../../src/cli/secondary.js";
import { FakeTerminal } from "./fake-terminal.js";

type Role = "primary" | "secondary";

/** Command lines with one mistake each, and what the line on stderr must say. */
const MISTAKES: readonly (readonly [Role, readonly string[], string])[] = [
  ["primary", [], "no disk given: use --disk NAME=PATH"],
  ["primary", ["--disk", "x"], '--disk: "x" is not NAME=PATH'],
  ["primary", ["--disk"], "--disk: needs a value"],
  ["primary", ["--disk", "a=/a", "--size", "12Q"], '--size: "12Q" is not a size'],
  ["primary", ["--disk", "a=/a", "--foo"], "unknown option --foo"],
  ["primary", ["--disk", "a=/a", "-x"], "unknown option -x"],
  ["primary", ["--disk", "a=/a", "--no-json"], "unknown option --no-json"],
  ["primary", ["--disk", "a=/a", "--view", "h:1"], "unknown option --view"],
  ["primary", ["--disk", "a=/a", "--tls", "on"], '--tls: "on" needs --tls-certificates DIR'],
  [
    "primary",
    ["--disk", "a=/a", "--tls-verify-peer=no"],
    '--tls-verify-peer: takes no value, "no" was given',
  ],
  ["primary", ["status", "--tls-psk", "/k"], "TLS is for QMP over TCP: use it with --qmp tcp:HOST:PORT"],
  ["primary", ["--constructor", "x"], "can't make sense of the command line"],
  ["primary", ["frobnicate"], '"frobnicate" is not one of the verbs '],
  [
    "primary",
    ["verfy", "--repair"],
    '"verfy" is not one of the verbs checkpoint, status, metrics, attach, detach, switch-over, verify, stop',
  ],
  ["primary", ["verify", "--rate", "fast"], '--rate: "fast" is not a rate'],
  ["primary", ["failover"], '"failover" is not one of the verbs '],
  ["primary", ["--", "x"], 'unexpected argument "x"'],
  ["primary", ["--disk", "a=/a", "--config", "/nowhere.yaml"], '--config: can\'t read "/nowhere.yaml"'],
  ["primary", ["status", "--disk", "a=/a"], 'unknown option --disk for "status"'],
  ["primary", ["status", "extra"], 'unknown argument "extra" for "status"'],
  ["primary", ["status", "--json=yes"], '--json: takes no value, "yes" was given'],
  ["primary", ["status", "--qmp", "nowhere"], '--qmp: "nowhere" is not an address'],
  ["primary", ["status", "--qmp", "h:1", "--qmp", "h:2"], "--qmp: may be given once, not 2 times"],
  ["primary", ["attach"], "--replica: is missing"],
  ["primary", ["attach", "--replica", "http://x"], '--replica: "http://x"'],
  // It reads a state directory of this host, whatever node that would name.
  ["secondary", ["salvage", "--output", "d", "--qmp", "tcp:h:1"], 'unknown option --qmp for "salvage"'],
  ["secondary", ["failover"], "failover can lose data: without a terminal to ask on, it needs --yes"],
  ["secondary", ["failover", "--to", "yesterday"], '--to: "yesterday" is not one of checkpoint, latest'],
  ["secondary", ["failover", "--dry-run=yes"], '--dry-run: takes no value, "yes" was given'],
  [
    "primary",
    ["--disk", "a=/a", "--on-congestion", "detach"],
    "--on-congestion: detach needs --ack-mode async",
  ],
  [
    "primary",
    ["--disk", "a=/a", "--ack-mode", "async", "--on-congestion", "detach", "--on-replica-error", "stop"],
    "--on-replica-error: stop can't be combined with --on-congestion detach",
  ],
  ["secondary", ["commit"], '"commit" is not one of the verbs '],
  [
    "secondary",
    ["--disk", "a=/a", "--discard-local-changes"],
    "--discard-local-changes gives up what only this node has: without a terminal to ask on, it needs --yes",
  ],
  ["secondary", ["--disk", "a=/a", "--yes=no"], '--yes: takes no value, "no" was given'],
  ["secondary", ["--disk", "a=/a", "--on-undo-error", "panic"], '--on-undo-error: "panic" is not one of'],
];

describe("cli/mistakes", () => {
  const start = (): Promise<number> => expect.fail("the node was started");
  const programs = { primary: primaryProgram(start), secondary: secondaryProgram(start) };

  for (const [role, args, message] of MISTAKES) {
    it(`repl-${role} ${args.join(" ")}: one line that says what is wrong, exit code 2`, async () => {
      const terminal = new FakeTerminal();
      const code = await runProgram(programs[role], args, terminal, { HOME: "/h" });
      expect(terminal.complaints).to.have.length(1);
      const [line = ""] = terminal.complaints;
      expect(line)
        .to.match(new RegExp(`^repl-${role}: .* \\(see repl-${role} --help\\)$`))
        .and.include(message);
      expect([code, terminal.printed]).to.deep.equal([2, []]);
    });
  }
});
