/** What nodes make of flushes that fail, and of a state directory that can't be written, as a whole or for a moment. */
import { expect } from "chai";
import { pino } from "pino";

import { type BlockDevice, Flag } from "../../../src/block/device.js";
import { Deferred } from "../../../src/deferred.js";
import { StateError } from "../../../src/errors.js";
import { newSecondaryMetadata, readMetadata } from "../../../src/meta/metadata.js";
import { QmpError } from "../../../src/qmp/errors.js";
import { MetadataKeeper } from "../../../src/replication/metadata-keeper.js";
import { systemClock } from "../../../src/clock.js";
import { openPrimaryKeeper } from "../../../src/replication/primary/keeper.js";
import { PrimaryLineage } from "../../../src/replication/primary/lineage.js";
import type { ReplicaNetwork } from "../../../src/replication/primary/replica-network.js";
import { requestTakeOver } from "../../../src/replication/primary/take-over.js";
import { Tenures } from "../../../src/replication/secondary/tenures.js";
import { readRange } from "../../contract/device-model.js";
import { LifeClock, VirtualTime } from "../../simulation/virtual-time.js";
import { FailingStateDirectory } from "../../tools/failing-state-directory.js";
import { InProcessPair } from "../../tools/in-process-pair.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";
import { failureOf, outcome, turns } from "../../tools/outcome.js";
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
  SIZE_BYTES,
} from "./secondary-fixture.js";

const TENURE = "6f9d2b43-60c2-4f2e-9a53-0f8f6b1f0c11";

