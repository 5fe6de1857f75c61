/** What a secondary does when a before-image can't be kept, policy by policy. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { readMetadata } from "../../../src/meta/metadata.js";
import type { LostRollback } from "../../../src/replication/protocol.js";
import { outcome, turns } from "../../tools/outcome.js";
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
  sessionCheckpoint,
} from "./secondary-fixture.js";

const HIDDEN_LOG = /^hidden-\d+\.log$/;

describe("secondary: a before-image can't be kept, policy break-checkpoint", () => {
  let node: SecondaryNode;
  let media: Fixture["media"];

  beforeEach(async () => {
    ({ node, media } = await openSecondary());
    await node.start();
    await put(node.replication(), 0, PAGE, 0x22);
    await put(node.view(), 50 * PAGE, PAGE, 0x33);
  });

  afterEach(() => node.dispose());

  /** The next before-image is lost, on a file system that is full for new records. */
  async function loseImage(): Promise<void> {
    node.state.fail({ operation: "write", name: HIDDEN_LOG, count: 1 }, "ENOSPC");
    await put(node.replication(), PAGE, PAGE, 0x23, Flag.Fua);
  }

  /** Of the files of what was written to the view. */
  async function activeSizes(): Promise<Record<string, number>> {
    const { state } = node.options;
    const sizes: Record<string, number> = {};
    for (const name of await state.list()) {
      if (name.startsWith("active-")) sizes[name] = (await state.open(name)).sizeBytes;
    }
    return sizes;
  }

  it("goes on receiving, and says loudly that there is no rollback", async () => {
    await loseImage();
    await put(node.replication(), 2 * PAGE, PAGE, 0x24);
    await node.replication().flush();
    expectMedium(media[0], content(0, [0, PAGE, 0x22], [PAGE, PAGE, 0x23], [2 * PAGE, PAGE, 0x24]));
    expect(node.secondary.brokenPromise()).to.match(/last checkpoint is lost/);
    expect(node.secondary.error).to.include({
      ...{ operation: "copy-before-write", errno: "ENOSPC", count: 1 },
      ...{ disk: "disk0", offsetBytes: PAGE, lengthBytes: PAGE },
    });
    expect(() => {
      node.secondary.getError();
    }).to.throw("I/O error occurred");
  });

  it("tells of the lost checkpoint when it is lost, and each primary that introduces itself until the next one", async () => {
    const told: LostRollback[] = [];
    node.onRollbackLost = (lost) => told.push(lost);
    await introduce(node, "before");
    expect(told).to.deep.equal([]);
    await loseImage();
    const { number: epoch, lost: reason } = node.secondary.overlays ?? {};
    expect(told).to.deep.equal([{ epoch, reason }]);
    await introduce(node, "after");
    expect(told).to.deep.equal([
      { epoch, reason },
      { epoch, reason },
    ]);
    await sessionCheckpoint(node, "after");
    await introduce(node, "mended");
    expect(told).to.have.length(2);
  });

  it("gives the checkpoint up once, however many writes have lost their images", async () => {
    node.state.fail({ operation: "write", name: HIDDEN_LOG, count: 1 }, "ENOSPC");
    const pages = Array.from({ length: 40 }, (_, index) => index + 1);
    await Promise.all(pages.map((page) => put(node.replication(), page * PAGE, PAGE, 0x23)));
    await node.replication().flush();
    expect(node.secondary.error).to.include({ operation: "copy-before-write", errno: "ENOSPC", count: 1 });
    expectMedium(media[0], content(0, [0, PAGE, 0x22], [PAGE, 40 * PAGE, 0x23]));
  });

  it("the view fails instead of showing what came after the checkpoint", async () => {
    await loseImage();
    for (const offset of [0, PAGE, 2 * PAGE]) {
      expect(await outcome(node.view().read(offset, Buffer.alloc(PAGE)))).to.equal("EIO");
    }
  });

  it("what was written to the view fails with it, is not said to be lost by a failover again, and takes no room", async () => {
    await node.view().flush();
    expect(await activeSizes()).to.deep.equal({ "active-1.log": 8192, "active-1-0.data": 51 * PAGE });
    await loseImage();
    const view = node.view();
    expect(await outcome(view.read(50 * PAGE, Buffer.alloc(PAGE)))).to.equal("EIO");
    expect(await outcome(view.extents(50 * PAGE, PAGE, 1))).to.equal("EIO");
    expect(await outcome(put(view, 50 * PAGE, PAGE, 0x34))).to.equal("EIO");
    expect(await outcome(view.zero(50 * PAGE, PAGE, Flag.None))).to.equal("EIO");
    expect(await outcome(view.flush())).to.equal("EIO");
    expect(node.secondary.failoverOptions()[1]).to.deep.include({
      to: "latest",
      lost: { bytes: 0, seconds: 0 },
    });
    expect(await activeSizes()).to.deep.equal({ "active-1.log": 0, "active-1-0.data": 0 });
  });

  for (const operation of ["write", "sync"] as const) {
    it(`a ${operation} of the view that was under way fails and leaves nothing behind`, async () => {
      const held = node.state.hold({ operation, name: /^active/, count: 1 });
      const request = outcome(put(node.view(), 40 * PAGE, PAGE, 0x35, Flag.Fua));
      await held.arrived;
      const lost = loseImage();
      await turns(20);
      held.release();
      await lost;
      expect(await request).to.equal("EIO");
      expect(await activeSizes()).to.deep.equal({ "active-1.log": 0, "active-1-0.data": 0 });
    });
  }

  it("a view's first write that waits for its epoch to be on record is not waited for by those that lose their image", async () => {
    const held = node.state.hold({ operation: "close", name: /^hidden-1\.log$/, count: 1 });
    await node.secondary.checkpoint({ session: null, epoch: null });
    await held.arrived;
    const request = outcome(put(node.view(), 40 * PAGE, PAGE, 0x35));
    await loseImage();
    held.release();
    expect(await request).to.equal("EIO");
    await node.secondary.checkpointDurable();
    expect(await activeSizes()).to.deep.equal({ "active-2.log": PAGE, "active-2-0.data": 0 });
  });

  for (const isCut of [true, false]) {
    it(`after a crash ${isCut ? "" : "before the view's files were cut "}a restart finds them empty, and the failover to the latest works`, async () => {
      await node.view().flush();
      if (!isCut) node.state.fail({ operation: "truncate", name: /^active/ });
      await loseImage();
      await node.applied();
      expect(Object.values(await activeSizes()).every((size) => size === 0)).to.equal(isCut);
      await node.crashAndReopen();
      expect(await activeSizes()).to.deep.equal({ "active-1.log": 0, "active-1-0.data": 0 });
      expect(await outcome(node.view().read(50 * PAGE, Buffer.alloc(PAGE)))).to.equal("EIO");
      await node.failover("latest");
      const expected = content(0, [0, PAGE, 0x22], [PAGE, PAGE, 0x23]);
      await expectContent(node.view(), expected);
      expectMedium(media[0], expected);
    });
  }

  it("a clean restart finds the checkpoint lost, and the next one mends it", async () => {
    await introduce(node, "s");
    await loseImage();
    await node.restart();
    expect(node.secondary.brokenPromise()).to.match(/last checkpoint is lost/);
    expect(await outcome(node.view().read(50 * PAGE, Buffer.alloc(PAGE)))).to.equal("EIO");
    await introduce(node, "s");
    await sessionCheckpoint(node, "s");
    const expected = content(0, [0, PAGE, 0x22], [PAGE, PAGE, 0x23]);
    await expectContent(node.view(), expected);
    await put(node.view(), 50 * PAGE, PAGE, 0x36);
    await expectContent(
      node.view(),
      content(0, [0, PAGE, 0x22], [PAGE, PAGE, 0x23], [50 * PAGE, PAGE, 0x36]),
    );
  });

  it("a read of the view that was under way fails too, or shows the checkpoint", async () => {
    const held = node.disk().hold({ operation: "read", count: 1 });
    const into = Buffer.alloc(PAGE);
    const read = outcome(node.view().read(PAGE, into));
    await held.arrived(1);
    await loseImage();
    held.release();
    if ((await read) === "done") expect(into.equals(Buffer.alloc(PAGE, 0x11))).to.equal(true);
  });

  it("refuses the failover to the checkpoint, and does the one to the latest", async () => {
    await loseImage();
    const [toCheckpoint, toLatest] = node.secondary.failoverOptions();
    expect(toCheckpoint?.refusal).to.match(/last checkpoint is lost/);
    expect(toLatest?.refusal).to.equal(null);
    await expectFailure(node.secondary.stop("checkpoint"), /checkpoint is lost.*--to latest/);
    await node.failover("latest");
    await expectContent(node.view(), content(0, [0, PAGE, 0x22], [PAGE, PAGE, 0x23]));
  });

  it("does the failover to the latest also when the image is lost while one to the checkpoint begins", async () => {
    const held = node.state.hold({ operation: "write", name: HIDDEN_LOG, count: 1 });
    await put(node.replication(), PAGE, PAGE, 0x23);
    await held.arrived;
    await put(node.replication(), 2 * PAGE, PAGE, 0x24);
    node.state.fail({ operation: "write", name: HIDDEN_LOG, count: 1 }, "ENOSPC");
    const failover = outcome(node.failover("checkpoint"));
    await turns();
    held.release();
    await failover;
    expect(node.secondary.stage).to.not.equal("done");
    await node.failover("latest");
    expect(node.secondary.stage).to.equal("done");
    const expected = content(0, [0, PAGE, 0x22], [PAGE, PAGE, 0x23], [2 * PAGE, PAGE, 0x24]);
    await expectContent(node.view(), expected);
    expectMedium(media[0], expected);
  });

  it("the next checkpoint of the primary mends it", async () => {
    await introduce(node, "s");
    await loseImage();
    await sessionCheckpoint(node, "s");
    expect(node.secondary.brokenPromise()).to.equal(null);
    expect(node.secondary.error).to.equal(null);
    node.secondary.getError();
    await put(node.replication(), 3 * PAGE, PAGE, 0x25);
    await expectContent(node.view(), content(0, [0, PAGE, 0x22], [PAGE, PAGE, 0x23]));
  });

  it("remembers the loss over a crash", async () => {
    await loseImage();
    await node.applied();
    await node.crashAndReopen();
    expect(node.secondary.brokenPromise()).to.match(/last checkpoint is lost/);
    expect(await outcome(node.view().read(PAGE, Buffer.alloc(PAGE)))).to.equal("EIO");
    await expectFailure(node.secondary.stop("checkpoint"), /checkpoint is lost/);
    await node.failover("latest");
    await expectContent(node.view(), content(0, [0, PAGE, 0x22], [PAGE, PAGE, 0x23]));
  });
});

