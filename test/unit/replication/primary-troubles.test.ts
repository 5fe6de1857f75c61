/** What a primary knows of its troubles, for its status. */
import { expect } from "chai";

import { primaryPart } from "../../../src/app/primary-status.js";
import { Flag } from "../../../src/block/device.js";
import { DEFAULT_REPLICATION } from "../../../src/config/schema.js";
import type { Held } from "../../tools/failing-device.js";
import { InProcessPair } from "../../tools/in-process-pair.js";
import { failureOf, outcome } from "../../tools/outcome.js";
import { waitFor } from "../../tools/wait-for.js";
import { introduce, PAGE, put, sessionCheckpoint } from "./secondary-fixture.js";

const HIDDEN_LOG = /^hidden-\d+\.log$/;

describe("a primary's troubles", () => {
  let pair: InProcessPair;
  /** To be released whatever becomes of the test: the primary would wait for them. */
  const holds: Held[] = [];

  beforeEach(async () => {
    pair = await InProcessPair.open({ sizes: [1024 * 1024, 1024 * 1024] });
  });

  afterEach(async () => {
    for (const held of holds.splice(0)) held.release();
    await pair.dispose();
  });

  const replica = (): Parameters<InProcessPair["primary"]["attach"]>[0] => ({
    address: pair.replicationAddress,
    control: pair.qmpAddress,
    uri: "in this process",
  });

  /** The link was lost, and what the replica missed is not sent again before the hold is released. */
  const resyncing = async (): Promise<Held> => {
    const [disk] = pair.primaryDisks;
    if (disk === undefined) throw new Error("the pair has no disk");
    const resync = disk.hold({ operation: "read" });
    holds.push(resync);
    pair.cutLink();
    await put(pair.guest(), PAGE, PAGE, 0x23);
    await resync.arrived(1);
    return resync;
  };

  const flushFails = async (): Promise<void> => {
    pair.primaryDisks[0]?.fail({ operation: "flush", count: 1 });
    expect(await outcome(pair.guest().flush())).to.equal("EIO");
  };

  it("an error of a disk is the guest's, and is recorded with the first one's particulars and how many there were", async () => {
    expect(pair.primary.disks.map(({ error }) => error)).to.deep.equal([null, null]);
    pair.primaryDisks[1]?.fail({ operation: "write", count: 1 }, "ENOSPC");
    pair.primaryDisks[1]?.fail({ operation: "read", count: 1 });
    expect(await outcome(put(pair.guest(1), 3 * PAGE, PAGE, 0x11))).to.equal("ENOSPC");
    expect(await outcome(pair.guest(1).read(0, Buffer.alloc(PAGE)))).to.equal("EIO");
    const [none, error] = pair.primary.disks.map((disk) => disk.error);
    expect(none).to.equal(null);
    expect(error).to.deep.include({
      operation: "write",
      errno: "ENOSPC",
      disk: "disk1",
      offsetBytes: 3 * PAGE,
      lengthBytes: PAGE,
      count: 2,
      message: `injected ENOSPC: write at ${3 * PAGE}, ${PAGE} bytes`,
    });
    expect(pair.primary.error, "nothing was swallowed").to.equal(null);
  });

  it("what a verify found to differ is forgotten when all is copied anew, and not before", async () => {
    await pair.attach();
    const [disk] = pair.primary.disks;
    if (disk === undefined) throw new Error("the pair has no disk");
    pair.secondaryMedia[0]?.fill(8 * PAGE, Buffer.alloc(1, 0x77));
    pair.primary.verifier.start({ disk: null, repair: false, bytesPerSecond: 0 });
    const differing = (): number | undefined => pair.primary.verifier.lastReport(disk)?.differingBytes;
    await waitFor("the verify", differing, (bytes) => bytes !== undefined);
    pair.cutLink();
    await put(pair.guest(), 0, PAGE, 0x23);
    await pair.synchronised();
    expect(differing(), "a resync of something else").to.equal(PAGE);
    await disk.dirty.describe(null, false);
    pair.cutLink();
    await pair.synchronised();
    expect(pair.primary.verifier.lastReport(disk)).to.equal(null);
    expect(
      pair.secondaryMedia[0]?.contents().equals(pair.primaryMedia[0]?.contents() ?? Buffer.of()),
    ).to.equal(true);
  });

  it("attempts in vain to reach a replica are no reconnects", async () => {
    await pair.primary.attach({ address: { kind: "unix", path: "/nowhere" }, control: null, uri: "nowhere" });
    const startedMs = Date.now();
    await waitFor(
      "another attempt",
      () => pair.primary.link?.since.getTime() ?? 0,
      (sinceMs) => sinceMs > startedMs + 50,
    );
    expect(pair.primary.link?.reconnects).to.equal(0);
    await pair.primary.detach();
    await pair.attach();
    pair.cutLink();
    await put(pair.guest(), 0, PAGE, 0x23);
    await pair.synchronised();
    expect(pair.primary.link?.reconnects).to.equal(1);
  });

  it("it is detached since it was detached, or refused by a replica, not since it was started", async () => {
    const detachedMs = (): number => {
      const { state, since } = primaryPart(pair.primary, DEFAULT_REPLICATION).link;
      expect(state).to.equal("detached");
      return Date.parse(since);
    };
    const later = async (ms: number): Promise<number> => {
      await waitFor("the clock to go on", Date.now, (nowMs) => nowMs > ms);
      return Date.now();
    };
    const attachedMs = await later(detachedMs());
    const nowhere = { kind: "unix", path: "/nonexistent" } as const;
    await pair.primary.attach({ address: nowhere, control: nowhere, uri: "nowhere" });
    await pair.primary.detach();
    expect(detachedMs()).to.be.at.least(attachedMs);

    await introduce(pair.node, "of another history");
    await sessionCheckpoint(pair.node, "of another history");
    const refusedMs = await later(detachedMs());
    await failureOf(pair.primary.attach(replica()));
    expect(detachedMs()).to.be.at.least(refusedMs);
  });

  it("checkpoints in vain are counted until one is taken", async () => {
    await pair.attach();
    expect(pair.primary.checkpointFailure).to.equal(null);
    const resync = await resyncing();
    const { message: reason } = await failureOf(pair.checkpoint());
    expect(reason).to.match(/^checkpoint refused: the replica is /);
    const { since, ...first } = pair.primary.checkpointFailure ?? {};
    expect(first).to.deep.equal({ reason, attempts: 1 });
    const { message: later } = await failureOf(pair.checkpoint());
    expect(pair.primary.checkpointFailure).to.deep.equal({ reason: later, attempts: 2, since });
    resync.release();
    await pair.synchronised();
    expect(pair.primary.checkpointFailure).to.equal(null);
  });

  it("periodic checkpoints that are refused are told, though nobody asked for them, as long as the replica is attached", async () => {
    await pair.primary.attach(replica(), 10);
    await pair.synchronised();
    await flushFails();
    const failure = await waitFor(
      "two attempts",
      () => pair.primary.checkpointFailure,
      (found) => found !== null && found.attempts >= 2,
    );
    expect(failure?.reason).to.match(/^checkpoint refused: disk disk0 may lack what was written/);
    await pair.primary.detach();
    expect(pair.primary.checkpointFailure).to.equal(null);
    await pair.primary.attach(replica(), 0);
    expect(pair.primary.checkpointFailure).to.equal(null);
  });

  it("without a replica a checkpoint fails for whoever asks, and that is all", async () => {
    expect((await failureOf(pair.checkpoint())).message).to.equal(
      "checkpoint refused: no replica is attached",
    );
    expect(pair.primary.checkpointFailure).to.equal(null);
  });

  const loseRollback = async (): Promise<void> => {
    // No space left would be made room for, once.
    pair.node.state.fail({ operation: "write", name: HIDDEN_LOG, count: 1 }, "EIO");
    await put(pair.guest(), 0, PAGE, 0x22, Flag.Fua);
    await waitFor(
      "the replica's word",
      () => pair.primary.link?.rollbackLost ?? null,
      (reason) => reason !== null,
    );
  };

  it("a replica that has lost its rollback says so, and the next checkpoint mends it", async () => {
    await pair.attach();
    expect(pair.primary.link?.rollbackLost).to.equal(null);
    await loseRollback();
    expect(pair.primary.link?.rollbackLost).to.equal(pair.node.secondary.overlays?.lost);
    await pair.checkpoint();
    expect(pair.primary.link?.rollbackLost).to.equal(null);
  });

  it("a replica whose replication a manager stopped says that there is no rollback, until it has a checkpoint again", async () => {
    await pair.attach();
    await put(pair.guest(), 0, PAGE, 0x22);
    await pair.checkpoint();
    await pair.node.secondary.stop(null);
    await waitFor(
      "the replica's word",
      () => pair.primary.link?.rollbackLost ?? null,
      (reason) => reason === "replication was stopped without a failover",
    );
    // The first is refused for the session, and the link built anew.
    expect((await failureOf(pair.checkpoint())).message).to.match(/^checkpoint refused: /);
    await waitFor(
      "a checkpoint",
      () => pair.primary.link?.rollbackLost === null && pair.node.secondary.stage === "running",
      (isMended) => isMended,
    );
  });

  it("a checkpoint that the replica lost before it was durable there counts as lost when it is", async () => {
    await pair.attach();
    // Whose first write it is goes on record now, and not when the records are held up.
    await put(pair.guest(), PAGE, PAGE, 0x11);
    await pair.checkpoint();
    const durable = pair.node.state.hold({ operation: "replace", count: 1 });
    const checkpoint = pair.checkpoint();
    await durable.arrived;
    await loseRollback();
    durable.release();
    await checkpoint;
    expect(pair.primary.link?.rollbackLost).to.equal(pair.node.secondary.overlays?.lost).and.not.equal(null);
  });

  it("a replica that has lost its rollback says so again at the next handshake", async () => {
    await pair.attach();
    await loseRollback();
    const resync = await resyncing();
    expect(pair.primary.link?.state).to.equal("resyncing");
    expect(pair.primary.link?.rollbackLost).to.equal(pair.node.secondary.overlays?.lost).and.not.equal(null);
    resync.release();
    await pair.synchronised();
    expect(pair.primary.link?.rollbackLost).to.equal(null);
  });

  it("a replica that was refused is named with the reason, until another one is attached", async () => {
    expect(pair.primary.linkError).to.equal(null);
    await introduce(pair.node, "of another history");
    await sessionCheckpoint(pair.node, "of another history");
    const { message } = await failureOf(pair.primary.attach(replica()));
    expect(message).to.match(/^the secondary holds other data/);
    expect(pair.primary.linkError?.message).to.equal(message);
    const named = (): string | null => primaryPart(pair.primary, DEFAULT_REPLICATION).link.replica;
    expect([pair.primary.link, pair.primary.replica, named()]).to.deep.equal([null, null, "in this process"]);
    await put(pair.guest(), 0, PAGE, 0x23);
    expect(pair.primary.error, "nobody was to get what guests write").to.equal(null);
    const nowhere = { kind: "unix", path: "/nonexistent" } as const;
    await pair.primary.attach({ address: nowhere, control: nowhere, uri: "nowhere" });
    expect(pair.primary.linkError?.message).to.match(/ENOENT/);
    expect(named()).to.equal("nowhere");
    await pair.primary.detach();
    expect([pair.primary.linkError, named()]).to.deep.equal([null, null]);
  });

  it("one that was refused takes the place of none: the one that a manager stopped is started again, or detached", async () => {
    await pair.attach();
    await pair.synchronised();
    await pair.primary.stop(false);
    await put(pair.guest(), 0, PAGE, 0x23);
    expect(() => {
      pair.primary.refuseHole();
    }).to.throw("Block replication is not running");
    const refused = { ...replica(), address: pair.qmpAddress, uri: "no NBD server" };
    await failureOf(pair.primary.attach(refused));
    expect(pair.primary.replica?.uri).to.equal("in this process");
    await pair.primary.start("primary");
    await pair.synchronised();
    pair.primary.refuseHole();
    await pair.primary.stop(true);
    await failureOf(pair.primary.attach(refused));
    expect([pair.primary.stage, pair.primary.replica?.uri]).to.deep.equal(["done", "in this process"]);
    await pair.primary.detach();
    expect([pair.primary.stage, pair.primary.replica]).to.deep.equal(["none", null]);
  });
});
