/** What guests' changes do when the replica fails: --on-replica-error stop. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { StateError } from "../../../src/errors.js";
import type { AckMode } from "../../../src/status.js";
import { InProcessPair } from "../../tools/in-process-pair.js";
import { isSettled, outcome, turns } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";

const SIZE_BYTES = 1024 * 1024;
const BLOCK_BYTES = 64 * 1024;

describe("--on-replica-error stop", () => {
  let pair: InProcessPair;

  afterEach(() => pair.dispose());

  async function open(ackMode: AckMode): Promise<void> {
    pair = await InProcessPair.open({ sizes: [SIZE_BYTES], ackMode, onReplicaError: "stop" });
  }

  const write = (block: number, pattern: number): Promise<void> =>
    pair.guest().write(block * BLOCK_BYTES, Buffer.alloc(BLOCK_BYTES, pattern), Flag.None);

  function replicaHolds(block: number, pattern: number): boolean {
    const content = pair.secondaryMedia[0]
      ?.contents()
      .subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
    return content?.equals(Buffer.alloc(BLOCK_BYTES, pattern)) === true;
  }

  /** The link is lost with a write on its way; what is sent again is read from the disk, which waits. */
  async function failUnderWrite(
    isToAttach = true,
  ): Promise<{ written: Promise<void>; resync: { release: () => void } }> {
    if (isToAttach) await pair.attach();
    const resync = pair.primaryDisks[0]?.hold({ operation: "read" });
    if (resync === undefined) throw new Error("the pair has no disk");
    pair.cutLink();
    const written = write(1, 0x11);
    await resync.arrived(1);
    return { written, resync };
  }

  it("without a replica it has no effect", async () => {
    await open("memsync");
    await write(0, 0x11);
    expect(pair.primary.waitingChanges).to.equal(0);
  });

  for (const ackMode of ["memsync", "sync"] as const) {
    it(`ack mode ${ackMode}: what was in flight is acknowledged when the resync has sent it, later changes meanwhile`, async () => {
      await open(ackMode);
      const { written, resync } = await failUnderWrite();
      await write(2, 0x22);
      expect(await isSettled(written)).to.equal(false);
      expect(pair.primary.waitingChanges).to.equal(1);
      resync.release();
      await written;
      expect(pair.primary.waitingChanges).to.equal(0);
      if (ackMode === "sync") expect(replicaHolds(1, 0x11)).to.equal(true);
      await pair.synchronised();
      expect(replicaHolds(1, 0x11) && replicaHolds(2, 0x22)).to.equal(true);
    });
  }

  for (const ackMode of ["memsync", "sync"] as const) {
    it(`ack mode ${ackMode}: while they wait, the primary's line of history is its replica's: nothing was acknowledged alone`, async () => {
      await open(ackMode);
      await pair.attach();
      await pair.synchronised();
      const { generation } = pair.primary.metadata;
      const { written, resync } = await failUnderWrite(false);
      expect(pair.primary.metadata.generation).to.equal(generation);
      resync.release();
      await written;
      await pair.synchronised();
      expect(pair.primary.metadata.generation).to.equal(generation);
    });
  }

  it("ack mode async: what was acknowledged before the replica had it is another line of history", async () => {
    await open("async");
    await pair.attach();
    await pair.synchronised();
    const { generation } = pair.primary.metadata;
    pair.cutLink();
    await write(1, 0x11);
    while (pair.primary.metadata.generation === generation) await turns();
    await pair.synchronised();
  });

  it("an operator who detaches lets the changes go on alone, which is on record before they end", async () => {
    await open("memsync");
    await pair.attach();
    await pair.synchronised();
    const { generation } = pair.primary.metadata;
    const { written, resync } = await failUnderWrite(false);
    let atEnd: string | null = null;
    const ended = written.then(() => (atEnd = pair.primary.metadata.generation));
    const detached = pair.primary.detach();
    resync.release();
    await detached;
    await ended;
    expect(atEnd).not.to.equal(generation);
    await write(2, 0x22);
    expect(pair.primary.disks[0]?.dirty.missedBytes).to.be.at.least(BLOCK_BYTES);
  });

  it("an operator who stops the node ends them with ESHUTDOWN, on the same line of history, and the next start sends them", async () => {
    await open("memsync");
    await pair.attach();
    await pair.synchronised();
    const { generation } = pair.primary.metadata;
    const { written, resync } = await failUnderWrite(false);
    pair.primary.refuseWaiting();
    expect(await outcome(written)).to.equal("ESHUTDOWN");
    resync.release();
    await pair.restartPrimary();
    expect(pair.primary.metadata.generation).to.equal(generation);
    await pair.attach();
    expect(replicaHolds(1, 0x11)).to.equal(true);
  });

  it("a replica that refuses to take over, and then to go on as one: changes wait for it, and none is made alone", async () => {
    await open("memsync");
    await pair.attach();
    await pair.synchronised();
    const { generation } = pair.primary.metadata;
    const { secondary } = pair.node;
    const introduce = secondary.introduce.bind(secondary);
    const notNow = (): Promise<never> => Promise.reject(new StateError("not-now", "not now"));
    secondary.takeOver = notNow;
    secondary.introduce = notNow;
    expect(await outcome(pair.primary.switchOver())).to.equal("not-now");
    const written = write(1, 0x11);
    expect(await isSettled(written)).to.equal(false);
    expect(pair.primary.waitingChanges).to.equal(1);
    expect(pair.primary.link?.lastError?.message).to.match(/not now/);
    secondary.introduce = introduce;
    await written;
    await pair.synchronised();
    expect(replicaHolds(1, 0x11)).to.equal(true);
    expect(pair.primary.metadata.generation).to.equal(generation);
  });

  it(`links that are lost at random: at its acknowledgement each change is on the replica's disk (seed ${SEED})`, async () => {
    await open("sync");
    await pair.attach();
    const random = new Random(SEED);
    const [medium] = pair.secondaryMedia;
    if (medium === undefined) throw new Error("the pair has no disk");
    const state = { isOver: false, waited: 0 };
    let next = 0;
    const guest = async (): Promise<void> => {
      while (!state.isOver) {
        const index = next++;
        const offset = (index * 512) % SIZE_BYTES;
        const content = Buffer.alloc(512, 1 + (index % 255));
        await pair.guest().write(offset, content, Flag.None);
        const there = Buffer.alloc(512);
        await medium.read(offset, there);
        expect(there.equals(content), `write ${index} was acknowledged`).to.equal(true);
      }
    };
    const guests = Promise.all(Array.from({ length: 8 }, guest));
    for (let round = 0; round < 12; round++) {
      const enough = next + random.below(60);
      while (next < enough) await Promise.race([turns(1), guests]);
      pair.cutLink();
      await turns(1 + random.below(20));
      state.waited += pair.primary.waitingChanges;
      await Promise.race([pair.synchronised(), guests]);
    }
    state.isOver = true;
    await guests;
    expect(state.waited, "some change had to wait").to.be.greaterThan(0);
  });
});
