/** A secondary that ends, cleanly or not, and begins again: the same stage, epoch, view and disk. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { outcome, turns } from "../../tools/outcome.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";
import { SecondaryNode } from "../../tools/secondary-node.js";
import {
  content,
  expectContent,
  expectFailure,
  expectMedium,
  type Fixture,
  openSecondary,
  PAGE,
  put,
  SIZE_BYTES,
} from "./secondary-fixture.js";

const ENDS = [
  { how: "a clean restart", again: (node: SecondaryNode) => node.restart() },
  { how: "a crash", again: (node: SecondaryNode) => node.crashAndReopen() },
] as const;

for (const { how, again } of ENDS) {
  describe(`secondary: ${how}`, () => {
    let node: SecondaryNode;
    let media: Fixture["media"];

    beforeEach(async () => {
      ({ node, media } = await openSecondary({ disks: 2 }));
    });

    afterEach(() => node.dispose());

    it("in stage none keeps what was received, and the view still fails", async () => {
      await put(node.replication(), 3, PAGE, 0x22);
      await node.replication().flush();
      await again(node);
      expect(node.secondary.stage).to.equal("none");
      expectMedium(media[0], content(0, [3, PAGE, 0x22]));
      expect(await outcome(node.view().read(0, Buffer.alloc(1)))).to.equal("EIO");
      await node.start();
      await expectContent(node.view(), content(0, [3, PAGE, 0x22]));
    });

    it("in stage running keeps epoch, checkpoint, what was received, and what the view flushed", async () => {
      await node.start();
      await put(node.replication(0), 0, PAGE, 0x21);
      await node.checkpoint();
      const { epoch } = node.secondary;
      await put(node.replication(0), 0, 2 * PAGE, 0x22);
      await node.replication(1).zero(SIZE_BYTES - 100, 100, Flag.None);
      await put(node.view(0), PAGE + 5, PAGE, 0x33);
      await node.view(1).zero(10, 2 * PAGE, Flag.None);
      await node.replication(0).flush();
      await node.view(0).flush();
      await node.view(1).flush();
      const views = [
        content(0, [0, PAGE, 0x21], [PAGE + 5, PAGE, 0x33]),
        content(1, [10, 2 * PAGE, 0]),
      ] as const;

      for (let round = 0; round < 3; round++) {
        await again(node);
        expect(node.secondary.stage).to.equal("running");
        expect(node.secondary.epoch).to.equal(epoch);
        await expectContent(node.view(0), views[0]);
        await expectContent(node.view(1), views[1]);
        expectMedium(media[0], content(0, [0, 2 * PAGE, 0x22]));
        expectMedium(media[1], content(1, [SIZE_BYTES - 100, 100, 0]));
      }
      // Blocks whose before-image is kept are not copied again, others are.
      await put(node.replication(0), 0, 4 * PAGE, 0x23);
      await expectContent(node.view(0), views[0]);
      await node.failover("checkpoint");
      expectMedium(media[0], views[0]);
      expectMedium(media[1], views[1]);
    });

    it("in stage running does not bring back view writes that a checkpoint has dropped", async () => {
      await node.start();
      await put(node.view(), 0, PAGE, 0x33);
      await node.view().flush();
      await node.checkpoint();
      await again(node);
      await expectContent(node.view(), content(0));
      await put(node.view(), PAGE, PAGE, 0x34);
      await expectContent(node.view(), content(0, [PAGE, PAGE, 0x34]));
    });

    for (const to of ["checkpoint", "latest"] as const) {
      it(`in the middle of a failover to the ${to} finishes it`, async () => {
        await node.start();
        await put(node.replication(0), 0, 4 * PAGE, 0x22);
        await put(node.replication(1), 0, 4 * PAGE, 0x23);
        await put(node.replication(1), 10 * PAGE, PAGE, 0x23);
        await put(node.view(0), 20 * PAGE, PAGE, 0x33);
        await node.applied();
        const held = node.disk(1).hold({ operation: to === "latest" ? "flush" : "write" });
        await node.secondary.stop(to);
        await held.arrived(1);
        // A block that the commit has passed, and one that it has not.
        await put(node.view(0), PAGE, 10, 0x34, Flag.Fua);
        await put(node.view(1), 10 * PAGE, 10, 0x35, Flag.Fua);
        const ended = again(node);
        await turns();
        held.release();
        await ended;
        await node.secondary.commitEnded();

        expect(node.secondary.stage).to.equal("done");
        const expected =
          to === "checkpoint"
            ? [content(0, [20 * PAGE, PAGE, 0x33], [PAGE, 10, 0x34]), content(1, [10 * PAGE, 10, 0x35])]
            : [
                content(0, [0, 4 * PAGE, 0x22], [PAGE, 10, 0x34]),
                content(1, [0, 4 * PAGE, 0x23], [10 * PAGE, PAGE, 0x23], [10 * PAGE, 10, 0x35]),
              ];
        for (const [index, each] of expected.entries()) {
          await expectContent(node.view(index), each, `view ${index}`);
          expectMedium(media[index], each, `disk ${index}`);
        }
        expect(await outcome(put(node.replication(), 0, 1, 0x25))).to.equal("ESHUTDOWN");
      });
    }

    it("in stage failover-failed keeps the content and can be tried again", async () => {
      await node.start();
      await put(node.replication(0), 0, 4 * PAGE, 0x22);
      node.disk(0).fail({ operation: "write" });
      await node.failover("checkpoint");
      node.disk(0).clear();
      await put(node.view(0), PAGE, 10, 0x34, Flag.Fua);
      await put(node.view(0), 30 * PAGE, 10, 0x35, Flag.Fua);
      const expected = content(0, [PAGE, 10, 0x34], [30 * PAGE, 10, 0x35]);
      await again(node);
      expect(node.secondary.stage).to.equal("failover-failed");
      await expectContent(node.view(0), expected);
      expect(await outcome(put(node.replication(), 0, 1, 0x25))).to.equal("ESHUTDOWN");
      await node.failover("checkpoint");
      expect(node.secondary.stage).to.equal("done");
      await expectContent(node.view(0), expected);
      expectMedium(media[0], expected);
    });

    it("in stage done serves the disk and takes no replication write", async () => {
      await node.start();
      await put(node.replication(), 0, 4 * PAGE, 0x22);
      await node.failover("checkpoint");
      await put(node.view(), 5, 10, 0x33);
      await node.view().flush();
      await again(node);
      expect(node.secondary.stage).to.equal("done");
      await expectContent(node.view(), content(0, [5, 10, 0x33]));
      expect(await outcome(put(node.replication(), 0, 1, 0x25))).to.equal("ESHUTDOWN");
      expect(node.secondary.exportRefusal()).to.match(/promoted/);
      await node.failover("latest");
      await expectContent(node.view(), content(0, [5, 10, 0x33]));
    });
  });
}

describe("secondary: durability of a checkpoint lags behind it", () => {
  let node: SecondaryNode;
  let media: Fixture["media"];

  beforeEach(async () => {
    ({ node, media } = await openSecondary({ disks: 2 }));
    await node.start();
    await put(node.replication(0), 0, PAGE, 0x21);
    await put(node.replication(1), 0, PAGE, 0x21);
    await node.checkpoint();
    await put(node.replication(0), PAGE, PAGE, 0x22);
    await put(node.view(1), 9 * PAGE, PAGE, 0x31, Flag.Fua);
  });

  afterEach(() => node.dispose());

  const older = [content(0, [0, PAGE, 0x21]), content(1, [0, PAGE, 0x21], [9 * PAGE, PAGE, 0x31])] as const;

  it("a crash in between goes back to the older checkpoint exactly, and nothing of the later one leaks", async () => {
    const held = node.disk(1).hold({ operation: "flush" });
    const epoch = await node.secondary.checkpoint({ session: null, epoch: null });
    await held.arrived(1);
    expect(node.durableEpochs).to.not.include(epoch);
    await expectContent(node.view(0), content(0, [0, PAGE, 0x21], [PAGE, PAGE, 0x22]));
    // Both in the new epoch: a block changed before in the old one, and one that was not.
    await put(node.replication(0), PAGE, PAGE, 0x23, Flag.Fua);
    await put(node.replication(0), 2 * PAGE, PAGE, 0x24, Flag.Fua);
    await put(node.replication(1), 0, PAGE, 0x25, Flag.Fua);
    const viewed = put(node.view(0), 4 * PAGE, PAGE, 0x32);
    await turns();

    await node.crashAndReopen();
    void viewed;
    expect(node.secondary.epoch).to.equal(epoch - 1);
    expect(node.durableEpochs).to.not.include(epoch);
    for (const index of [0, 1] as const) await expectContent(node.view(index), older[index], `view ${index}`);
    await put(node.replication(0), 3 * PAGE, PAGE, 0x26, Flag.Fua);
    await node.crashAndReopen();
    for (const index of [0, 1] as const)
      await expectContent(node.view(index), older[index], `view ${index} again`);
    await node.failover("checkpoint");
    for (const index of [0, 1] as const) expectMedium(media[index], older[index]);
  });

  it("a crash behind the announcement keeps the new checkpoint", async () => {
    const epoch = await node.checkpoint();
    expect(node.durableEpochs).to.include(epoch);
    await node.crashAndReopen();
    expect(node.secondary.epoch).to.equal(epoch);
    await expectContent(node.view(0), content(0, [0, PAGE, 0x21], [PAGE, PAGE, 0x22]));
    await expectContent(node.view(1), content(1, [0, PAGE, 0x21]));
  });

  it("the next checkpoint and a failover wait until it is durable", async () => {
    const held = node.disk(1).hold({ operation: "flush" });
    await node.secondary.checkpoint({ session: null, epoch: null });
    await put(node.replication(0), 2 * PAGE, PAGE, 0x24);
    const next = node.checkpoint();
    const failover = next.then(() => node.failover("checkpoint"));
    await held.arrived(1);
    await turns();
    held.release();
    await failover;
    expectMedium(media[0], content(0, [0, PAGE, 0x21], [PAGE, PAGE, 0x22], [2 * PAGE, PAGE, 0x24]));
  });

  it("when the disk can't make it durable, refuses checkpoints and says so; a crash goes back to the older one", async () => {
    node.disk(1).fail({ operation: "flush" });
    await node.secondary.checkpoint({ session: null, epoch: null });
    await expectFailure(node.secondary.checkpointDurable(), /injected EIO/);
    await expectFailure(node.checkpoint(), /could not be made durable/);
    expect(node.secondary.brokenPromise()).to.match(/could not be made durable/);
    // What the disks lost of it nobody knows.
    const lost =
      "the last checkpoint is lost: a disk failed to make durable what it held; started anew, the node goes back to the checkpoint before";
    await expectFailure(node.view(0).read(0, Buffer.alloc(1)), lost);
    expect(node.secondary.failoverOptions().map(({ refusal }) => refusal)).to.deep.equal([lost, null]);
    await expectFailure(node.secondary.stop("checkpoint"), /^failover refused: the last checkpoint is lost/);
    node.disk(1).clear();
    await put(node.replication(0), PAGE, PAGE, 0x23, Flag.Fua);
    await node.crashAndReopen();
    for (const index of [0, 1] as const) await expectContent(node.view(index), older[index], `view ${index}`);
  });
});

describe("secondary: a power loss after a crash of the process", () => {
  it("keeps view writes that the process left behind once they have been flushed", async () => {
    const state = new MemoryStateDirectory();
    const node = await SecondaryNode.open({ media: [new MemoryDevice(SIZE_BYTES)], state });
    try {
      await node.start();
      await put(node.view(), 0, PAGE, 0x31, Flag.Fua);
      await put(node.view(), 0, PAGE, 0x32);
      await node.crashAndReopen();
      await node.view().flush();
      const flushed = Buffer.alloc(PAGE);
      await node.view().read(0, flushed);
      await node.crash();
      state.crash();
      await node.reopen();
      const kept = Buffer.alloc(PAGE);
      await node.view().read(0, kept);
      expect(kept.equals(flushed)).to.equal(true);
    } finally {
      await node.dispose();
    }
  });
});

describe("secondary: a log that was damaged after a clean stop", () => {
  const STATE = ["hidden-1.log", "active-1.log"] as const;
  /** Where the last record begins; behind it is padding, a record too. */
  const lastRecord = (log: Buffer): number => log.lastIndexOf("RLOG", log.lastIndexOf("RLOG") - 1);

  for (const name of STATE) {
    for (const { how, damage } of [
      {
        how: "cut at the end of a record",
        damage: (log: Buffer) => log.subarray(0, lastRecord(log)),
      },
      {
        how: "flipped in its last record",
        damage: (log: Buffer): Buffer => {
          const flipped = Buffer.from(log);
          flipped[lastRecord(log) + 30] = 0xff;
          return flipped;
        },
      },
    ]) {
      it(`${name} ${how}: is refused, for no tail can be torn then`, async () => {
        const state = new MemoryStateDirectory();
        const node = await SecondaryNode.open({ media: [new MemoryDevice(SIZE_BYTES)], state });
        await node.start();
        await put(node.replication(), 0, PAGE, 0x22);
        await put(node.view(), 0, PAGE, 0x33);
        await node.close();
        state.put(name, damage(state.contents(name)));
        await expectFailure(
          node.reopen(),
          /^\/state\/(hidden|active)-1\.log is damaged: it ends at \d+ and ended at \d+ when/,
        );
      });
    }
  }

  it("is refused when it, or the data file, is missing or cut off, for the view's own writes would be gone without a word", async () => {
    const state = new MemoryStateDirectory();
    const node = await SecondaryNode.open({ media: [new MemoryDevice(SIZE_BYTES)], state });
    await node.start();
    await put(node.view(), 0, PAGE, 0x33);
    await node.close();
    const log = state.contents("active-1.log");
    await state.remove("active-1.log");
    const remedy =
      "the disks hold all that was received: if the primary is alive, remove the state directory: it copies everything; if it is lost, start repl-primary on them with a new --state-dir";
    await expectFailure(node.reopen(), `/state/active-1.log is missing: ${remedy}`);
    state.put("active-1.log", log);
    const data = state.contents("active-1-0.data");
    state.put("active-1-0.data", data.subarray(0, data.length - 1));
    await expectFailure(
      node.reopen(),
      `/state/active-1-0.data is damaged: it has 4095 bytes and active-1.log names its content up to 4096: ${remedy}`,
    );
    await state.remove("active-1-0.data");
    await expectFailure(
      node.reopen(),
      `/state/active-1-0.data is missing although active-1.log names its content: ${remedy}`,
    );
  });

  it("is refused without the remedy of a whole disk where the disks are none", async () => {
    const state = new MemoryStateDirectory();
    const node = await SecondaryNode.open({ media: [new MemoryDevice(SIZE_BYTES)], state });
    await node.start();
    await node.close();
    const metadata = JSON.parse(state.contents("metadata.json").toString()) as object;
    await state.remove("hidden-1.log");
    for (const [what, member] of [
      [
        "half of what the failover makes of them",
        { stage: "failover", failoverTarget: "checkpoint", logs: [] },
      ],
      ["no whole (half of a copy)", { mixed: "half of a copy" }],
    ] as const) {
      state.put("metadata.json", Buffer.from(JSON.stringify({ ...metadata, ...member })));
      await expectFailure(
        node.reopen(),
        `/state/hidden-1.log is missing: the disks are ${what}: restore it; or, if the primary is alive, remove the state directory: it copies everything`,
      );
    }
  });
});
