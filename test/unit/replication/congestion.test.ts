/** A replica that is slower than the guest in ack mode async: --on-congestion. In virtual time. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import type { CongestionPolicy } from "../../../src/status.js";
import type { Held } from "../../tools/failing-device.js";
import { InProcessPair } from "../../tools/in-process-pair.js";
import { isSettled, turns } from "../../tools/outcome.js";
import { LonePrimary, MEBIBYTE } from "./lone-primary.js";

const SIZE_BYTES = 8 * MEBIBYTE;
const WRITE_BYTES = 256 * 1024;
/** Half of the disk: what the guest writes beyond it waits for the replica. */
const ASYNC_BYTES = SIZE_BYTES / 2;
const WRITES = SIZE_BYTES / WRITE_BYTES;

describe("congestion", () => {
  let lone: LonePrimary;
  /** What the replica was sent, and does not answer. */
  let held: Held;
  let writes: Promise<void>[];

  /** Writes the whole disk, while nothing gets onto the replica's. @returns how many writes were acknowledged at once */
  async function congest(onCongestion: CongestionPolicy): Promise<number> {
    lone = await LonePrimary.open({ settings: { ackMode: "async", onCongestion, asyncBytes: ASYNC_BYTES } });
    lone.answerCheckpoint = (epoch) => {
      void turns().then(() => {
        lone.told.durable(epoch);
      });
      return Promise.resolve();
    };
    held = lone.theirs.hold({ operation: "write" });
    writes = Array.from({ length: WRITES }, (_, index) =>
      lone.guest.write(index * WRITE_BYTES, Buffer.alloc(WRITE_BYTES, index + 1), Flag.None),
    );
    await held.arrived(1);
    await turns(100);
    return (await Promise.all(writes.map(isSettled))).filter(Boolean).length;
  }

  const release = async (): Promise<void> => {
    held.release();
    await lone.time.until(Promise.all(writes));
  };

  const expectSame = (): void => {
    expect(lone.copy.contents().equals(lone.medium.contents())).to.equal(true);
  };

  afterEach(() => lone.time.until(lone.primary.close()));

  it("block: the guest waits for the replica, and nothing is lost", async () => {
    expect(await congest("block")).to.equal(ASYNC_BYTES / WRITE_BYTES);
    await release();
    await lone.time.until(lone.primary.checkpoint());
    expectSame();
    expect(lone.primary.link?.reconnects).to.equal(0);
  });

  it("detach: the guest goes on, and the replica gets what it missed later", async () => {
    expect(await congest("detach")).to.equal(WRITES);
    expect(lone.primary.link?.lastError?.message).to.match(/slower than the guest/);
    await release();
    await lone.replicates();
    expectSame();
  });
});

describe("congestion of a pair", () => {
  /** More than a primary keeps in memory for a replica that is slower. */
  const PAIR_BYTES = 72 * MEBIBYTE;
  let pair: InProcessPair;

  afterEach(() => pair.dispose());

  it("block: a checkpoint lets guests go on until the replica has nearly all that waits for it", async () => {
    pair = await InProcessPair.open({ sizes: [PAIR_BYTES], ackMode: "async", onCongestion: "block" });
    await pair.attach();
    const slow = pair.node.disk().hold({ operation: "write" });
    const changes = Array.from({ length: PAIR_BYTES / MEBIBYTE }, (_, index) =>
      pair.guest().write(index * MEBIBYTE, Buffer.alloc(MEBIBYTE, index + 1), Flag.None),
    );
    await slow.arrived(1);
    await turns(1500);
    const checkpoint = pair.checkpoint();
    await turns();
    await pair.guest().zero(0, MEBIBYTE, Flag.None);
    expect(await isSettled(checkpoint)).to.equal(false);
    slow.release();
    await Promise.all([...changes, checkpoint]);
    await pair.checkpoint();
    const [disk] = pair.primaryMedia;
    const [copy] = pair.secondaryMedia;
    expect(copy?.contents().equals(disk?.contents() ?? Buffer.alloc(0))).to.equal(true);
  });
});
