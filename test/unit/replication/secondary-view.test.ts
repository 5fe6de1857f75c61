/** Stages, the view, and checkpoints of a secondary: contents byte by byte. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { outcome, turns } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";
import type { SecondaryNode } from "../../tools/secondary-node.js";
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

describe("secondary: stages", () => {
  let node: SecondaryNode;
  let media: Fixture["media"];

  beforeEach(async () => {
    ({ node, media } = await openSecondary());
  });

  afterEach(() => node.dispose());

  it("before the start, every request to the view fails with EIO and the export writes straight through", async () => {
    const view = node.view();
    expect(await outcome(view.read(0, Buffer.alloc(1)))).to.equal("EIO");
    expect(await outcome(put(view, 0, 1, 1))).to.equal("EIO");
    expect(await outcome(view.zero(0, PAGE, Flag.None))).to.equal("EIO");
    expect(await outcome(view.trim(0, PAGE, Flag.None))).to.equal("EIO");
    expect(await outcome(view.flush())).to.equal("EIO");
    expect(await outcome(view.extents(0, PAGE, 1))).to.equal("EIO");
    await put(node.replication(), 5, 10_000, 0x22);
    expectMedium(media[0], content(0, [5, 10_000, 0x22]));
    expect(node.secondary.overlays).to.equal(null);
  });

  it("refuses what needs replication to run, in QEMU's words", async () => {
    expect(() => {
      node.secondary.getError();
    }).to.throw("Block replication is not running");
    await expectFailure(node.checkpoint(), "Block replication is not running");
    await expectFailure(node.secondary.stop(null), "Block replication is not running");
    await expectFailure(node.secondary.stop("checkpoint"), "Block replication is not running");
  });

  it("refuses a second start in QEMU's words, and goes on as before", async () => {
    await node.start();
    await put(node.view(), 0, PAGE, 0x33);
    await expectFailure(node.start(), "Block replication is running or done");
    await expectContent(node.view(), content(0, [0, PAGE, 0x33]));
  });

  it("refuses the primary's mode in QEMU's words", async () => {
    await expectFailure(
      node.secondary.start("primary"),
      "The parameter mode's value is invalid, needs 1, but got 0",
    );
    expect(node.secondary.stage).to.equal("none");
  });

  it("after a stop without failover, keeps everything received and can start again", async () => {
    await node.start();
    await put(node.replication(), 100, 5000, 0x22);
    await put(node.view(), 0, PAGE, 0x33);
    await node.secondary.stop(null);
    expect(await outcome(node.view().read(0, Buffer.alloc(1)))).to.equal("EIO");
    expectMedium(media[0], content(0, [100, 5000, 0x22]));

    await node.start();
    await expectContent(node.view(), content(0, [100, 5000, 0x22]));
    expect(node.stages).to.deep.equal(["running", "none", "running"]);
  });

  it("numbers epochs upwards and refuses one that is over", async () => {
    await node.start();
    const first = node.secondary.epoch;
    expect(await node.checkpoint()).to.equal(first + 1);
    expect(await node.secondary.checkpoint({ session: null, epoch: first + 10 })).to.equal(first + 10);
    await expectFailure(
      node.secondary.checkpoint({ session: null, epoch: first + 10 }),
      `epoch ${first + 10} is over: the secondary is in epoch ${first + 10}`,
    );
  });
});

describe("secondary: view and checkpoint", () => {
  let node: SecondaryNode;
  let media: Fixture["media"];

  beforeEach(async () => {
    ({ node, media } = await openSecondary({ disks: 2 }));
    await node.start();
  });

  afterEach(() => node.dispose());

  it("the view never shows a write, zero or trim of the primary before the checkpoint, and all of them after", async () => {
    await put(node.replication(), 1, 3, 0x22);
    await put(node.replication(), 3 * PAGE - 7, PAGE, 0x23, Flag.Fua);
    await node.replication().zero(5 * PAGE, 2 * PAGE + 1, Flag.None);
    await node.replication().trim(SIZE_BYTES - 3 * PAGE, 3 * PAGE, Flag.None);
    await expectContent(node.view(), content(0), "before");

    await node.checkpoint();

    // A trim drops whole pages of the disk; the last one is short.
    const trimmedFrom = Math.ceil((SIZE_BYTES - 3 * PAGE) / PAGE) * PAGE;
    const expected = content(
      0,
      [1, 3, 0x22],
      [3 * PAGE - 7, PAGE, 0x23],
      [5 * PAGE, 2 * PAGE + 1, 0],
      [trimmedFrom, SIZE_BYTES - trimmedFrom, 0],
    );
    await expectContent(node.view(), expected, "after");
    expectMedium(media[0], expected);
  });

  it("a checkpoint drops what the view wrote, zeroed and trimmed, and none of it reaches the disk", async () => {
    await put(node.view(), 10, 2 * PAGE, 0x33);
    await node.view().zero(4 * PAGE, PAGE, Flag.None);
    await node.view().trim(8 * PAGE, PAGE, Flag.None);
    await expectContent(
      node.view(),
      content(0, [10, 2 * PAGE, 0x33], [4 * PAGE, PAGE, 0], [8 * PAGE, PAGE, 0]),
    );
    await put(node.replication(), 0, 20, 0x22);

    await node.checkpoint();

    await expectContent(node.view(), content(0, [0, 20, 0x22]));
    expectMedium(media[0], content(0, [0, 20, 0x22]));
  });

  it("a view write beside the primary's to one page keeps the rest of the page as at the checkpoint", async () => {
    await put(node.replication(), 0, PAGE, 0x22);
    await put(node.view(), 100, 50, 0x33);
    await put(node.replication(), 0, PAGE, 0x24);
    await expectContent(node.view(), content(0, [100, 50, 0x33]));
    await node.failover("checkpoint");
    expectMedium(media[0], content(0, [100, 50, 0x33]));
  });

  it("a read of the view that a write overtakes on its way to the disk still sees the checkpoint", async () => {
    const held = node.disk().hold({ operation: "read", count: 1 });
    const into = Buffer.alloc(PAGE);
    const read = node.view().read(0, into);
    await held.arrived(1);
    await put(node.replication(), 0, PAGE, 0x22, Flag.Fua);
    held.release();
    await read;
    expect(into.equals(Buffer.alloc(PAGE, 0x11))).to.equal(true);
  });

  it("a checkpoint waits for acknowledged writes on their way to the disk", async () => {
    const held = node.disk().hold({ operation: "write" });
    await put(node.replication(), 0, PAGE, 0x22);
    await held.arrived(1);
    const checkpoint = node.checkpoint();
    await turns();
    held.release();
    await checkpoint;
    await expectContent(node.view(), content(0, [0, PAGE, 0x22]));
  });

  const ENDINGS = [
    ["checkpoint drops", (node: SecondaryNode) => node.checkpoint(), content(0)],
    ["failover merges", (node: SecondaryNode) => node.failover("checkpoint"), content(0, [0, PAGE, 0x33])],
  ] as const;
  for (const [ending, end, expected] of ENDINGS) {
    it(`a flush that is under way while a ${ending} what it is for ends well, and so does one behind it`, async () => {
      await put(node.view(), 0, PAGE, 0x33);
      const held = node.state.hold({ operation: "sync", name: /^active-.*\.data$/ });
      const flushes = [node.view().flush()];
      await held.arrived;
      flushes.push(node.view().flush());
      const ended = end(node);
      await turns(50);
      held.release();
      await ended;
      expect(await Promise.all(flushes.map(outcome))).to.deep.equal(["done", "done"]);
      await expectContent(node.view(), expected);
    });
  }

  it("both disks change at one instant, whatever is read, written and checkpointed beside it", async () => {
    // The primary stamps every page of disk 0, then of disk 1, with the number of the checkpoint to come.
    const random = new Random(SEED);
    const rounds = 25;
    let isOver = false;
    await stampAll(node, 0);
    await node.checkpoint();
    const readers = [0, 1, 2, 3].map(async () => {
      let seen = 0;
      while (!isOver) {
        // First one disk, then the other: the second one may be newer, never older.
        const first = random.below(2);
        const a = await stamp(node, first, random);
        const b = await stamp(node, 1 - first, random);
        expect(a, "time goes back").to.be.at.least(seen);
        expect(b, `disk ${1 - first} is behind disk ${first}`).to.be.at.least(a);
        seen = b;
        await turns(1 + random.below(3));
      }
    });
    const primary = async (): Promise<void> => {
      for (let round = 1; round <= rounds; round++) {
        await stampAll(node, round);
        await node.checkpoint();
        await turns(random.below(4));
      }
    };
    await primary().finally(() => {
      isOver = true;
    });
    await Promise.all(readers);
    expect(await stamp(node, 0, random)).to.equal(rounds);
    expect(await stamp(node, 1, random)).to.equal(rounds);
  });
});

const STAMPED_PAGES = 8;

async function stampAll(node: SecondaryNode, round: number): Promise<void> {
  for (const index of [0, 1]) await put(node.replication(index), 0, STAMPED_PAGES * PAGE, round);
}

/** The round that a disk's view shows on some pages at once: all bytes of one read are of one round. */
async function stamp(node: SecondaryNode, index: number, random: Random): Promise<number> {
  const into = Buffer.alloc(PAGE * (1 + random.below(STAMPED_PAGES)));
  await node.view(index).read(0, into);
  const [round] = into;
  if (round === undefined || !into.equals(Buffer.alloc(into.length, round))) {
    throw new Error(`a read of disk ${index} shows more than one checkpoint`);
  }
  return round;
}