describe("a secondary whose storage fails", () => {
  let node: SecondaryNode;
  let media: Fixture["media"];

  beforeEach(async () => {
    ({ node, media } = await openSecondary());
  });

  afterEach(() => node.dispose());

  it("is not running after a start that could not be made durable, nor after another one", async () => {
    node.disk().fail({ operation: "flush" });
    for (const attempt of ["first", "second"]) {
      expect(await outcome(node.start()), attempt).to.equal("EIO");
      expect(node.secondary.stage, attempt).to.equal("none");
    }
    await put(node.replication(), 0, PAGE, 0x22);
    await node.applied();
    await node.crashAndReopen();
    expect(node.secondary.stage).to.equal("none");
    await node.start();
    await expectContent(node.view(), content(0, [0, PAGE, 0x22]));
  });

  it("acknowledges nothing more once a flush has failed, and takes no checkpoint: what was acknowledged may be lost", async () => {
    await node.start();
    await put(node.replication(), 0, PAGE, 0x22);
    node.disk().fail({ operation: "flush", count: 1 });
    expect(await outcome(node.replication().flush())).to.equal("EIO");
    expect(await outcome(put(node.replication(), 0, PAGE, 0x23))).to.equal("EIO");
    await expectFailure(
      node.checkpoint(),
      "checkpoint refused: disk disk0: acknowledged writes may be lost: injected EIO: flush at 0, 0 bytes",
    );
    await expectContent(node.view(), content(0));
  });

  it("takes no checkpoint if an acknowledged write is lost while the checkpoint waits for it", async () => {
    await node.start();
    const { epoch } = node.secondary;
    const held = node.disk().hold({ operation: "write" });
    await put(node.replication(), 0, PAGE, 0x22);
    await held.arrived(1);
    const refused = failureOf(node.checkpoint());
    await turns();
    held.failOne("EIO");
    expect((await refused).message).to.match(
      /^checkpoint refused: disk disk0: an acknowledged write at 0 was lost/,
    );
    expect(node.secondary.epoch).to.equal(epoch);
    await expectContent(node.view(), content(0));
  });

  it("begins no epoch before the last one is durable: of two checkpoints the second waits for the first", async () => {
    await node.start();
    const held = node.disk().hold({ operation: "flush", count: 1 });
    const first = await node.secondary.checkpoint({ session: null, epoch: null });
    await held.arrived(1);
    const second = node.secondary.checkpoint({ session: null, epoch: null });
    await turns(50);
    expect(node.secondary.epoch).to.equal(first);
    held.release();
    expect(await second).to.equal(first + 1);
    await node.secondary.checkpointDurable();
  });

  it("names its memory at each handshake: the same until something acknowledged may be lost", async () => {
    await node.start();
    const { memory: first } = await introduce(node, "session");
    await put(node.replication(), 0, PAGE, 0x22);
    expect((await introduce(node, "session")).memory).to.equal(first);
    node.disk().fail({ operation: "flush", count: 1 });
    expect(await outcome(node.replication().flush())).to.equal("EIO");
    const { memory: second } = await introduce(node, "session");
    expect(second).not.to.equal(first);
    expect((await introduce(node, "session")).memory).to.equal(second);
    await put(node.replication(), 0, PAGE, 0x23);
    node.disk().fail({ operation: "write", count: 1 });
    await put(node.replication(), 2 * PAGE, PAGE, 0x24);
    const { memory: third } = await introduce(node, "session");
    expect(third).not.to.equal(second);
    await node.crashAndReopen();
    expect((await introduce(node, "session")).memory).not.to.equal(third);
  });

  it("names its memory anew after a durable write that failed: its flush may have lost what was acknowledged before", async () => {
    await node.start();
    const { memory } = await introduce(node, "session");
    node.disk().fail({ operation: "write", count: 1 });
    expect(await outcome(node.replication().write(0, Buffer.alloc(PAGE, 1), Flag.Fua))).to.equal("EIO");
    const { memory: second } = await introduce(node, "session");
    expect(second).not.to.equal(memory);
    expect((await introduce(node, "session")).memory, "once").to.equal(second);
  });

  it("refuses flushes after a stop, too, until those whose acknowledged write it lost are cut off", async () => {
    await node.start();
    const { memory } = await introduce(node, "session");
    const cut = new Deferred<void>();
    node.connections = { connections: () => [], disconnectWriters: () => cut.promise };
    node.disk().fail({ operation: "write", count: 1 });
    await put(node.replication(), 0, PAGE, 0x22);
    await node.secondary.stop(null);
    expect(await outcome(node.replication().flush())).to.equal("EIO");
    // Once more, to give up what the session has not said to be whole.
    await node.secondary.stop(null);
    await node.start();
    expect(await outcome(node.replication().flush())).to.equal("EIO");
    cut.resolve();
    await cut.promise;
    await put(node.replication(), 0, PAGE, 0x23);
    expect(await outcome(node.replication().flush())).to.equal("done");
    expect((await introduce(node, "session")).memory).not.to.equal(memory);
  });

  it("takes writes again after a failover that the last ones have made impossible", async () => {
    await node.start();
    const read = node.disk().hold({ operation: "read" });
    await put(node.replication(), 0, PAGE, 0x22);
    await read.arrived(1);
    node.state.fail({ operation: "write", name: /^hidden-/ });
    const refused = failureOf(node.secondary.failOver("checkpoint"));
    await turns();
    expect(await outcome(put(node.replication(), 0, PAGE, 0x23)), "meanwhile").to.equal("ESHUTDOWN");
    read.release();
    expect(await refused).to.have.property("code", "checkpoint-lost");
    expect(node.secondary.stage).to.equal("running");
    expect(node.secondary.exportRefusal()).to.equal(null);
    node.state.clear();
    await introduce(node, "session");
    await put(node.replication(), 0, PAGE, 0x24);
    await sessionCheckpoint(node, "session");
    await node.failover("checkpoint");
    await expectContent(node.view(), content(0, [0, PAGE, 0x24]));
  });

  for (const [what, match] of [
    ["the metadata", { operation: "replace", name: /^metadata/, count: 1 }],
    ["a dirty map", { operation: "create", name: /^dirty-/ }],
  ] as const) {
    for (const target of ["checkpoint", "latest"] as const) {
      it(`a failover to ${target} for which ${what} can't be written has failed, and is done when it is tried again`, async () => {
        await node.start();
        await put(node.replication(), 0, PAGE, 0x22);
        await put(node.view(), PAGE, PAGE, 0x33);
        node.state.fail(match);
        const error = await failureOf(node.secondary.failOver(target));
        expect(error).to.have.property("code", "failover-failed");
        expect(error.message).to.match(/^failover could not begin: injected EIO: \w+: the node is in stage/);
        expect(node.secondary.stage).to.equal("failover-failed");
        expect(node.commitFailure?.message).to.match(/^injected EIO/);
        expect(node.secondary.brokenPromise()).to.match(/^the failover has failed: injected EIO: \w+$/);
        expect(await outcome(put(node.replication(), 0, PAGE, 0x24)), "fenced").to.equal("ESHUTDOWN");
        node.state.clear();
        await node.secondary.failOver(target);
        await node.secondary.commitEnded();
        expect(node.secondary.stage).to.equal("done");
        expectMedium(
          media[0],
          target === "latest" ? content(0, [0, PAGE, 0x22]) : content(0, [PAGE, PAGE, 0x33]),
        );
      });
    }
  }

  describe("and a failover has failed: another one to the other target,", () => {
    const HOW = ["at once", "after a restart", "after a crash"] as const;
    /** What can't be written; `begin` has the failover do as much as can be. */
    const obstacles: readonly (readonly [
      what: string,
      begin: (failover: () => Promise<void>) => Promise<void>,
    ])[] = [
      [
        "that it was asked for",
        async (failover) => {
          node.state.fail({ operation: "replace", name: /^metadata/ });
          await failover();
        },
      ],
      [
        "a dirty map",
        async (failover) => {
          node.state.fail({ operation: "create", name: /^dirty-/ });
          await failover();
        },
      ],
      [
        "that it has begun",
        async (failover) => {
          const held = node.state.hold({ operation: "create", name: /^dirty-/ });
          const failed = failover();
          await held.arrived;
          node.state.fail({ operation: "replace", name: /^metadata/, count: 1 });
          held.release();
          await failed;
        },
      ],
    ];

    beforeEach(async () => {
      await introduce(node, "session");
      await sessionCheckpoint(node, "session");
      await put(node.replication(), 0, PAGE, 0x22, Flag.Fua);
      await put(node.view(), PAGE, PAGE, 0x33, Flag.Fua);
    });

    const comeBack = async (how: (typeof HOW)[number]): Promise<void> => {
      node.state.clear();
      node.disk().clear();
      if (how === "after a restart") await node.restart();
      if (how === "after a crash") await node.crashAndReopen();
    };

    for (const [what, begin] of obstacles) {
      for (const [target, other] of [
        ["checkpoint", "latest"],
        ["latest", "checkpoint"],
      ] as const) {
        for (const how of HOW) {
          it(`${how}, is done after one to the ${target} that could not begin, for ${what} could not be written`, async () => {
            await begin(async () => {
              expect(await failureOf(node.secondary.failOver(target))).to.have.property(
                "code",
                "failover-failed",
              );
            });
            const shown = content(0, [PAGE, PAGE, 0x33]);
            expectMedium(media[0], content(0, [0, PAGE, 0x22]), "nothing has changed");
            await expectContent(node.view(), shown, "view");
            await comeBack(how);
            await expectContent(node.view(), shown, how);
            const isOnRecord = how !== "after a crash" || what !== "that it was asked for";
            expect(node.secondary.stage).to.equal(isOnRecord ? "failover-failed" : "running");
            const late = outcome(put(node.replication(), 0, PAGE, 0x22));
            expect(await late, "fenced").to.equal(isOnRecord ? "ESHUTDOWN" : "done");
            await node.failover(other);
            expect(node.secondary.stage).to.equal("done");
            expectMedium(media[0], other === "latest" ? content(0, [0, PAGE, 0x22]) : shown);
            const dirty = node.secondary.promoted.disks[0]?.dirty;
            expect(dirty?.tenure).to.be.a("string");
            if (other === "checkpoint") expect(dirty?.nextMissed(0, PAGE)?.offset, "taken back").to.equal(0);
          });
        }
      }
    }

    for (const how of HOW) {
      it(`${how}, is refused after one whose merge has failed at its first block`, async () => {
        node.disk().fail({ operation: "write" });
        await node.failover("checkpoint");
        await comeBack(how);
        expect(node.secondary.stage).to.equal("failover-failed");
        const error = await failureOf(node.secondary.failOver("latest"));
        expect(error).to.be.instanceOf(StateError).with.property("code", "other-target");
        const refusals = node.secondary.failoverOptions().map(({ to, refusal }) => [to, refusal]);
        expect(refusals).to.deep.equal([
          ["checkpoint", null],
          ["latest", "the failover to checkpoint has changed the disks already"],
        ]);
        await node.failover("checkpoint");
        expectMedium(media[0], content(0, [PAGE, PAGE, 0x33]));
      });

      it(`${how}, is refused after one that had begun and could not be begun again`, async () => {
        node.disk().fail({ operation: "write" });
        await node.failover("checkpoint");
        await node.crashAndReopen();
        node.state.fail({ operation: "replace", name: /^metadata/ });
        expect(await failureOf(node.secondary.failOver("checkpoint"))).to.have.property(
          "code",
          "failover-failed",
        );
        await comeBack(how);
        const error = await failureOf(node.secondary.failOver("latest"));
        expect(error).to.be.instanceOf(StateError).with.property("code", "other-target");
      });
    }
  });

  it("keeps its checkpoint when a flush of its disk fails as it is stopped, and can be failed over", async () => {
    await node.start();
    await put(node.replication(), 0, PAGE, 0x22);
    node.disk().fail({ operation: "flush" });
    await failureOf(node.secondary.stop(null));
    expect(node.secondary.stage).to.equal("running");
    await expectContent(node.view(), content(0));
    node.disk().clear();
    await node.failover("checkpoint");
    expect(node.secondary.stage).to.equal("done");
    expectMedium(media[0], content(0));
  });

  it("whose stop could not be recorded refuses a failover, fences nobody off, and can be stopped again", async () => {
    await node.start();
    await put(node.replication(), 0, PAGE, 0x22);
    // The first one says that the checkpoint is given up.
    const first = node.state.hold({ operation: "replace", name: /^metadata/, count: 1 });
    const stopped = failureOf(node.secondary.stop(null));
    await first.arrived;
    node.state.fail({ operation: "replace", name: /^metadata/ });
    first.release();
    await stopped;
    const error = await failureOf(node.secondary.failOver("checkpoint"));
    expect(error).to.be.instanceOf(StateError).with.property("code", "not-running");
    expect(error.message).to.match(/ finish the stop and start replication /);
    expect(await outcome(put(node.replication(), 0, PAGE, 0x23))).to.equal("done");
    node.state.clear();
    await node.secondary.stop(null);
    expect(node.secondary.stage).to.equal("none");
  });

  it("begins a failover anew that was asked for when it crashed, before anything had changed", async () => {
    await node.start();
    await put(node.replication(), 0, PAGE, 0x22, Flag.Fua);
    const held = node.state.hold({ operation: "create", name: /^dirty-/ });
    void node.secondary.failOver("checkpoint");
    await held.arrived;
    expect(await readMetadata(node.state)).to.deep.include({
      stage: "running",
      failoverTarget: "checkpoint",
    });
    await node.crashAndReopen();
    await node.secondary.commitEnded();
    expect(node.secondary.stage).to.equal("done");
    expectMedium(media[0], content(0));
  });

  for (const [how, isMapLost] of [
    ["knows", false],
    ["does not pretend to know, if its dirty map is gone,", true],
  ] as const) {
    it(`${how} what guests changed after a failover that failed, when it is tried again after a crash`, async () => {
      await introduce(node, "session");
      await sessionCheckpoint(node, "session");
      await put(node.replication(), 0, PAGE, 0x22);
      await node.applied();
      node.disk().fail({ operation: "write" });
      await node.failover("checkpoint");
      expect(node.secondary.stage).to.equal("failover-failed");
      node.disk().clear();
      const changed = 32 * PAGE;
      await put(node.view(), changed, PAGE, 0x33, Flag.Fua);
      if (isMapLost) await node.state.remove("dirty-0.map");
      await node.crashAndReopen();
      await node.failover("checkpoint");
      expect(node.secondary.stage).to.equal("done");
      expectMedium(media[0], content(0, [changed, PAGE, 0x33]));
      const dirty = node.secondary.promoted.disks[0]?.dirty;
      expect(dirty?.nextMissed(changed, PAGE)?.offset).to.equal(changed);
      expect(dirty?.tenure === null).to.equal(isMapLost);
    });
  }

  for (const [when, isCutRefused] of [
    ["is cut off", false],
    ["can't be cut off at first", true],
  ] as const) {
    it(`keeps over a restart what guests changed after a failover that failed, where a before-image that never became durable ${when}`, async () => {
      await node.dispose();
      ({ node, media } = await openSecondary({ onUndoError: "break-replication" }));
      await introduce(node, "session");
      await sessionCheckpoint(node, "session");
      const merged = 32 * PAGE;
      await put(node.replication(), merged, PAGE, 0x22, Flag.Fua);
      await node.applied();
      node.state.fail({ operation: "sync", name: /^hidden-/, count: 1 });
      expect(await outcome(put(node.replication(), 0, PAGE, 0x22, Flag.Fua))).to.equal("EIO");
      if (isCutRefused) {
        node.state.fail({ operation: "truncate", name: /^hidden-/, count: 1 });
        expect(await outcome(node.secondary.failOver("checkpoint"))).to.equal("failover-failed");
      }
      node.disk().fail({ operation: "write" });
      node.disk().fail({ operation: "zero" });
      await node.failover("checkpoint");
      expect(node.secondary.stage).to.equal("failover-failed");
      node.disk().clear();
      await put(node.view(), 0, PAGE, 0x33, Flag.Fua);
      await node.crashAndReopen();
      await expectContent(node.view(), content(0, [0, PAGE, 0x33]));
      await node.failover("checkpoint");
      expect(node.secondary.stage).to.equal("done");
      expectMedium(media[0], content(0, [0, PAGE, 0x33]));
    });
  }

  it("fails over although the map of its own changes can't be written any more, and then knows that it has lost it", async () => {
    await introduce(node, "session");
    await sessionCheckpoint(node, "session");
    await node.failover("latest");
    const own = 32 * PAGE;
    await put(node.view(), own, PAGE, 0x33, Flag.Fua);
    await node.crash();
    await node.reopen({ demote: true });
    const { generation } = node.secondary.metadata;
    const { tenure } = await introduce(node, "session", { generation: String(generation) });
    expect(node.secondary.metadata.offeredTenure).to.equal(tenure);
    node.state.fail({ operation: "write", name: /^dirty-/, count: 1 });
    await node.failover("latest");
    expect(node.secondary.stage).to.equal("done");
    const dirty = node.secondary.promoted.disks[0]?.dirty;
    expect([dirty?.tenure, dirty?.missedBytes]).to.deep.equal([null, SIZE_BYTES]);
  });

  it("does not take over when something was received since the checkpoint, be its before-image kept already or not", async () => {
    await introduce(node, "session");
    const epoch = await sessionCheckpoint(node, "session");
    const expectRefused = (): Promise<void> =>
      expectFailure(
        node.secondary.takeOver("the primary", epoch),
        "take-over refused: something was received since the checkpoint",
      );
    const held = node.disk().hold({ operation: "read" });
    await put(node.replication(), 0, PAGE, 0x22);
    await held.arrived(1);
    const refused = expectRefused();
    await turns();
    held.release();
    await refused;
    await node.applied();
    await expectRefused();
    expect(node.secondary.stage).to.equal("running");
  });

  it("that began to take over and failed says so, however often it is asked: it may take over later", async () => {
    await introduce(node, "session");
    const epoch = await sessionCheckpoint(node, "session");
    node.state.fail({ operation: "create", name: /^dirty-/ });
    for (const time of ["once", "again"]) {
      const error = await failureOf(node.secondary.takeOver("the primary", epoch));
      expect(error, time).to.be.instanceOf(StateError).with.property("code", "take-over-failed");
    }
    node.state.clear();
    await node.failover("latest");
    expect(await node.secondary.takeOver("the primary", epoch)).to.equal(node.secondary.metadata.generation);
  });

  it("reports a checkpoint although files of the one before could not be removed, and removes them with the next", async () => {
    await node.start();
    await put(node.replication(), 0, PAGE, 0x22);
    node.state.fail({ operation: "rename", count: 1 });
    const epoch = await node.checkpoint();
    expect(node.durableEpochs).to.include(epoch);
    expect(node.secondary.checkpointRefusal()).to.equal(null);
    expect(await node.state.list()).to.include(`hidden-${epoch - 1}.log`);
    await node.checkpoint();
    expect(await node.state.list()).to.not.include(`hidden-${epoch - 1}.log`);
  });

  it("takes writes to its view once a failover has put on record what a checkpoint could not", async () => {
    await node.start();
    await put(node.replication(), 0, PAGE, 0x22);
    node.state.fail({ operation: "replace", count: 1 });
    expect(await outcome(node.checkpoint())).to.equal("EIO");
    expect(await outcome(put(node.view(), 0, PAGE, 0x33)), "not on record").to.equal("EIO");
    for (const page of [1, 9]) await put(node.replication(), page * PAGE, PAGE, 0x23);
    await node.applied();
    const held = node.disk().hold({ operation: "write" });
    await node.secondary.stop("checkpoint");
    await held.arrived(1);
    await put(node.view(), 9 * PAGE, PAGE, 0x34);
    held.release();
    await node.secondary.commitEnded();
    expect(node.secondary.stage).to.equal("done");
    expectMedium(media[0], content(0, [0, PAGE, 0x22], [9 * PAGE, PAGE, 0x34]));
  });

  it("neither shows nor goes back to a checkpoint that it could not record as lost, and refuses the write: after a restart it may count as lost", async () => {
    await node.start();
    node.state.fail({ operation: "sync", name: /^hidden-/ });
    await put(node.replication(), 0, PAGE, 0x22);
    await node.applied();
    expectMedium(media[0], content(0));
    expect(await outcome(node.view().read(0, Buffer.alloc(1)))).to.equal("EIO");
    await expectFailure(node.secondary.stop("checkpoint"), /^failover refused: the last checkpoint is lost/);
    await node.crashAndReopen();
    await node.failover("latest");
    expectMedium(media[0], content(0));
  });

  it("lets the spare log go for metadata that there is no room for", async () => {
    await node.start();
    await node.checkpoint();
    expect(await node.state.list()).to.include("spare.log");
    // The next epoch's log is made of it, and the log before becomes the next one: it is there when the metadata is written last.
    const epoch = await node.checkpoint();
    node.state.fail({ operation: "replace", count: 1 }, "ENOSPC");
    await node.failover("latest");
    expect(node.secondary.stage).to.equal("done");
    expect((await readMetadata(node.state))?.epoch).to.equal(epoch);
  });
});