describe("secondary: a before-image can't be kept, policy break-replication", () => {
  let node: SecondaryNode;
  let media: Fixture["media"];

  beforeEach(async () => {
    ({ node, media } = await openSecondary({ onUndoError: "break-replication" }));
    await node.start();
    await put(node.replication(), 0, PAGE, 0x22);
    await node.replication().flush();
    node.state.fail({ operation: "write", name: HIDDEN_LOG, count: 1 }, "ENOSPC");
  });

  afterEach(() => node.dispose());

  it("refuses the write and leaves disk and view alone", async () => {
    expect(await outcome(put(node.replication(), PAGE, PAGE, 0x23, Flag.Fua))).to.equal("ENOSPC");
    expect(await outcome(node.replication().zero(2 * PAGE, PAGE, Flag.None))).to.equal("ENOSPC");
    expectMedium(media[0], content(0, [0, PAGE, 0x22]));
    await expectContent(node.view(), content(0));
    expect(node.secondary.error).to.include({ operation: "write", errno: "ENOSPC" });
  });

  it("a write acknowledged before it failed stops every later acknowledgement, the flush's first", async () => {
    await put(node.replication(), PAGE, PAGE, 0x23);
    expect(await outcome(node.replication().flush())).to.equal("ENOSPC");
    expect(await outcome(put(node.replication(), 0, 1, 0x24))).to.equal("ENOSPC");
    expectMedium(media[0], content(0, [0, PAGE, 0x22]));
  });

  it("refuses checkpoints, and the failover to the checkpoint and what was written to the view still works", async () => {
    await put(node.view(), 50 * PAGE, PAGE, 0x33);
    await put(node.replication(), PAGE, PAGE, 0x23);
    await node.applied();
    await expectFailure(node.checkpoint(), /checkpoint refused: .*was lost/);
    const expected = content(0, [50 * PAGE, PAGE, 0x33]);
    await expectContent(node.view(), expected);
    await node.failover("checkpoint");
    await expectContent(node.view(), expected);
    expectMedium(media[0], expected);
  });

  for (const target of ["checkpoint", "latest"] as const) {
    for (const isBack of [false, true]) {
      const when = isBack ? "its primary having come back before" : "its primary never back";
      it(`has no promise broken once a failover to ${target} is done, ${when}: what was lost is given up`, async () => {
        await introduce(node, "session");
        await put(node.replication(), PAGE, PAGE, 0x23);
        await node.applied();
        expect(node.secondary.brokenPromise()).to.match(/acknowledged write at 4096 was lost/);
        if (isBack) await introduce(node, "session");
        await node.failover(target);
        expect(node.secondary.stage).to.equal("done");
        expect(node.secondary.brokenPromise()).to.equal(null);
        await node.close();
        const { cleanShutdown } = (await readMetadata(node.options.state)) ?? {};
        expect(cleanShutdown).to.equal(true);
      });
    }
  }
});
