/** Failover of a secondary: what the disks hold after it, and what clients of the view see all through. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { secondaryPairCommands } from "../../../src/qmp/commands/pair.js";
import { expectSame, readRange } from "../../contract/device-model.js";
import { outcome, turns } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";
import type { SecondaryNode } from "../../tools/secondary-node.js";
import {
  content,
  expectContent,
  expectFailure,
  expectMedium,
  type Fixture,
  introduce,
  openSecondary,
  PAGE,
  put,
  SIZE_BYTES,
} from "./secondary-fixture.js";

describe("secondary: failover", () => {
  let node: SecondaryNode;
  let media: Fixture["media"];

  beforeEach(async () => {
    ({ node, media } = await openSecondary({ disks: 2 }));
    await node.start();
    await put(node.replication(0), 0, 3 * PAGE, 0x22);
    await put(node.replication(1), SIZE_BYTES - 5, 5, 0x24);
    await put(node.view(0), 2 * PAGE, 2 * PAGE, 0x33);
    await node.view(1).zero(PAGE, PAGE, Flag.None);
  });

  afterEach(() => node.dispose());

  /** The last checkpoint with the view's writes, and everything received. */
  const checkpointed = [content(0, [2 * PAGE, 2 * PAGE, 0x33]), content(1, [PAGE, PAGE, 0])] as const;
  const received = [content(0, [0, 3 * PAGE, 0x22]), content(1, [SIZE_BYTES - 5, 5, 0x24])] as const;

  it("to the checkpoint: view and disks are the last checkpoint with the view's writes", async () => {
    await node.failover("checkpoint");
    expect(node.stages).to.deep.equal(["running", "failover", "done"]);
    expect(node.commitFailure).to.equal(null);
    for (const index of [0, 1] as const) {
      await expectContent(node.view(index), checkpointed[index]);
      expectMedium(media[index], checkpointed[index]);
    }
  });

  it("to the latest: view and disks are everything received, without the view's writes", async () => {
    await node.failover("latest");
    expect(node.stages).to.deep.equal(["running", "failover", "done"]);
    for (const index of [0, 1] as const) {
      await expectContent(node.view(index), received[index]);
      expectMedium(media[index], received[index]);
    }
  });

  it("of two that are asked for at once begins the first alone, and refuses the second, whose target it is not", async () => {
    const { secondary } = node;
    const first = secondary.failOver("latest");
    await expectFailure(secondary.failOver("checkpoint"), /^failover is (under way|done) already$/);
    await first;
    await secondary.commitEnded();
    await expectContent(node.view(0), received[0]);
    await expectFailure(secondary.failOver("latest"), "failover is done already");
    await secondary.failOverOnce();
    await expectContent(node.view(0), received[0], "QEMU's failover is ignored then");
  });

  it("no checkpoint is said to be taken while it is under way, nor after it without a replica", async () => {
    const commands = secondaryPairCommands(node.secondary);
    const checkpoint = commands.find(({ name }) => name === "x-repl-checkpoint");
    const asked = (args: object): Promise<string> =>
      outcome(checkpoint?.run(args, { clientId: 1 }) ?? Promise.resolve());
    await node.applied();
    const merge = node.disk().hold({ operation: "write" });
    await node.secondary.failOver("checkpoint");
    await merge.arrived(1);
    expect([node.secondary.stage, await asked({})]).to.deep.equal(["failover", "not-promoted"]);
    merge.release();
    await node.secondary.commitEnded();
    expect([node.secondary.stage, await asked({})]).to.deep.equal(["done", "checkpoint-refused"]);
    expect(await asked({ epoch: 99 })).to.equal("checkpoint-refused");
  });

  it("tells before it what either target would lose", async () => {
    await node.applied();
    const options = node.secondary.failoverOptions();
    expect(options.map(({ to, lost, refusal }) => [to, lost.bytes, refusal])).to.deep.equal([
      ["checkpoint", 3 * PAGE + (SIZE_BYTES % PAGE), null],
      ["latest", 3 * PAGE, null],
    ]);
  });

  it("refuses the old primary from then on: its writes, its handshake, its connections", async () => {
    await node.failover("checkpoint");
    expect(await outcome(put(node.replication(0), 0, PAGE, 0x25))).to.equal("ESHUTDOWN");
    expect(await outcome(node.replication(0).zero(0, PAGE, Flag.None))).to.equal("ESHUTDOWN");
    expect(await outcome(put(node.replication(0), 0, PAGE, 0x25, Flag.Fua))).to.equal("ESHUTDOWN");
    expect(node.secondary.exportRefusal()).to.match(/promoted by a failover/);
    await expectFailure(introduce(node, "old"), /promoted by a failover/);
    await expectFailure(node.secondary.checkpoint({ session: "old", epoch: null }), /promoted by a failover/);
    await expectContent(node.view(0), checkpointed[0]);
  });

  it("a second time changes nothing, as in QEMU, and its cost can't be asked for any more", async () => {
    await node.failover("checkpoint");
    await put(node.view(0), 0, 10, 0x34);
    await node.failover("latest");
    await node.failover("checkpoint");
    await node.start();
    await node.checkpoint();
    await expectContent(node.view(0), content(0, [2 * PAGE, 2 * PAGE, 0x33], [0, 10, 0x34]));
    expect(() => node.secondary.failoverOptions()).to.throw("failover is done already");
  });

  it("keeps a view write that is under way when it begins", async () => {
    const held = node.state.hold({ operation: "write", name: /^active-.*data$/ });
    const written = put(node.view(0), 20 * PAGE, PAGE, 0x35);
    await held.arrived;
    const stopped = node.secondary.stop("checkpoint");
    await turns();
    held.release();
    await written;
    await stopped;
    await node.secondary.commitEnded();
    const expected = content(0, [2 * PAGE, 2 * PAGE, 0x33], [20 * PAGE, PAGE, 0x35]);
    await expectContent(node.view(0), expected);
    expectMedium(media[0], expected);
  });

  it("to the latest: keeps what the view writes as soon as the command has answered", async () => {
    const held = node.disk(0).hold({ operation: "flush" });
    await node.secondary.stop("latest");
    await expectContent(node.view(0), received[0]);
    await put(node.view(0), 20 * PAGE, PAGE, 0x35);
    held.release();
    await node.secondary.commitEnded();
    const expected = content(0, [0, 3 * PAGE, 0x22], [20 * PAGE, PAGE, 0x35]);
    await expectContent(node.view(0), expected);
    expectMedium(media[0], expected);
  });

  it("waits for a checkpoint that is being made durable: what that puts on record does not undo the failover", async () => {
    const held = node.disk(0).hold({ operation: "flush", count: 1 });
    const checkpoint = node.checkpoint();
    await held.arrived(1);
    const failover = node.failover("checkpoint");
    await turns(200);
    expect(node.stages).to.deep.equal(["running"]);
    held.release();
    await Promise.all([checkpoint, failover]);
    await node.crashAndReopen();
    await node.secondary.commitEnded();
    expect(node.secondary.stage).to.equal("done");
    expectMedium(media[0], received[0]);
  });

  it("calls what differs from the old primary by the name of the last handshake, though nothing was written since", async () => {
    const { tenure: first } = await introduce(node, "session");
    const { tenure: last } = await introduce(node, "session", { tenures: [first] });
    await node.failover("latest");
    const tenures = node.secondary.promoted.disks.map(({ dirty }) => dirty.tenure);
    expect(tenures).to.deep.equal([last, last]);
  });

  it("waits for writes of the primary that are under way, whose before-images it needs", async () => {
    const held = node.disk(0).hold({ operation: "write", offset: 30 * PAGE, lengthBytes: PAGE });
    await put(node.replication(0), 30 * PAGE, PAGE, 0x26);
    const zeroed = node.replication(0).zero(31 * PAGE, PAGE, Flag.None);
    await held.arrived(1);
    const failover = node.failover("checkpoint");
    await turns();
    held.release();
    await zeroed;
    await failover;
    await expectContent(node.view(0), checkpointed[0]);
    expectMedium(media[0], checkpointed[0]);
  });

  for (const to of ["checkpoint", "latest"] as const) {
    it(`to the ${to}: clients of the view read and write all through it, and nothing is lost or mixed up`, async () => {
      const random = new Random(SEED);
      node.disk(0).reorder({}, random);
      // Each client has pages of its own, here one owned by an overlay, there one by the disk.
      let isOver = false;
      const target = to === "checkpoint" ? checkpointed[0] : received[0];
      const expected = Buffer.from(target);
      const clients = [0, 1, 2, 3, 4, 5].map(async (client) => {
        const offset = client * PAGE + 17;
        const lengthBytes = PAGE - 34;
        for (let round = 0; !isOver; round++) {
          const data = random.bytes(lengthBytes);
          await node.view(0).write(offset, data, random.below(4) === 0 ? Flag.Fua : Flag.None);
          const readBack = await readRange(node.view(0), offset, lengthBytes);
          // Going to the latest, the view's writes before it are dropped: then the read shows what was received.
          if (to === "checkpoint" || node.secondary.stage !== "running") {
            const isDropped = readBack.equals(target.subarray(offset, offset + lengthBytes));
            if (to === "checkpoint" || !isDropped) expectSame(readBack, data, offset, `client ${client}`);
          }
          data.copy(expected, offset);
          if (random.below(8) === 0) await node.view(0).flush();
          // Memory answers at once: without this nothing else would ever get its turn.
          await turns(1);
        }
      });
      const failover = async (): Promise<void> => {
        await turns(20);
        await node.secondary.stop(to);
        await node.secondary.commitEnded();
        // Some rounds of each client that began after the failover.
        await turns(50);
      };
      await failover().finally(() => {
        isOver = true;
      });
      await Promise.all(clients);
      await expectContent(node.view(0), expected);
      expectMedium(media[0], expected);
    });
  }
});