describe("a checkpoint whose epoch can't be put on record", () => {
  const RECORD = { operation: "replace", name: /^metadata/ } as const;
  const NOT_DURABLE =
    /epoch (\d+) is not durable: injected EIO: replace: mend that, then take another checkpoint; until then a crash goes back to the one before$/;

  describe("of a pair", () => {
    let pair: InProcessPair;

    beforeEach(async () => {
      pair = await InProcessPair.open({ sizes: [1024 * 1024] });
    });

    afterEach(() => pair.dispose());

    const byteOf = async (device: BlockDevice): Promise<number | undefined> => {
      const [byte] = await readRange(device, 0, 1);
      return byte;
    };

    it("fails at once at the primary, with the reason; the next one is refused while that lasts, and taken when it is mended", async () => {
      await pair.attach();
      await put(pair.guest(), 0, PAGE, 0x21);
      await pair.checkpoint();
      await put(pair.guest(), 0, PAGE, 0x22);
      pair.node.state.fail(RECORD);
      const error = await failureOf(pair.checkpoint());
      expect(error).to.have.property("code", "checkpoint-failed");
      expect(error.message)
        .to.match(/^checkpoint failed on the secondary: /)
        .and.match(NOT_DURABLE);
      expect(pair.primary.checkpointFailure).to.deep.include({ reason: error.message, attempts: 1 });
      const { secondary } = pair.node;
      expect(secondary.brokenPromise()).to.equal(
        "the last checkpoint could not be made durable: injected EIO: replace",
      );
      const [epoch, files] = [secondary.epoch, await pair.node.state.list()];
      for (let attempt = 2; attempt <= 4; attempt++) {
        await expectFailure(pair.checkpoint(), NOT_DURABLE);
        expect(pair.primary.checkpointFailure).to.deep.include({ attempts: attempt });
      }
      expect(secondary.epoch, "no other one begins").to.equal(epoch);
      expect(await pair.node.state.list()).to.deep.equal(files);
      await put(pair.guest(), 0, PAGE, 0x23);
      pair.node.state.clear();
      const next = await pair.checkpoint();
      expect(await byteOf(pair.view())).to.equal(0x23);
      expect([pair.primary.checkpointFailure, secondary.brokenPromise()]).to.deep.equal([null, null]);
      await pair.crashSecondary();
      expect([pair.node.secondary.epoch, await byteOf(pair.view())]).to.deep.equal([next, 0x23]);
    });

    it("fails at the end of the first copy, and the next one is taken over the same link", async () => {
      await put(pair.guest(), 0, PAGE, 0x22);
      const held = pair.node.state.hold({ operation: "create", name: /^hidden/ });
      const attached = failureOf(pair.attach());
      await held.arrived;
      pair.node.state.fail(RECORD);
      held.release();
      expect((await attached).message).to.match(/is not durable: injected EIO/);
      const session = pair.primary.link?.session;
      pair.node.state.clear();
      await pair.checkpoint();
      expect(await byteOf(pair.view())).to.equal(0x22);
      expect(pair.primary.link?.session).to.equal(session);
    });
  });

  describe("of a secondary", () => {
    let node: SecondaryNode;

    beforeEach(async () => {
      ({ node } = await openSecondary());
      await node.start();
      await put(node.replication(), 0, PAGE, 0x22);
      await node.checkpoint();
      await put(node.replication(), 0, 2 * PAGE, 0x23);
      node.state.fail(RECORD);
      await expectFailure(node.checkpoint(), NOT_DURABLE);
      await put(node.replication(), 0, 3 * PAGE, 0x24);
    });

    afterEach(() => node.dispose());

    it("is not gone back to: a crash shows the one before, whatever was received since", async () => {
      await expectFailure(node.checkpoint(), NOT_DURABLE);
      await node.applied();
      await node.crashAndReopen();
      await expectContent(node.view(), content(0, [0, PAGE, 0x22]));
    });

    it("leaves no hole: a manager takes the next one, and clients write to its view", async () => {
      expect(node.secondary.checkpointRefusal()).to.equal(null);
      node.state.clear();
      await node.checkpoint();
      await put(node.view(), PAGE, PAGE, 0x33);
      const shown = content(0, [0, PAGE, 0x24], [PAGE, PAGE, 0x33], [2 * PAGE, PAGE, 0x24]);
      await expectContent(node.view(), shown);
      await node.view().flush();
      await node.crashAndReopen();
      await expectContent(node.view(), shown);
    });

    it("is on record after all when the node stops, which breaks no promise", async () => {
      const { secondary } = node;
      node.state.clear();
      await node.restart();
      expect(secondary.brokenPromise()).to.equal(null);
      await expectContent(node.view(), content(0, [0, 2 * PAGE, 0x23]));
      expect(node.secondary.checkpointRefusal()).to.equal(null);
    });
  });
});

