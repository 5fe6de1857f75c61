/** Verbs that come at the wrong moment, or to nobody: refused with the reason, and nothing has changed. */
import { expect } from "chai";
import { once } from "node:events";
import { createServer } from "node:net";

import { expectPattern, writePattern } from "../tools/clients.js";
import { NodeProcess, runNode } from "../tools/node-process.js";
import { type Pair, startPair } from "../tools/pair.js";
import { Exit, expectRefusal } from "../tools/refusal.js";
import { failureOf } from "../tools/outcome.js";
import { useWorkspace } from "../tools/workspace.js";

describe("verb at the wrong moment", () => {
  const workspace = useWorkspace();

  const startPrimary = (...options: string[]): Promise<NodeProcess> =>
    NodeProcess.start(workspace, "primary", [
      ...["--disk", `disk0=${workspace.path("disk0.img")}`, "--size", "4M"],
      ...["--listen", `unix:${workspace.path("guest.sock")}`],
      ...options,
    ]);

  const startSecondary = (size = "4M"): Promise<NodeProcess> =>
    NodeProcess.start(workspace, "secondary", [
      ...["--disk", `disk0=${workspace.path("secondary.img")}`, "--size", size],
      ...["--listen", "127.0.0.1:0", "--qmp", "tcp:127.0.0.1:0"],
    ]);

  it("checkpoint, detach: without a replica", async () => {
    const primary = await startPrimary();
    expectRefusal(
      await primary.verb("checkpoint"),
      Exit.WrongState,
      "checkpoint refused: no replica is attached",
    );
    expectRefusal(await primary.verb("detach"), Exit.WrongState, "no replica is attached");
    expect((await primary.status()).stage).to.equal("none");
  });

  it("attach: to a second replica, to nonsense, to what can't be used", async () => {
    const pair = await startPair(workspace);
    const replica = ["--replica", `nbd://${pair.addresses.replication}`];
    const attach = (...options: string[]): ReturnType<NodeProcess["verb"]> =>
      pair.primary.verb("attach", ...options);
    expectRefusal(await attach(...replica), Exit.WrongState, "is attached already");
    expectRefusal(await attach("--replica", "somewhere"), Exit.Usage, '--replica: "somewhere"');
    await pair.primary.succeed("detach");
    expectRefusal(
      await attach(...replica, "--replica-qmp", "nowhere"),
      Exit.Usage,
      '--replica-qmp: "nowhere" is not an address',
    );
    await pair.primary.succeed("attach", ...replica, "--replica-qmp", `tcp:${pair.addresses.qmp}`);
    await pair.synchronised();
  });

  it("attach: periodic checkpoints of a replica that a manager drives are refused, and none are told of", async () => {
    const secondary = await startSecondary();
    const primary = await NodeProcess.start(workspace, "primary", [
      ...["--disk", `disk0=${workspace.path("primary.img")}`, "--size", "4M", "--checkpoint-interval", "5s"],
      ...["--listen", `unix:${workspace.path("guest.sock")}`],
    ]);
    const attach = ["attach", "--replica", `nbd://${await secondary.tcpAddress("replication")}`];
    expectRefusal(
      await primary.verb(...attach, "--checkpoint-interval", "1s"),
      Exit.Usage,
      "checkpoint-interval: needs replica-qmp: without it a manager drives the checkpoints",
    );
    expect((await primary.status()).primary?.link.state).to.equal("detached");
    await primary.succeed(...attach);
    expect((await primary.status()).primary?.checkpointIntervalMs).to.equal(0);
  });

  it("attach: of a replica that is refused, its interval is not told of either", async () => {
    const secondary = await startSecondary("2M");
    const primary = await startPrimary("--checkpoint-interval", "5s");
    const attach = [
      "--replica-qmp",
      `tcp:${await secondary.tcpAddress("qmp")}`,
      "--checkpoint-interval",
      "1s",
    ];
    const replica = `nbd://${await secondary.tcpAddress("replication")}`;
    expectRefusal(
      await primary.verb("attach", "--replica", replica, ...attach),
      Exit.Failed,
      "start the smaller one with --grow",
    );
    expect((await primary.status()).primary?.checkpointIntervalMs).to.equal(5000);
  });

  const itself = (uri: string): string => `the replica "${uri}" is this node itself, which listens there`;

  it("attach, and start: of a primary to itself", async () => {
    const path = workspace.path("guest.sock");
    const guests = `nbd+unix:///?socket=${path}`;
    expectRefusal(
      await runNode("primary", [
        ...["--disk", `disk0=${workspace.path("disk0.img")}`, "--listen", `unix:${path}`],
        ...["--replica", guests, "--state-dir", workspace.path("none")],
      ]),
      Exit.Usage,
      itself(guests),
    );
    const primary = await startPrimary("--listen", "0.0.0.0:0");
    const [, port = ""] = (await primary.tcpAddress("guest")).split(":");
    for (const uri of [guests, `nbd://127.0.0.1:${port}`]) {
      expectRefusal(await primary.verb("attach", "--replica", uri), Exit.Usage, itself(uri));
    }
    expect((await primary.status()).primary?.link).to.include({ state: "detached", replica: null });
  });

  it("attach: of a node that was promoted to its own view", async () => {
    const pair = await startPair(workspace);
    await pair.checkpoint();
    await pair.primary.succeed("stop");
    await pair.failOver();
    const view = `nbd+unix:///?socket=${pair.secondary.stateDirectory}/view.sock`;
    const attach = ["attach", "--replica", view, "--qmp", `unix:${pair.secondary.qmpPath}`];
    expectRefusal(await runNode("primary", attach), Exit.Usage, itself(view));
    expect((await pair.secondary.status()).jobs).to.deep.equal([]);
  });

  it("detach, write, attach: only what changed is sent, and the checkpoint has it", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "16M");
    await pair.checkpoint();
    await pair.primary.succeed("detach");
    await writePattern(pair.primaryUri(), 0x22, "4M", "1M");
    await expectPattern(pair.viewUri(), [0x11, "0", "16M"]);
    const addresses = ["--replica", `nbd://${pair.addresses.replication}`];
    await pair.primary.succeed("attach", ...addresses, "--replica-qmp", `tcp:${pair.addresses.qmp}`);
    await pair.synchronised();
    await expectPattern(pair.viewUri(), [0x11, "0", "4M"], [0x22, "4M", "1M"], [0x11, "5M", "11M"]);
  });

  it("failover: without --yes, to a wrong target, with nothing to fail over to", async () => {
    const secondary = await startSecondary();
    expectRefusal(
      await secondary.verb("failover"),
      Exit.Usage,
      "without a terminal to ask on, it needs --yes",
    );
    expectRefusal(
      await secondary.verb("failover", "--yes", "--to", "yesterday"),
      Exit.Usage,
      '--to: "yesterday" is not one of checkpoint, latest',
    );
    const nothing = "Block replication is not running";
    for (const options of [["--yes"], ["--yes", "--to", "latest"], ["--dry-run"]]) {
      expectRefusal(await secondary.verb("failover", ...options), Exit.WrongState, nothing);
    }
    expect(await secondary.status()).to.deep.include({ stage: "none", error: null });
  });

  it("failover: asked of a primary", async () => {
    const { stateDirectory } = await startPrimary();
    for (const option of ["--yes", "--dry-run"]) {
      expectRefusal(
        await runNode("secondary", ["failover", option, "--state-dir", stateDirectory]),
        Exit.WrongState,
        "this is a primary: there is nothing to fail over; ask its secondary, or hand over to that (switch-over)",
      );
    }
  });

  it("failover: a second time, by whatever name", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "64k");
    await pair.checkpoint();
    await writePattern(pair.primaryUri(), 0x22, "0", "64k");
    await pair.failOver();
    const { generation } = await pair.secondary.status();
    for (const options of [["--yes"], ["--yes", "--to", "latest"], ["--dry-run"]]) {
      expectRefusal(
        await pair.secondary.verb("failover", ...options),
        Exit.WrongState,
        "failover is done already",
      );
    }
    expect(await pair.secondary.status()).to.deep.include({ stage: "done", generation });
    await expectPattern(pair.viewUri(), [0x11, "0", "64k"]);
  });

  it("checkpoint: after the failover, at either node", async () => {
    const pair = await startPair(workspace);
    await pair.failOver();
    expectRefusal(
      await pair.primary.verb("checkpoint"),
      Exit.WrongState,
      "checkpoint refused: the replica is",
    );
  });

  it("any: while no node runs there", async () => {
    const verbs = {
      primary: [
        ["checkpoint"],
        ["status"],
        ["metrics"],
        ["detach"],
        ["attach", "--replica", "nbd://s"],
        ["stop"],
      ],
      secondary: [["failover", "--yes"], ["failover", "--dry-run"], ["status", "--json"], ["stop"]],
    } as const;
    for (const role of ["primary", "secondary"] as const) {
      await Promise.all(
        verbs[role].map(async (verb) => {
          const outcome = await runNode(role, [...verb, "--state-dir", workspace.path("nowhere")]);
          expectRefusal(outcome, Exit.Unreachable, `can't reach a QMP server at unix:`);
        }),
      );
    }
  });

  it("any: of a node that was killed, or of something that is no node", async () => {
    const primary = await startPrimary();
    await primary.process.kill();
    expectRefusal(await primary.verb("status"), Exit.Unreachable, "ECONNREFUSED");

    const silent = createServer();
    silent.listen({ path: workspace.path("silent.sock") });
    await once(silent, "listening");
    workspace.onEnd(() => new Promise((resolve) => silent.close(resolve)));
    const address = `unix:${workspace.path("silent.sock")}`;
    expectRefusal(
      await runNode("primary", ["status", "--qmp", address]),
      Exit.Unreachable,
      "no answer within",
    );

    const chatty = createServer((socket) => socket.end("hello\n"));
    chatty.listen({ path: workspace.path("chatty.sock") });
    await once(chatty, "listening");
    workspace.onEnd(() => new Promise((resolve) => chatty.close(resolve)));
    const other = `unix:${workspace.path("chatty.sock")}`;
    expectRefusal(
      await runNode("primary", ["stop", "--qmp", other]),
      Exit.Unreachable,
      "can't reach a QMP server",
    );
  });

  it("a node killed and restarted on its stale sockets starts as ever", async () => {
    const primary = await startPrimary();
    await writePattern(`nbd+unix:///disk0?socket=${workspace.path("guest.sock")}`, 0x11, "0", "64k");
    await primary.process.kill();
    await startPrimary();
    await expectPattern(`nbd+unix:///disk0?socket=${workspace.path("guest.sock")}`, [0x11, "0", "64k"]);
  });

  describe("of a manager", () => {
    const expectInStep = async (pair: Pair): Promise<void> => {
      await pair.synchronised();
      await pair.checkpoint();
      const [primary, secondary] = [await pair.primary.status(), await pair.secondary.status()];
      expect(primary.epoch).to.equal(secondary.epoch);
    };

    it("a checkpoint at the secondary is refused, for its primary takes them, and the pair stays in step", async () => {
      const pair = await startPair(workspace);
      const { epoch } = await pair.secondary.status();
      const asked = pair.secondary.withQmp((client) => client.execute("xen-colo-do-checkpoint"));
      expect((await failureOf(asked)).message).to.equal(
        "checkpoint refused: this node's primary takes them: have it take one (repl-primary checkpoint)",
      );
      expect((await pair.secondary.status()).epoch).to.equal(epoch);
      await pair.primary.succeed("checkpoint");
      await expectInStep(pair);
    });

    it("a primary that was told of a lost heartbeat replicates again when a replica is attached", async () => {
      const pair = await startPair(workspace);
      await pair.primary.withQmp((client) => client.execute("x-colo-lost-heartbeat"));
      expect((await pair.primary.status()).stage).to.equal("done");
      await writePattern(pair.primaryUri(), 0x11, "0", "1M");
      const replica = ["--replica", `nbd://${pair.addresses.replication}`];
      await pair.primary.succeed("attach", ...replica, "--replica-qmp", `tcp:${pair.addresses.qmp}`);
      await expectInStep(pair);
      await expectPattern(pair.viewUri(), [0x11, "0", "1M"], [0, "1M", "1M"]);
    });

    it("a stop of the secondary alone: the checkpoint after it is refused, and the pair begins anew", async () => {
      const pair = await startPair(workspace);
      await writePattern(pair.primaryUri(), 0x11, "0", "1M");
      await pair.secondary.withQmp((client) =>
        client.execute("xen-set-replication", { enable: false, primary: false }),
      );
      expect((await pair.secondary.status()).stage).to.equal("none");
      expectRefusal(await pair.primary.verb("checkpoint"), Exit.WrongState, "checkpoint refused: ");
      await pair.secondary.waitForStatus("running again", ({ stage }) => stage === "running");
      await expectInStep(pair);
      await expectPattern(pair.viewUri(), [0x11, "0", "1M"], [0, "1M", "1M"]);
    });
  });
});
