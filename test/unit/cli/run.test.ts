import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "chai";
import { z } from "zod";
import { renderMetrics } from "../../../src/cli/metrics.js";
import { primaryProgram } from "../../../src/cli/primary.js";
import { runProgram } from "../../../src/cli/run.js";
import { secondaryProgram } from "../../../src/cli/secondary.js";
import type { PrimaryConfig, SecondaryConfig } from "../../../src/config/schema.js";
import { DeviceError, MetadataError, StateError } from "../../../src/errors.js";
import { createLogger } from "../../../src/log.js";
import { qmpCommand } from "../../../src/qmp/command.js";
import type { QmpCommand } from "../../../src/qmp/command.js";
import { QmpServer } from "../../../src/qmp/server.js";
import type { NodeStatus } from "../../../src/status.js";
import { FakeTerminal } from "./fake-terminal.js";
import { NOW_MS, linkPart, plan, primaryStatus } from "./statuses.js";

interface Outcome {
  code: number;
  terminal: FakeTerminal;
}

describe("cli/run", () => {
  let stateDir: string;
  let server: QmpServer;
  /** Commands that the node was given, with their arguments. */
  let received: unknown[];
  let started: (PrimaryConfig | SecondaryConfig)[];
  let startOutcome: () => Promise<number>;
  let checkpointOutcome: () => Promise<unknown>;
  let status: NodeStatus;
  let switchOverOutcome: () => Promise<unknown>;
  /** What the node tells when it ends; null: nothing. */
  let lastWord: { reason: string | null } | null;

  beforeEach(async () => {
    stateDir = await mkdtemp(join(tmpdir(), "cli-"));
    received = [];
    started = [];
    startOutcome = () => Promise.resolve(0);
    checkpointOutcome = () => Promise.resolve({ epoch: 13 });
    status = primaryStatus;
    switchOverOutcome = () => Promise.resolve({ generation: "", pauseMs: 1 });
    lastWord = { reason: null };
    const log = createLogger({ level: "error", format: "json", destination: { write: () => undefined } });
    server = new QmpServer({ commands: nodeCommands(), log, version: "1" });
    await server.listen({ kind: "unix", path: join(stateDir, "qmp.sock") });
  });

  afterEach(async () => {
    await server.close();
    await rm(stateDir, { recursive: true });
  });

  function nodeCommands(): QmpCommand[] {
    const answers: Record<string, (args: Record<string, unknown>) => Promise<unknown>> = {
      "x-repl-checkpoint": () => checkpointOutcome(),
      "x-repl-switch-over": () => switchOverOutcome(),
      "x-repl-status": () => Promise.resolve({ ...status, uptimeSeconds: NOW_MS }),
      "x-repl-failover": (args) => Promise.resolve({ ...plan, to: args["to"], dryRun: args["dry-run"] }),
      "x-repl-attach": () => Promise.resolve({}),
      "x-repl-detach": () => Promise.resolve({}),
      quit: () => {
        setImmediate(() => {
          if (lastWord !== null) server.emit("X_REPL_ENDED", lastWord);
          void server.close();
        });
        return Promise.resolve({});
      },
    };
    return Object.entries(answers).map(([name, answer]) =>
      qmpCommand({
        name,
        arguments: z.record(z.string(), z.unknown()),
        run: (args) => {
          received.push([name, args]);
          return answer(args);
        },
      }),
    );
  }

  function start(config: PrimaryConfig | SecondaryConfig): Promise<number> {
    started.push(config);
    return startOutcome();
  }

  async function primary(...argv: string[]): Promise<Outcome> {
    const terminal = new FakeTerminal();
    return { code: await runProgram(primaryProgram(start), argv, terminal, { HOME: "/h" }), terminal };
  }

  async function secondary(answer: string | null, ...argv: string[]): Promise<Outcome> {
    const terminal = new FakeTerminal(answer);
    return { code: await runProgram(secondaryProgram(start), argv, terminal, { HOME: "/h" }), terminal };
  }

  it("runs the node without a verb, and ends with its exit code", async () => {
    startOutcome = () => Promise.resolve(7);
    const { code, terminal } = await primary("--disk", "a=/a", "--disk", "b=/b", "--size=1G");
    expect(code).to.equal(7);
    expect(started).to.have.length(1);
    expect(started[0]).to.deep.include({
      disks: [
        { name: "a", path: "/a" },
        { name: "b", path: "/b" },
      ],
      createSizeBytes: 1024 ** 3,
    });
    expect(terminal.complaints).to.deep.equal([]);
  });

  it("tells by its exit code why the node did not start", async () => {
    const causes: [Error, number][] = [
      [new StateError("locked", "another node\nuses /state"), 3],
      [new MetadataError("damaged", "metadata.json is damaged"), 1],
      [new DeviceError("EIO", "disk0 can't be read"), 1],
      [new TypeError("a bug"), 1],
    ];
    for (const [cause, expected] of causes) {
      startOutcome = () => Promise.reject(cause);
      const { code, terminal } = await primary("--disk", "a=/a");
      expect(code).to.equal(expected);
      expect(terminal.complaints).to.deep.equal([`repl-primary: ${cause.message.replace("\n", " ")}`]);
    }
  });

  it("makes a checkpoint", async () => {
    const { code, terminal } = await primary("checkpoint", "--state-dir", stateDir);
    expect(code).to.equal(0);
    expect(terminal.printed).to.deep.equal(["checkpoint done, epoch 13 begins"]);
    expect(received).to.deep.equal([["x-repl-checkpoint", {}]]);
  });

  it("finds the node by its socket as well", async () => {
    const { code } = await primary("checkpoint", "--qmp", `unix:${stateDir}/qmp.sock`);
    expect(code).to.equal(0);
  });

  it("exits with 3 when the node's state forbids it, with 1 when it failed", async () => {
    checkpointOutcome = () => Promise.reject(new StateError("dirty", "unreplicated writes"));
    const refused = await primary("checkpoint", "--state-dir", stateDir);
    expect([refused.code, refused.terminal.complaints]).to.deep.equal([
      3,
      ["repl-primary: unreplicated writes"],
    ]);
    checkpointOutcome = () => Promise.reject(new DeviceError("EIO", "log can't be written"));
    const failed = await primary("checkpoint", "--state-dir", stateDir);
    expect([failed.code, failed.terminal.complaints]).to.deep.equal([
      1,
      ["repl-primary: log can't be written"],
    ]);
  });

  it("exits with 4 and names the address when there is no node", async () => {
    await server.close();
    const { code, terminal } = await primary("status", "--state-dir", stateDir);
    expect(code).to.equal(4);
    expect(terminal.complaints).to.have.length(1);
    expect(terminal.complaints[0]).to.match(
      /^repl-primary: can't reach a QMP server at unix:.*qmp\.sock: .*: start the node, or name another by --state-dir, --config or --qmp$/,
    );
  });

  it("shows the status as text and as JSON", async () => {
    const text = await primary("status", "--state-dir", stateDir);
    expect(text.terminal.printed[0]).to.match(/^primary: running, replicating, epoch 12/);
    const json = await primary("status", "--json", "--state-dir", stateDir);
    expect(json.terminal.printed.map((line) => JSON.parse(line) as unknown)).to.deep.equal([
      { ...primaryStatus, uptimeSeconds: NOW_MS },
    ]);
  });

  it("prints the status as metrics", async () => {
    const { code, terminal } = await primary("metrics", "--state-dir", stateDir);
    expect([code, terminal.printed]).to.deep.equal([
      0,
      [renderMetrics({ ...primaryStatus, uptimeSeconds: NOW_MS })],
    ]);
    expect(received).to.deep.equal([["x-repl-status", {}]]);
  });

  it("watches the status until the node ends, and says that it did", async () => {
    const watching = primary("status", "--watch", "--json", "--state-dir", stateDir);
    while (received.length === 0) await new Promise((resolve) => setImmediate(resolve));
    await server.close();
    const { code, terminal } = await watching;
    expect(code).to.equal(4);
    expect(terminal.printed).to.have.length(1);
    expect(terminal.complaints).to.have.length(1);
  });

  it("stops the node and waits for its end", async () => {
    const { code, terminal } = await primary("stop", "--state-dir", stateDir);
    expect([code, terminal.printed]).to.deep.equal([0, ["stopped"]]);
  });

  for (const [what, word, complaint] of [
    ["with exit code 1", { reason: "the disk is full" }, "the node ended with exit code 1: the disk is full"],
    ["without a word", null, "the node ended without a word: its log may tell why"],
  ] as const) {
    it(`says of a node that it stopped and that ended ${what} what is known, and ends with 1`, async () => {
      lastWord = word;
      const { code, terminal } = await primary("stop", "--state-dir", stateDir);
      expect([code, terminal.printed, terminal.complaints]).to.deep.equal([
        1,
        [],
        [`repl-primary: ${complaint}`],
      ]);
    });
  }

  for (const [what, reason, complaint] of [
    [
      "with exit code 1",
      "whether the secondary has taken over is unknown",
      "the node ended with exit code 1 before it answered: whether the secondary has taken over is unknown",
    ],
    ["in order", null, "the node ended before it answered"],
  ] as const) {
    it(`ends a verb at the last word of a node that ended ${what}, which answers no more`, async () => {
      switchOverOutcome = () => {
        setImmediate(() => {
          server.emit("X_REPL_ENDED", { reason });
        });
        return new Promise(() => undefined);
      };
      const { code, terminal } = await primary("switch-over", "--state-dir", stateDir);
      expect([code, terminal.printed, terminal.complaints]).to.deep.equal([
        1,
        [],
        [`repl-primary: ${complaint}`],
      ]);
    });
  }

  it("attaches and detaches a replica", async () => {
    const options = ["--replica", "nbd://h", "--replica-qmp", "tcp:h:1"];
    const { terminal } = await primary("attach", ...options, "--state-dir", stateDir);
    expect(terminal.printed).to.deep.equal(["attached to nbd://h"]);
    await primary("detach", "--state-dir", stateDir);
    expect(received).to.deep.equal([
      ["x-repl-attach", { replica: "nbd://h", "replica-qmp": "tcp:h:1" }],
      ["x-repl-status", {}],
      ["x-repl-detach", {}],
    ]);
  });

  it("tells of a replica that is attached and can't be reached why", async () => {
    status = linkPart({ state: "disconnected", lastError: "can't connect to h:1: ECONNREFUSED" });
    const { code, terminal } = await primary("attach", "--replica", "nbd://h", "--state-dir", stateDir);
    expect([code, terminal.printed]).to.deep.equal([
      0,
      ["attached to nbd://h, which is tried again until it can be used: can't connect to h:1: ECONNREFUSED"],
    ]);
  });

  describe("failover", () => {
    const dryRun = ["x-repl-failover", { to: "checkpoint", "dry-run": true }];
    const real = ["x-repl-failover", { to: "checkpoint", "dry-run": false }];

    it("only tells with --dry-run", async () => {
      const { code, terminal } = await secondary(null, "failover", "--dry-run", "--state-dir", stateDir);
      expect(code).to.equal(0);
      expect(terminal.printed.join()).to.include("would lose 12 MiB");
      expect(received).to.deep.equal([dryRun]);
    });

    it("needs --yes without a terminal, and does nothing", async () => {
      const { code, terminal } = await secondary(null, "failover", "--state-dir", stateDir);
      expect(code).to.equal(2);
      expect(terminal.complaints).to.deep.equal([
        "repl-secondary: failover can lose data: without a terminal to ask on, it needs --yes (see repl-secondary --help)",
      ]);
      expect(received).to.deep.equal([]);
    });

    it("goes ahead with --yes, to the target named", async () => {
      const { code } = await secondary(null, "failover", "--yes", "--to", "latest", "--state-dir", stateDir);
      expect(code).to.equal(0);
      expect(received).to.deep.equal([["x-repl-failover", { to: "latest", "dry-run": false }]]);
    });

    it("shows the loss on a terminal before it asks, and goes on at yes", async () => {
      const { code, terminal } = await secondary("yes\n", "failover", "--state-dir", stateDir);
      expect(code).to.equal(0);
      expect(terminal.questions).to.have.length(1);
      expect(terminal.printed[0]).to.include("would lose 12 MiB");
      expect(received).to.deep.equal([dryRun, real]);
    });

    it("does nothing at any other answer", async () => {
      const { code, terminal } = await secondary("y", "failover", "--state-dir", stateDir);
      expect(code).to.equal(1);
      expect(terminal.complaints).to.deep.equal(["repl-secondary: it was not confirmed, nothing was done"]);
      expect(received).to.deep.equal([dryRun]);
    });
  });
});
