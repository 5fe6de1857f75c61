/** What an epoch begins on: only a checkpoint, or what the node had of its own, is gone back to. */
import { expect } from "chai";
import { randomUUID } from "node:crypto";

import type { Introduction } from "../../../src/replication/secondary/introduction.js";
import type { LostRollback } from "../../../src/replication/protocol.js";
import { InProcessPair } from "../../tools/in-process-pair.js";
import { outcome, turns } from "../../tools/outcome.js";
import {
  content,
  expectContent,
  expectFailure,
  expectMedium,
  introduce,
  PAGE,
  put,
  sessionCheckpoint,
  SIZE_BYTES,
} from "./secondary-fixture.js";

describe("secondary: what an epoch begins on", () => {
  let pair: InProcessPair;

  beforeEach(async () => {
    pair = await InProcessPair.open({ sizes: [SIZE_BYTES] });
    pair.secondaryMedia[0]?.fill(0, content(0));
    // It was a replica.
    await introduce(pair.node, "before");
    await sessionCheckpoint(pair.node, "before");
  });

  afterEach(() => pair.dispose());

  /** A part of something, by nobody who introduced itself. */
  async function writePlainly(): Promise<void> {
    const client = await pair.connectPlainly();
    await put(client, 0, 2 * PAGE, 0x77);
    await client.flush();
    await client.close();
    await pair.loseWriters();
  }

  /**
   * Neither in the view, nor by a failover, nor after a restart or a crash.
   * @param reason why, as the node says it
   */
  async function expectNothingToGoBackTo(reason: RegExp): Promise<void> {
    const restarts = [
      (): Promise<void> => Promise.resolve(),
      (): Promise<void> => pair.restartSecondary(),
      (): Promise<void> => pair.crashSecondary(),
    ];
    for (const restart of restarts) {
      await restart();
      const { secondary } = pair.node;
      const { stage } = secondary;
      await expectFailure(secondary.failOver("checkpoint"), /is lost|not running/);
      expect(secondary.stage).to.equal(stage);
      expect(await outcome(pair.view().read(0, Buffer.alloc(SIZE_BYTES)))).to.equal("EIO");
      if (stage === "none") expect(() => secondary.failoverOptions()).to.throw(reason);
      else expect(secondary.failoverOptions()[0]?.refusal).to.match(reason);
      expect(secondary.metadata.checkpointAt, "when the last checkpoint was").to.equal(null);
    }
  }

  /** A primary that knows nothing of this replica sends it everything. */
  async function resync(told: Partial<Introduction> = {}): Promise<void> {
    await introduce(pair.node, "whole", told);
    await put(await pair.connectWriter(), 0, SIZE_BYTES, 0x29);
    await sessionCheckpoint(pair.node, "whole");
    await put(await pair.connectWriter(), 0, PAGE, 0x30);
    await pair.crashSecondary();
    await expectContent(pair.view(), Buffer.alloc(SIZE_BYTES, 0x29));
    expect(pair.node.secondary.failoverOptions()[0]?.refusal).to.equal(null);
    expect(pair.node.secondary.metadata.checkpointAt).to.be.a("string");
  }

  /** It was promoted, and is to be the secondary of the node that came after it. @returns what its primary tells then */
  async function comeBack(): Promise<Partial<Introduction>> {
    await pair.node.failover("latest");
    await pair.crashSecondary({ demote: true });
    const { stage, generation } = pair.node.secondary.metadata;
    if (stage !== "none" || generation === null) throw new Error("it did not come back");
    return { generation: randomUUID(), ancestors: [generation] };
  }

  const stopped = /replication was stopped without a failover/;
  const plainly = /writer unix:\S+ wrote to the disks while replication was not running/;

  it("is no checkpoint after replication was stopped and somebody wrote", async () => {
    await pair.node.secondary.stop(null);
    await writePlainly();
    await introduce(pair.node, "s");
    await put(await pair.connectWriter(), PAGE, PAGE, 0x22);
    await expectNothingToGoBackTo(stopped);
    await resync();
  });

  it("is no checkpoint after replication was stopped under a primary that went on over its connections", async () => {
    const { tenure } = await introduce(pair.node, "s");
    const client = await pair.connectWriter();
    await put(client, 0, PAGE, 0x21);
    await sessionCheckpoint(pair.node, "s");
    await pair.node.secondary.stop(null);
    await put(client, 0, 2 * PAGE, 0x22);
    await introduce(pair.node, "s", { tenures: [tenure] });
    await expectNothingToGoBackTo(stopped);
    await resync();
  });

  it("is no checkpoint after half of a resync that a manager has given up", async () => {
    await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    await pair.node.secondary.stop(null);
    await pair.node.secondary.stop(null);
    await pair.loseWriters();
    await introduce(pair.node, "s");
    await expectNothingToGoBackTo(stopped);
    await resync();
  });

  it("is no checkpoint of what was written while replication was being stopped when the node died", async () => {
    await introduce(pair.node, "s");
    const client = await pair.connectWriter();
    await put(client, 0, PAGE, 0x21);
    await sessionCheckpoint(pair.node, "s");
    // The first record says that the checkpoint is given up, the second one that replication has stopped.
    const [first, second] = [1, 2].map(() =>
      pair.node.state.hold({ operation: "replace", name: /^metadata/, count: 1 }),
    );
    void outcome(pair.node.secondary.stop(null));
    await first?.arrived;
    first?.release();
    await second?.arrived;
    await put(client, 0, 2 * PAGE, 0x22);
    await pair.node.applied();
    await pair.crashSecondary();
    expectMedium(pair.secondaryMedia[0], content(0, [0, 2 * PAGE, 0x22]));
    await expectNothingToGoBackTo(stopped);
    await resync();
  });

  it("is not shown any more when it can't be recorded that replication is being stopped: after a restart it may not count", async () => {
    pair.node.state.fail({ operation: "replace", name: /^metadata/, count: 1 });
    await expectFailure(pair.node.secondary.stop(null), /injected EIO/);
    expect(pair.node.secondary.stage).to.equal("running");
    await expectFailure(pair.node.secondary.failOver("checkpoint"), /is lost/);
    expect(await outcome(pair.view().read(0, Buffer.alloc(PAGE)))).to.equal("EIO");
    await pair.node.secondary.stop(null);
    expect(pair.node.secondary.stage).to.equal("none");
  });

  it("is no checkpoint where a node's own data was written to by somebody else, though it is saved", async () => {
    const told = await comeBack();
    await writePlainly();
    await pair.crashSecondary();
    await introduce(pair.node, "s", told);
    await put(await pair.connectWriter(), PAGE, PAGE, 0x22);
    await expectNothingToGoBackTo(plainly);
    const [, latest] = pair.node.secondary.failoverOptions();
    expect(latest?.refusal).to.equal(null);
    expect(latest?.warning).to.match(/^what was received may have holes: /);
    await resync(told);
  });

  it("tells the primary so, and an operator what can be done", async () => {
    const told = await comeBack();
    await writePlainly();
    const heard: LostRollback[] = [];
    pair.node.onRollbackLost = (lost) => heard.push(lost);
    await introduce(pair.node, "s", told);
    expect(heard).to.have.length(1);
    expect(heard[0]?.reason).to.match(plainly);
    await expectFailure(
      pair.node.secondary.failOver("checkpoint"),
      /^failover refused: the last checkpoint is lost, writer .*: wait for the next one, or fail over to the latest content instead \(--to latest\)/,
    );
    await pair.node.failover("latest");
    expect(pair.node.secondary.stage).to.equal("done");
  });

  it("is no checkpoint where what this node has is given up after somebody wrote, though it is saved", async () => {
    await pair.node.secondary.stop(null);
    await writePlainly();
    await pair.crashSecondary({ discardLocalChanges: true });
    const told = { generation: randomUUID() };
    await introduce(pair.node, "s", told);
    await put(await pair.connectWriter(), PAGE, PAGE, 0x22);
    expect(pair.node.secondary.stage).to.equal("running");
    await expectNothingToGoBackTo(stopped);
    await resync(told);
    expect(pair.node.secondary.salvage).to.match(/salvage-\d+\.log$/);
  });

  it("is what an operator says who gives a copy up and takes what there is of it", async () => {
    await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    await pair.node.secondary.stop(null);
    await pair.node.secondary.stop(null);
    await pair.node.start();
    await pair.node.failover("checkpoint");
    await expectContent(pair.view(), content(0, [0, PAGE, 0x22]));
  });

  it("is spoilt by no write before that is on record", async () => {
    await pair.node.secondary.stop(null);
    await pair.node.start();
    // Of no primary of ours: there is no dirty map whose end has to be on record first.
    await put(await pair.connectPlainly(), 0, PAGE, 0x21);
    await comeBack();
    const held = pair.node.state.hold({ operation: "replace", name: /^metadata/ });
    const written = outcome(put(await pair.connectPlainly(), 0, PAGE, 0x77));
    await held.arrived;
    await turns();
    expectMedium(pair.secondaryMedia[0], content(0, [0, PAGE, 0x21]));
    held.release();
    expect(await written).to.equal("done");
  });

  it("is a node's own data that nobody touched: a resync of it is gone back from, after a restart as well", async () => {
    await put(await pair.connectWriter(), 0, PAGE, 0x21);
    const told = await comeBack();
    await introduce(pair.node, "s", told);
    await put(await pair.connectWriter(), 0, 3 * PAGE, 0x22);
    await pair.restartSecondary();
    await introduce(pair.node, "again", told);
    await put(await pair.connectWriter(), 2 * PAGE, 3 * PAGE, 0x22);
    await pair.crashSecondary();
    await expectContent(pair.view(), content(0, [0, PAGE, 0x21]));
    await pair.node.failover("checkpoint");
    await expectContent(pair.view(), content(0, [0, PAGE, 0x21]));
  });

  it("is what a manager says, whoever wrote before: a start, its failover and a primary's resync after it", async () => {
    for (const byte of [0x71, 0x72]) {
      await pair.node.secondary.stop(null);
      const client = await pair.connectPlainly();
      await put(client, 0, SIZE_BYTES, byte);
      await pair.node.start();
      await put(client, 0, PAGE, 0x73);
      await client.close();
      await pair.loseWriters();
      await expectContent(pair.view(), Buffer.alloc(SIZE_BYTES, byte));
    }
    await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, 2 * PAGE, 0x22);
    await pair.crashSecondary();
    await pair.node.failover("checkpoint");
    await expectContent(pair.view(), Buffer.alloc(SIZE_BYTES, 0x72));
  });
});
