/** When a secondary refuses a checkpoint because its disks may have a hole, and when it takes one again. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import type { NbdDevice } from "../../../src/nbd/client/device.js";
import { isSettled, outcome, turns } from "../../tools/outcome.js";
import { InProcessPair } from "../../tools/in-process-pair.js";
import {
  content,
  expectContent,
  expectFailure,
  expectMedium,
  GENERATION,
  introduce,
  PAGE,
  put,
  sessionCheckpoint,
  SIZE_BYTES,
} from "./secondary-fixture.js";

describe("secondary: trust in its writers", () => {
  let pair: InProcessPair;

  beforeEach(async () => {
    pair = await InProcessPair.open({ sizes: [SIZE_BYTES, SIZE_BYTES] });
    for (const [index, medium] of pair.secondaryMedia.entries()) medium.fill(0, content(index));
  });

  afterEach(() => pair.dispose());

  /** Goes away in the middle of a request. */
  async function loseUnanswered(client: NbdDevice, index = 0): Promise<void> {
    const held = pair.node.disk(index).hold({ operation: "write" });
    const lost = outcome(put(client, 0, PAGE, 0x21, Flag.Fua));
    await held.arrived(1);
    client.destroy(new Error("lost"));
    held.release();
    await lost;
    await pair.writersGone();
  }

  async function expectRefused(reason: RegExp): Promise<void> {
    const before = pair.node.secondary.epoch;
    await expectFailure(pair.node.checkpoint(), reason);
    expect(pair.node.secondary.epoch).to.equal(before);
  }

  /** What makes it whole again: the whole disk, sent once more by a primary that introduced itself. */
  async function resync(session: string): Promise<void> {
    await introduce(pair.node, session);
    await expectRefused(/this node's primary takes them/);
    const client = await pair.connectWriter();
    await put(client, 0, SIZE_BYTES, 0x29);
    await sessionCheckpoint(pair.node, session);
    await expectContent(pair.view(), Buffer.alloc(SIZE_BYTES, 0x29));
    await client.close();
    await pair.writersGone();
  }

  it("takes checkpoints while its only writer goes and nothing is unanswered", async () => {
    await pair.node.start();
    const client = await pair.connectWriter();
    await put(client, 0, PAGE, 0x22);
    await client.close();
    await pair.writersGone();
    await pair.node.checkpoint();
    await expectContent(pair.view(), content(0, [0, PAGE, 0x22]));
  });

  it("takes none of what a writer left that was cut off, over a restart too, until replication is started anew", async () => {
    await pair.node.start();
    const client = await pair.connectWriter();
    await put(client, 0, PAGE, 0x22);
    client.destroy(new Error("killed"));
    await pair.writersGone();
    await expectRefused(/went away without NBD_CMD_DISC/);
    await pair.restartSecondary();
    await expectRefused(/went away without NBD_CMD_DISC/);
    const [, latest] = pair.node.secondary.failoverOptions();
    expect(latest?.warning, "it has an end, not holes").to.equal(null);
    await pair.node.secondary.stop(null);
    await pair.node.start();
    await expectContent(pair.view(), content(0, [0, PAGE, 0x22]));
    await pair.node.checkpoint();
  });

  it("refuses after a writer went away with requests unanswered, until a resync", async () => {
    await pair.node.start();
    await loseUnanswered(await pair.connectWriter());
    await expectRefused(/went away with 1 requests unanswered/);
    // As a QEMU primary does: it comes back and goes on.
    const again = await pair.connectWriter();
    await put(again, 2 * PAGE, PAGE, 0x23);
    await expectRefused(/went away with 1 requests unanswered/);
    await again.close();
    await pair.writersGone();
    await resync("s");
  });

  it("counts the requests of each connection of a primary, whichever ends first", async () => {
    await pair.node.start();
    await introduce(pair.node, "s");
    const first = await pair.connectWriter(0);
    const second = await pair.connectWriter(1);
    await put(first, 0, PAGE, 0x22);
    await put(second, 0, PAGE, 0x22);
    await sessionCheckpoint(pair.node, "s");
    await first.close();
    await loseUnanswered(second, 1);
    expect(pair.node.secondary.checkpointRefusal()).to.match(/went away with 1 requests unanswered/);
    await expectFailure(
      sessionCheckpoint(pair.node, "s"),
      /has to introduce itself again: its connections were lost/,
    );
  });

  it("refuses after a writer came back without a resync", async () => {
    await pair.node.start();
    const client = await pair.connectWriter();
    await put(client, 0, PAGE, 0x22);
    await client.close();
    await pair.writersGone();
    const again = await pair.connectWriter();
    await put(again, PAGE, PAGE, 0x22);
    await expectRefused(/came back without a resync/);
    await expectFailure(introduce(pair.node, "s"), /another primary replicates to the secondary/);
    await again.close();
    await pair.writersGone();
    await resync("s");
  });

  it("lets the primary that was there before it was started anew in, whoever writes since replication was stopped, and no other one", async () => {
    await introduce(pair.node, "s");
    await pair.crashSecondary();
    await pair.node.secondary.stop(null);
    const stranger = await pair.connectWriter();
    await put(stranger, 0, PAGE, 0x22);
    const other = introduce(pair.node, "t", { primary: "another primary" });
    await expectFailure(other, /another primary replicates to the secondary/);
    await introduce(pair.node, "u");
    expect(await outcome(put(stranger, 0, PAGE, 0x23)), "cut off").to.not.equal("done");
  });

  it("keeps the primary that is connected when an older copy of it introduces itself, and lets it in again itself", async () => {
    const first = await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    const second = await introduce(pair.node, "s", { tenures: [first.tenure] });
    const writer = await pair.connectWriter();
    await put(writer, 0, PAGE, 0x23);
    const before = pair.node.secondary.metadata;
    const peer = pair.node.connections.connections()[0]?.peer;
    for (const tenures of [[first.tenure], [second.tenure, first.tenure]]) {
      await expectFailure(
        introduce(pair.node, "copy", { tenures }),
        `another primary replicates to the secondary, from ${String(peer)}, and this one may be an older copy of it: stop that first`,
      );
    }
    expect(pair.node.secondary.metadata).to.deep.equal(before);
    await put(writer, PAGE, PAGE, 0x24);
    await sessionCheckpoint(pair.node, "s");
    await expectContent(pair.view(), content(0, [0, PAGE, 0x23], [PAGE, PAGE, 0x24]));

    const third = await introduce(pair.node, "it lost its link", { tenures: [second.tenure] });
    expect(third.isKnown).to.equal(true);
    expect(await outcome(put(writer, 0, PAGE, 0x25)), "its old connection is cut off").to.not.equal("done");

    const unaware = await pair.connectWriter();
    await put(unaware, 0, PAGE, 0x26);
    const fourth = await introduce(pair.node, "it lost its maps", { tenures: [] });
    expect(fourth.isKnown).to.equal(false);
    expect(await outcome(put(unaware, 0, PAGE, 0x27)), "its old connection is cut off").to.not.equal("done");
  });

  it("takes one for an older copy that knows nothing of a checkpoint that the primary took, though its maps have the name", async () => {
    const { tenure } = await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    await pair.node.secondary.checkpoint({ session: "s", epoch: 7 });
    await pair.node.secondary.checkpointDurable();
    const older = { tenures: [tenure], epoch: 6 };
    await expectFailure(
      introduce(pair.node, "copy", older),
      /another primary replicates to the secondary, from .*, and this one may be an older copy of it: stop that first/,
    );
    await pair.crashSecondary();
    const restored = await introduce(pair.node, "restored", older);
    expect(restored.isKnown, "restored from a backup").to.equal(false);
    await put(await pair.connectWriter(), 0, PAGE, 0x23);
    const again = await introduce(pair.node, "again", { tenures: [restored.tenure], epoch: 6 });
    expect(again.isKnown, "that is its own time from then on").to.equal(true);
  });

  it("knows the primary that is in the epoch that it asked for last, or a later one", async () => {
    let { tenure } = await introduce(pair.node, "s");
    for (const epoch of [7, 8]) {
      await put(await pair.connectWriter(), 0, PAGE, epoch);
      if (epoch === 7) await pair.node.secondary.checkpoint({ session: "s", epoch });
      const next = await introduce(pair.node, "again", { tenures: [tenure], epoch });
      expect(next.isKnown).to.equal(true);
      ({ tenure } = next);
    }
  });

  it("lets a primary in that ended between its first handshake and putting the tenure on record", async () => {
    await introduce(pair.node, "s");
    const { tenure } = await introduce(pair.node, "again");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    expect((await introduce(pair.node, "later", { tenures: [tenure] })).isKnown).to.equal(true);
  });

  it("refuses after a write failed here, and after one was refused", async () => {
    await pair.node.start();
    const client = await pair.connectWriter();
    pair.node.disk().fail({ operation: "write", count: 1 });
    expect(await outcome(put(client, 0, PAGE, 0x22, Flag.Fua))).to.equal("EIO");
    await expectRefused(/write failed on the secondary/);
    await client.close();
    await pair.writersGone();
    await resync("s");
  });

  it("refuses after an acknowledged write was lost, until the primary has sent it again", async () => {
    await pair.node.start();
    const client = await pair.connectWriter();
    pair.node.disk().fail({ operation: "write", count: 1 });
    await put(client, 0, PAGE, 0x22);
    expect(await outcome(client.flush())).to.equal("EIO");
    await expectRefused(/an acknowledged write at 0 was lost/);
    await client.close();
    await pair.writersGone();
    await resync("s");
  });

  it("refuses after an unclean restart, with the same epoch, view and disk", async () => {
    await pair.node.start();
    const client = await pair.connectWriter();
    await put(client, 0, PAGE, 0x22);
    await client.flush();
    const { epoch } = pair.node.secondary;
    await pair.crashSecondary();
    expect(pair.node.secondary.epoch).to.equal(epoch);
    await expectContent(pair.view(), content(0));
    expectMedium(pair.secondaryMedia[0], content(0, [0, PAGE, 0x22]));
    await expectRefused(/not shut down cleanly/);
    await resync("s");
  });

  it("remembers why it refuses over a clean restart", async () => {
    await pair.node.start();
    await loseUnanswered(await pair.connectWriter());
    await pair.restartSecondary();
    await expectRefused(/went away with 1 requests unanswered/);
    await pair.restartSecondary();
    await expectRefused(/went away with 1 requests unanswered/);
  });

  it("accepts again after a stop and a start, which give up the old checkpoint", async () => {
    await pair.node.start();
    await loseUnanswered(await pair.connectWriter());
    await expectRefused(/unanswered/);
    await pair.node.secondary.stop(null);
    await pair.node.start();
    await put(await pair.connectWriter(), PAGE, PAGE, 0x24);
    await pair.node.checkpoint();
    expect(pair.node.secondary.checkpointRefusal()).to.equal(null);
  });

  it("takes the word of the session that introduced itself last, and of no other", async () => {
    await introduce(pair.node, "old");
    await introduce(pair.node, "new");
    await expectFailure(
      sessionCheckpoint(pair.node, "old"),
      /has to introduce itself again: its connections were lost/,
    );
    await expectFailure(
      sessionCheckpoint(pair.node, "other"),
      /has to introduce itself again: its connections were lost/,
    );
    expect(pair.node.secondary.stage).to.equal("none");
    await sessionCheckpoint(pair.node, "new");
    expect(pair.node.secondary.stage).to.equal("running");
  });

  it("is a primary's that introduced itself, be it connected or not, until a manager stops that and starts another", async () => {
    const { tenure } = await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    await sessionCheckpoint(pair.node, "s");
    const refuses = async (): Promise<void> => {
      expect(await outcome(put(await pair.connectPlainly(0), 0, PAGE, 0x99))).to.equal("EPERM");
      await expectRefused(/this node's primary takes them/);
      expectMedium(pair.secondaryMedia[0], content(0, [0, PAGE, 0x22]));
      await expectContent(pair.view(), content(0, [0, PAGE, 0x22]));
    };
    await refuses();
    await pair.loseWriters();
    await refuses();
    await pair.crashSecondary();
    await refuses();
    const again = await introduce(pair.node, "again", { tenures: [tenure] });
    expect(again.isKnown, "its dirty map counts on").to.equal(true);
    await sessionCheckpoint(pair.node, "again");
    await pair.restartSecondary();
    await refuses();

    await pair.node.secondary.stop(null);
    await pair.node.start();
    const writer = await pair.connectPlainly(0);
    await put(writer, 0, PAGE, 0x33);
    await pair.node.checkpoint();
    await expectContent(pair.view(), content(0, [0, PAGE, 0x33]));
    await expectFailure(introduce(pair.node, "late"), /another primary replicates to the secondary/);
  });

  it("knows at the handshake whether the primary wrote last, also after a crash", async () => {
    const first = await introduce(pair.node, "s");
    expect(first.isKnown).to.equal(false);
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    const second = await introduce(pair.node, "s", { tenures: [first.tenure] });
    expect(second.isKnown).to.equal(true);
    await pair.crashSecondary();
    const third = await introduce(pair.node, "another life", { tenures: [second.tenure] });
    expect(third.isKnown).to.equal(true);
    await pair.writersGone();
    await pair.crashSecondary();
    await pair.node.secondary.stop(null);
    // Somebody who doesn't introduce himself writes: what the primary remembers is void.
    await put(await pair.connectWriter(), 0, PAGE, 0x23);
    await pair.loseWriters();
    expect((await introduce(pair.node, "s", { tenures: [third.tenure] })).isKnown).to.equal(false);
  });

  it("knows a primary that ends again and again while it renames its dirty maps, until it has written under the new name", async () => {
    const { tenure: old } = await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    const offers: string[] = [];
    let tenures = [old];
    for (let i = 0; i < 4; i++) {
      const { isKnown, tenure } = await introduce(pair.node, `life ${i}`, { tenures });
      expect(isKnown).to.equal(true);
      offers.push(tenure);
      // It has renamed the first map, or, in its last two lives, nothing.
      if (i < 2) tenures = [tenure, old];
    }
    const [offered = ""] = offers;
    expect(offers).to.deep.equal([offered, offered, offered, offered]);
    const renamed = await introduce(pair.node, "all are renamed", { tenures: [offered] });
    expect([renamed.isKnown, renamed.tenure === offered]).to.deep.equal([true, false]);
    await put(await pair.connectWriter(), 0, PAGE, 0x23);
    await pair.loseWriters();
    expect((await introduce(pair.node, "a copy", { tenures: [offered, old] })).isKnown).to.equal(false);
  });

  it("carries out nothing of a writer before it is on record whose dirty map does not count any more", async () => {
    const first = await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    const second = await introduce(pair.node, "s", { tenures: [first.tenure] });
    await put(await pair.connectWriter(), 0, PAGE, 0x23);
    await pair.crashSecondary();
    await pair.node.secondary.stop(null);

    const held = pair.node.state.hold({ operation: "replace", name: /^metadata/ });
    const stranger = await pair.connectWriter();
    const [earlier, later] = [
      outcome(put(stranger, 0, PAGE, 0x24)),
      outcome(put(stranger, PAGE, PAGE, 0x25)),
    ];
    await held.arrived;
    await turns();
    expectMedium(pair.secondaryMedia[0], content(0, [0, PAGE, 0x23]));
    held.release();
    expect([await earlier, await later]).to.deep.equal(["done", "done"]);
    await pair.crashSecondary();
    expectMedium(pair.secondaryMedia[0], content(0, [0, PAGE, 0x24], [PAGE, PAGE, 0x25]));
    expect((await introduce(pair.node, "s", { tenures: [second.tenure] })).isKnown).to.equal(false);
  });

  it("takes a writer again of whom was recorded in passing what could not be before", async () => {
    await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    await pair.crashSecondary();
    await pair.node.secondary.stop(null);

    pair.node.state.fail({ operation: "replace", name: /^metadata/, count: 1 });
    const stranger = await pair.connectWriter();
    await expectFailure(put(stranger, 0, PAGE, 0x23), /it can't be recorded who writes/);
    await stranger.close();
    await pair.writersGone();
    // Whatever writes the metadata next writes that, too.
    await pair.node.start();
    await put(await pair.connectWriter(), 0, PAGE, 0x24);
    await pair.node.applied();
    expectMedium(pair.secondaryMedia[0], content(0, [0, PAGE, 0x24]));
  });

  it("refuses a writer while it can't be recorded that it writes, and takes it when it can", async () => {
    const first = await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    await pair.crashSecondary();
    await pair.node.secondary.stop(null);

    pair.node.state.fail({ operation: "replace", name: /^metadata/, count: 1 });
    const stranger = await pair.connectWriter();
    for (const attempt of [0x23, 0x24]) {
      await expectFailure(put(stranger, 0, PAGE, attempt), /it can't be recorded who writes: .*injected EIO/);
    }
    expectMedium(pair.secondaryMedia[0], content(0, [0, PAGE, 0x22]));
    await stranger.close();
    await pair.writersGone();
    await put(await pair.connectWriter(), 0, PAGE, 0x25);
    await pair.crashSecondary();
    expectMedium(pair.secondaryMedia[0], content(0, [0, PAGE, 0x25]));
    expect((await introduce(pair.node, "s", { tenures: [first.tenure] })).isKnown).to.equal(false);
  });

  it("takes the tenure before the last one too, until something was written under the new one", async () => {
    const first = await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    const lost = await introduce(pair.node, "s", { tenures: [first.tenure] });
    const next = await introduce(pair.node, "s", { tenures: [first.tenure] });
    expect([lost.isKnown, next.isKnown]).to.deep.equal([true, true]);
    await put(await pair.connectWriter(), 0, PAGE, 0x23);
    await pair.loseWriters();
    // As of a primary whose state directory was restored from a backup.
    expect((await introduce(pair.node, "s", { tenures: [first.tenure] })).isKnown).to.equal(false);
  });

  it("knows a primary that ended while it renamed the maps of its disks, but not one with a map from a backup", async () => {
    const old = await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    const first = await introduce(pair.node, "s", { tenures: [old.tenure] });
    await put(await pair.connectWriter(), 0, PAGE, 0x23);
    const second = await introduce(pair.node, "s", { tenures: [first.tenure] });
    const half = await introduce(pair.node, "s", { tenures: [second.tenure, first.tenure] });
    const again = await introduce(pair.node, "s", { tenures: [half.tenure, first.tenure] });
    expect([second.isKnown, half.isKnown, again.isKnown]).to.deep.equal([true, true, true]);
    expect((await introduce(pair.node, "s", { tenures: [again.tenure, old.tenure] })).isKnown).to.equal(
      false,
    );
  });

  it("is not started by a manager in the midst of a first copy, after a restart neither, but for one who gives that up", async () => {
    const refused = /^a primary's copy is not finished/;
    await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    await expectFailure(pair.node.start(), refused);
    await pair.loseWriters();
    expect(await outcome(put(await pair.connectPlainly(0), 0, PAGE, 0x23))).to.equal("EPERM");
    await expectFailure(pair.node.start(), refused);
    await pair.crashSecondary();
    await expectFailure(pair.node.start(), refused);
    // One that never connects keeps the place.
    await introduce(pair.node, "s");
    const other = await pair.connectPlainly(0);
    expect(await outcome(put(other, 0, PAGE, 0x24))).to.equal("EPERM");
    await pair.node.secondary.stop(null);
    await put(await pair.connectPlainly(0), 0, PAGE, 0x24);
    await expectFailure(pair.node.secondary.stop(null), /Block replication is not running/);
    await pair.node.start();
    expect(pair.node.secondary.stage).to.equal("running");
  });

  it("takes half of a resync that was stopped for no checkpoint, by whomever it is started, nor after a restart", async () => {
    const refused = /^a primary's copy is not finished/;
    await introduce(pair.node, "s");
    await sessionCheckpoint(pair.node, "s");
    await introduce(pair.node, "s2");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    await pair.node.secondary.stop(null);
    await expectFailure(pair.node.start(), refused);
    await pair.crashSecondary();
    await expectFailure(pair.node.start(), refused);
    await introduce(pair.node, "s3");
    expect(pair.node.secondary.stage, "there is nothing to go back to").to.equal("none");
    await put(await pair.connectWriter(), PAGE, PAGE, 0x22);
    await sessionCheckpoint(pair.node, "s3");
    expect(pair.node.secondary.stage).to.equal("running");
    await pair.node.secondary.stop(null);
    await pair.node.start();
    await expectContent(pair.view(), content(0, [0, 2 * PAGE, 0x22]));
  });

  it("takes no checkpoint of a manager who starts it while a primary is connected that has not said that it is whole", async () => {
    await introduce(pair.node, "s");
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    await pair.node.secondary.stop(null);
    await pair.node.start();
    await expectRefused(/a primary is connected that has not said that nothing is missing/);
  });

  it("is obeyed by no late word of a primary that has shaken hands again since", async () => {
    await pair.attach();
    const before = pair.primary.link?.session ?? "";
    pair.cutLink();
    while (pair.primary.link?.session === before) await turns();
    await pair.synchronised();
    await expectFailure(
      sessionCheckpoint(pair.node, before),
      /has to introduce itself again: its connections were lost/,
    );
    await pair.checkpoint();
  });

  it("has on record that a gap was mended while it was being written down", async () => {
    await introduce(pair.node, "s");
    await sessionCheckpoint(pair.node, "s");
    const { tracker } = pair.node.secondary;
    const held = pair.node.state.hold({ operation: "replace" });
    tracker.writeFailed("lost");
    await held.arrived;
    tracker.resynced("s");
    held.release();
    await pair.restartSecondary();
    expect(pair.node.secondary.checkpointRefusal()).to.equal(null);
  });

  it("belongs to the primary before, when the handshake of another one has failed", async () => {
    await introduce(pair.node, "s");
    pair.node.state.fail({ operation: "replace", name: /^metadata/, count: 1 });
    const other = { primary: "another", generation: "0b5f6a1e-6c55-4b0e-9d0d-3f5b7f0e1a11" };
    await expectFailure(introduce(pair.node, "other", other), /injected EIO/);
    await put(await pair.connectWriter(), 0, PAGE, 0x22);
    await sessionCheckpoint(pair.node, "s");
    expect(pair.node.secondary.metadata.generation).to.equal(GENERATION);
  });

  it("lets a stranger in at no instant of a handshake, however long it takes to cut others off", async () => {
    await pair.node.start();
    await introduce(pair.node, "s");
    const primary = await pair.connectWriter();
    await put(primary, 0, PAGE, 0x21);
    const reader = await pair.connectPlainly(1);
    const held = pair.node.disk(1).hold({ operation: "read" });
    const reading = outcome(reader.read(0, Buffer.alloc(PAGE)));
    await held.arrived(1);
    await primary.close();
    while (pair.node.secondary.tracker.session !== null) await turns();
    const again = introduce(pair.node, "s");
    expect(await isSettled(again), "the handshake waits for the reader").to.equal(false);
    const strangers = await Promise.all([0, 1].map((index) => pair.connectPlainly(index)));
    const early = await Promise.all(strangers.map((stranger) => outcome(put(stranger, 0, PAGE, 0x99))));
    held.release();
    await reading;
    await again;
    expect(early).to.deep.equal(["EPERM", "EPERM"]);
    for (const stranger of strangers) expect(await outcome(put(stranger, 0, PAGE, 0x99))).to.equal("EPERM");
    const client = await pair.connectWriter();
    await put(client, 0, PAGE, 0x22);
    await sessionCheckpoint(pair.node, "s");
    await pair.node.applied();
    expectMedium(pair.secondaryMedia[0], content(0, [0, PAGE, 0x22]));
    expectMedium(pair.secondaryMedia[1], content(1));
  });

  it("a handshake cuts old connections off: no late write of theirs lands behind it", async () => {
    await pair.node.start();
    const { tenure } = await introduce(pair.node, "s");
    const old = await pair.connectWriter();
    const held = pair.node.disk().hold({ operation: "write" });
    const late = outcome(put(old, 0, PAGE, 0x21, Flag.Fua));
    const later = outcome(put(old, PAGE, PAGE, 0x21));
    await held.arrived(2);
    const introduced = introduce(pair.node, "s", { tenures: [tenure] });
    expect(await isSettled(introduced), "the handshake waits for what is under way").to.equal(false);
    const tooLate = outcome(put(old, 2 * PAGE, PAGE, 0x21));
    await turns();
    held.release();
    await introduced;

    const client = await pair.connectWriter();
    await put(client, 0, 3 * PAGE, 0x22);
    await client.flush();
    await Promise.all([late, later]);
    expect(await tooLate).to.not.equal("done");
    expect(await outcome(put(old, 0, PAGE, 0x21))).to.not.equal("done");
    expectMedium(pair.secondaryMedia[0], content(0, [0, 3 * PAGE, 0x22]));
  });
});