describe("a primary whose storage fails", () => {
  it("takes no checkpoint once a flush of its disk has failed, and says what to do: the disk may lack what the replica has", async () => {
    const pair = await InProcessPair.open({ sizes: [1024 * 1024] });
    try {
      await pair.attach();
      await pair.synchronised();
      await put(pair.guest(), 0, PAGE, 0x22);
      pair.primaryDisks[0]?.fail({ operation: "flush", count: 1 });
      expect(await outcome(pair.guest().flush())).to.equal("EIO");
      const trouble =
        "disk disk0 may lack what was written, a flush of it has failed: injected EIO: flush at 0, 0 bytes: fail over to the replica, or start this node anew";
      await expectFailure(pair.primary.checkpoint(), `checkpoint refused: ${trouble}`);
      expect(pair.primary.brokenPromise()).to.equal(trouble);
      await put(pair.guest(), PAGE, PAGE, 0x23);
      await pair.node.applied();
      expect(pair.secondaryMedia[0]?.contents(PAGE, 1)[0], "replicated all the same").to.equal(0x23);
    } finally {
      await pair.dispose();
    }
  });

  it("does not share a generation before that is on record, also when the first attempt to write it failed", async () => {
    const directory = new FailingStateDirectory(new MemoryStateDirectory());
    const { keeper } = await openPrimaryKeeper(directory, [], pino({ level: "silent" }));
    const lineage = new PrimaryLineage(keeper, systemClock, pino({ level: "silent" }));
    directory.fail({ operation: "replace", count: 1 });
    expect(await outcome(lineage.share())).to.equal("EIO");
    await lineage.share();
    expect((await readMetadata(directory))?.replicaGeneration).to.equal(keeper.current.generation);
  });

  it("that hands over to a node which began to take over and failed asks on, then doesn't know", async () => {
    const time = new VirtualTime();
    let asked = 0;
    const control = {
      takeOver: (): Promise<string> => {
        asked++;
        return Promise.reject(new QmpError("GenericError", "take-over-failed", "it failed", "state"));
      },
      close: (): Promise<void> => Promise.resolve(),
    };
    const network = { control: () => Promise.resolve(control) } as unknown as ReplicaNetwork;
    const request = requestTakeOver({
      control: { kind: "unix", path: "nowhere" },
      primary: "the primary",
      epoch: 1,
      timeoutMs: 1000,
      clock: new LifeClock(time),
      network,
    });
    const error = await failureOf(time.until(request));
    expect(error).to.have.property("code", "undecided");
    expect(asked).to.be.greaterThan(1);
  });
});

describe("the names of dirty maps that could not be written", () => {
  for (const how of ["forget", "confirm"] as const) {
    it(`${how}: are written with the next write of a connection`, async () => {
      const directory = new FailingStateDirectory(new MemoryStateDirectory());
      const lines: string[] = [];
      const log = pino({}, { write: (line) => lines.push(line) });
      const metadata = new MetadataKeeper(directory, newSecondaryMetadata([]), log);
      const tenures = new Tenures(metadata);
      await metadata.save({ tenure: TENURE });
      const { tenure: offered } = await tenures.renew([TENURE], {});
      directory.fail({ operation: "replace", count: 1 });
      const failed = tenures[how]();
      if (failed === null) throw new Error("it is on record already");
      expect((await failureOf(failed)).message).to.contain("injected EIO");
      await tenures[how]();
      expect(tenures[how]()).to.equal(null);
      expect(lines.map((line) => (JSON.parse(line) as { msg: string }).msg)).to.deep.equal([
        "metadata could not be written",
      ]);
      const { tenure, offeredTenure } = metadata.recorded;
      expect([tenure, offeredTenure]).to.deep.equal(how === "forget" ? [null, null] : [offered, offered]);
    });
  }
});