describe("secondary: failover that fails", () => {
  let node: SecondaryNode;
  let media: Fixture["media"];

  beforeEach(async () => {
    ({ node, media } = await openSecondary({ disks: 2 }));
    await node.start();
    await put(node.replication(0), 0, 3 * PAGE, 0x22);
    await put(node.replication(1), 0, 3 * PAGE, 0x23);
    await put(node.view(0), 10 * PAGE, PAGE, 0x33);
  });

  afterEach(() => node.dispose());

  async function failHalfway(): Promise<void> {
    node.disk(0).fail({ operation: "write", offset: 10 * PAGE, lengthBytes: PAGE, count: 1 });
    await node.failover("checkpoint");
    expect(node.secondary.stage).to.equal("failover-failed");
    expect(node.commitFailure?.message).to.match(/injected EIO/);
  }

  it("shows the promised content and takes writes: of overlays' blocks to the overlay, of others to the disk", async () => {
    await failHalfway();
    await expectContent(node.view(0), content(0, [10 * PAGE, PAGE, 0x33]));
    await expectContent(node.view(1), content(1));

    await put(node.view(1), PAGE, 10, 0x34);
    await put(node.view(1), 20 * PAGE, 10, 0x35);
    const expected = content(1, [PAGE, 10, 0x34], [20 * PAGE, 10, 0x35]);
    await expectContent(node.view(1), expected);
    expectMedium(
      media[1],
      content(1, [0, 3 * PAGE, 0x23], [20 * PAGE, 10, 0x35]),
      "an overlay's block left the overlay",
    );

    await node.failover("checkpoint");
    expect(node.secondary.stage).to.equal("done");
    await expectContent(node.view(1), expected);
    expectMedium(media[1], expected);
    expectMedium(media[0], content(0, [10 * PAGE, PAGE, 0x33]));
  });

  it("says so: get-error, broken promise, no replication write taken", async () => {
    await failHalfway();
    expect(() => {
      node.secondary.getError();
    }).to.throw("I/O error occurred");
    expect(node.secondary.brokenPromise()).to.match(/failover has failed/);
    expect(await outcome(put(node.replication(0), 0, PAGE, 0x25))).to.equal("ESHUTDOWN");
    await expectFailure(node.checkpoint(), "Block replication is not running");
    await expectFailure(node.secondary.stop(null), "Block replication is not running");
  });

  it("does not go over to another target when blocks have been rolled back already", async () => {
    await failHalfway();
    await expectFailure(node.secondary.stop("latest"), /./);
    await expectContent(node.view(0), content(0, [10 * PAGE, PAGE, 0x33]));
    await node.failover("checkpoint");
    expectMedium(media[0], content(0, [10 * PAGE, PAGE, 0x33]));
  });

  it("survives a restart and can be tried again", async () => {
    await failHalfway();
    await put(node.view(1), PAGE, 10, 0x34);
    await put(node.view(1), 20 * PAGE, 10, 0x35);
    await node.restart();
    expect(node.secondary.stage).to.equal("failover-failed");
    const expected = content(1, [PAGE, 10, 0x34], [20 * PAGE, 10, 0x35]);
    await expectContent(node.view(0), content(0, [10 * PAGE, PAGE, 0x33]));
    await expectContent(node.view(1), expected);
    await node.failover("checkpoint");
    await expectContent(node.view(1), expected);
    expectMedium(media[0], content(0, [10 * PAGE, PAGE, 0x33]));
    expectMedium(media[1], expected);
  });

  it("is not undone by overlay files that can't be removed", async () => {
    node.state.fail({ operation: "remove" });
    await node.failover("checkpoint");
    expect(node.secondary.stage).to.equal("done");
    await put(node.view(0), 0, PAGE, 0x36);
    await node.crashAndReopen();
    await node.secondary.commitEnded();
    expect(node.secondary.stage).to.equal("done");
    const expected = content(0, [10 * PAGE, PAGE, 0x33], [0, PAGE, 0x36]);
    await expectContent(node.view(0), expected);
    expectMedium(media[0], expected);
  });
});
