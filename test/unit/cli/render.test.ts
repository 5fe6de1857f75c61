import { expect } from "chai";
import { renderFailoverPlan, renderStatus } from "../../../src/cli/render.js";
import type { NodeStatus } from "../../../src/status.js";
import { ERROR, NOW_MS, plan, primaryStatus, secondaryStatus } from "./statuses.js";

describe("cli/render", () => {
  it("shows a primary that fares well", () => {
    expect(renderStatus(primaryStatus, NOW_MS, false).split("\n")).to.deep.equal([
      "primary: running, replicating, epoch 12, last checkpoint 3 s ago",
      "  replica     nbd://secondary:10809, replicating for 3 min 20 s",
      "              ack mode memsync, timeout 5 s, checkpoints every 5 s",
      "  disk0       1 GiB, /srv/disk0.img",
      "              0 B dirty, 12 MiB in 4,000 writes replicated, 3 in flight",
      "  job sync0   mirror of disk0 [##########----------] 50% of 1 GiB, 128 MiB/s, 4 s left, at most 100 MiB/s",
      "  guest at    unix:/run/p.sock, 1 client",
      "  guest from  unix:/run/p.sock#1, disk0, no TLS",
      "  state in    /state",
      "  node        version 1.2.3, up 5 h 12 min, generation 5f3c",
    ]);
  });

  it("shows who its clients are, some of many", () => {
    const [client] = primaryStatus.clients;
    if (client === undefined) throw new Error("the primary has a client");
    const tls = { version: "TLSv1.3", user: "guest-host" };
    const clients = [
      { ...client, tls },
      { ...client, export: null, tls: { ...tls, user: null } },
      ...new Array<typeof client>(17).fill(client),
    ];
    const lines = renderStatus({ ...primaryStatus, clients }, NOW_MS, false).split("\n");
    const from = lines.findIndex((line) => line.startsWith("  guest from"));
    expect(lines.slice(from, from + 2).map((line) => line.trim())).to.deep.equal([
      "guest from  unix:/run/p.sock#1, disk0, TLSv1.3 as guest-host",
      "guest from  unix:/run/p.sock#1, no export yet, TLSv1.3",
    ]);
    expect(lines.filter((line) => line.startsWith("  guest from"))).to.have.length(16);
    expect(lines[from + 16]?.trim()).to.equal("and 3 other clients");
  });

  it("shows a secondary that fares well", () => {
    expect(renderStatus(secondaryStatus, NOW_MS, false).split("\n")).to.deep.equal([
      "secondary: running, epoch 12, last checkpoint 3 s ago",
      "  primary   10.0.0.1:40000",
      "  rollback  possible, 1.5 KiB kept for it",
      "  disk0     1 GiB, /srv/disk0.img",
      "            1.5 KiB undo, 0 B active, 512 B not yet on the disk",
      "  state in  /state",
      "  node      version 1.2.3, up 5 h 12 min, generation 5f3c",
    ]);
  });

  it("puts what is wrong right below the first line", () => {
    const status = {
      ...secondaryStatus,
      lastCheckpoint: null,
      checkpointRefusal: "the writer went away with requests unanswered",
      error: ERROR,
      secondary: {
        rollback: "lost",
        rollbackLostReason: "log full",
        undoBytes: 0,
        conflict: null,
        salvage: null,
        writer: null,
      },
    } as const;
    expect(renderStatus(status, NOW_MS, false).split("\n").slice(0, 6)).to.deep.equal([
      "secondary: running, epoch 12, no checkpoint yet",
      "! 3 errors, the first 1 min ago: write on disk0 at 4096+512: EIO: Input/output error",
      "! no rollback until the next checkpoint: log full",
      "! a checkpoint would be refused: the writer went away with requests unanswered",
      "  primary   not connected",
      "  rollback  lost, 0 B kept for it",
    ]);
  });

  it("says that guests wait for the replica, and how to go on without it", () => {
    const { primary } = primaryStatus;
    if (primary === undefined) throw new Error("the status is not a primary's");
    const status = {
      ...primaryStatus,
      primary: { ...primary, onReplicaError: "stop", waitingChanges: 2 },
    } as const;
    const lines = renderStatus(status, NOW_MS, false).split("\n");
    expect(lines[1]).to.equal(
      "! guests wait for the replica with 2 changes: repl-primary detach goes on without it",
    );
    expect(lines).to.include("              changes wait while the replica can't take them");
  });

  it("says which promise is broken, before anything else that is wrong", () => {
    const status = {
      ...secondaryStatus,
      cache: "unsafe",
      brokenPromise: "the last checkpoint is lost",
    } as const;
    expect(renderStatus(status, NOW_MS, false).split("\n").slice(0, 3)).to.deep.equal([
      "secondary: running, epoch 12, last checkpoint 3 s ago",
      "! a promise can't be kept, the node would end with exit code 1: the last checkpoint is lost",
      "! cache unsafe: a power loss of this host can cost the disks and the checkpoint",
    ]);
  });

  it("says what a primary lacks: a disk without errors, checkpoints, a replica that can go back", () => {
    const { primary, disks } = primaryStatus;
    const [disk] = disks;
    if (primary === undefined || disk?.primary === undefined)
      throw new Error("the status is not a primary's");
    const status: NodeStatus = {
      ...primaryStatus,
      disks: [
        {
          ...disk,
          primary: {
            ...disk.primary,
            error: {
              operation: "write",
              errno: "ENOSPC",
              disk: "disk0",
              offsetBytes: 4096,
              lengthBytes: 512,
              count: 2,
              firstAt: "2026-01-02T03:03:08.000Z",
              message: "no space left",
            },
          },
        },
      ],
      primary: {
        ...primary,
        checkpointFailure: { reason: "log full", since: "2026-01-02T03:02:08.000Z", attempts: 24 },
        link: { ...primary.link, rollbackLost: "its before-images could not be kept" },
      },
    };
    expect(renderStatus(status, NOW_MS, false).split("\n").slice(1, 4)).to.deep.equal([
      "! the replica can't go back to its last checkpoint: its before-images could not be kept",
      "! 2 errors of the disk itself, which guests see, the first 1 min ago: write on disk0 at 4096+512: ENOSPC: no space left",
      "! no checkpoint in 24 attempts, the first 2 min ago, the last: log full",
    ]);
  });

  for (const [state, trouble] of [
    ["refused", "the replica refuses: split brain"],
    ["detached", "a replica was not attached: split brain"],
  ] as const) {
    it(`says why the replica is ${state}, once`, () => {
      const { primary } = primaryStatus;
      if (primary === undefined) throw new Error("the status is not a primary's");
      const link = { ...primary.link, state, lastError: "split brain" };
      const text = renderStatus({ ...primaryStatus, primary: { ...primary, link } }, NOW_MS, false);
      expect(text.split("\n")[1]).to.equal(`! ${trouble}`);
      expect(text.match(/split brain/g)).to.have.length(1);
    });
  }

  it("says of a promoted node whose replica was refused that a checkpoint would be refused, as of a primary", () => {
    const { primary } = primaryStatus;
    if (primary === undefined) throw new Error("the status is not a primary's");
    const status: NodeStatus = {
      ...secondaryStatus,
      stage: "done",
      checkpointRefusal: "the replica is refused",
      primary: { ...primary, link: { ...primary.link, state: "refused", lastError: "split brain" } },
    };
    expect(renderStatus(status, NOW_MS, false).split("\n").slice(1, 3)).to.deep.equal([
      "! the replica refuses: split brain",
      "! a checkpoint would be refused: the replica is refused",
    ]);
  });

  it("says nothing of rollback and checkpoints after a failover, when there are none any more", () => {
    const status = {
      ...secondaryStatus,
      stage: "done",
      checkpointRefusal: "Block replication is not running",
      secondary: {
        rollback: "none",
        rollbackLostReason: null,
        undoBytes: 0,
        conflict: null,
        salvage: null,
        writer: null,
      },
    } as const;
    expect(renderStatus(status, NOW_MS, false).split("\n").slice(0, 3)).to.deep.equal([
      "secondary: done, epoch 12, last checkpoint 3 s ago",
      "  primary   not connected",
      "  disk0     1 GiB, /srv/disk0.img",
    ]);
  });

  it("says why there is nothing to fail over to", () => {
    const reason = "a primary's copy is not finished";
    const secondary = {
      rollback: "none",
      rollbackLostReason: reason,
      undoBytes: 0,
      conflict: null,
      salvage: null,
      writer: null,
    } as const;
    const status = { ...secondaryStatus, stage: "none", lastCheckpoint: null, secondary } as const;
    expect(renderStatus(status, NOW_MS, false)).to.match(
      /^secondary: none, epoch 12, no checkpoint yet\n {2}primary {3}not connected\n {2}rollback {2}none: a primary's copy is not finished\n/,
    );
  });

  it("uses colours only when asked", () => {
    expect(renderStatus(primaryStatus, NOW_MS, false)).to.not.include("\x1b");
    expect(renderStatus(primaryStatus, NOW_MS, true)).to.include("\x1b[32mprimary: running");
    const failed = { ...primaryStatus, stage: "failover-failed" } as const;
    expect(renderStatus(failed, NOW_MS, true)).to.include("\x1b[1;31mprimary: failover-failed");
  });

  it("tells what a failover would lose, and what the other target would", () => {
    expect(renderFailoverPlan(plan)).to.equal(
      "failover to checkpoint in epoch 12 would lose 12 MiB, the primary's writes of the last 3.2 s\n" +
        "instead, to latest: would lose nothing",
    );
    expect(
      renderFailoverPlan({
        ...plan,
        possible: false,
        reason: "rollback was lost: log full",
        alternatives: [
          {
            to: "latest",
            possible: true,
            reason: null,
            warning: "what was received may have holes: the primary went away",
            lost: { bytes: 512, seconds: 3.2 },
          },
        ],
      }),
    ).to.equal(
      "failover to checkpoint in epoch 12 is not possible: rollback was lost: log full\n" +
        "instead, to latest: would lose 512 B, the writes made through the view of the last 3.2 s; " +
        "but what was received may have holes: the primary went away",
    );
  });

  it("tells what a failover that has begun loses", () => {
    expect(renderFailoverPlan({ ...plan, dryRun: false })).to.equal(
      "failover to checkpoint begun in epoch 12, loses 12 MiB, the primary's writes of the last 3.2 s",
    );
  });
});
