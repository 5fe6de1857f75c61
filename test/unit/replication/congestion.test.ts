/** A replica that is slower than the guest in ack mode async: --on-congestion. In virtual time. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import type { CongestionPolicy } from "../../../src/status.js";
import type { Held } from "../../tools/failing-device.js";
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

  it("block: a checkpoint lets guests go on until the replica has nearly all that waits for it", async () => {
    await congest("block");
    const checkpoint = lone.primary.checkpoint();
    await turns(20);
    expect(await isSettled(lone.guest.zero(0, MEBIBYTE, Flag.None)), "the guest goes on").to.equal(true);
    expect(await isSettled(checkpoint)).to.equal(false);
    await release();
    await lone.time.until(checkpoint);
    await lone.time.until(lone.primary.checkpoint());
    expectSame();
  });

  it("detach: the guest goes on, and the replica gets what it missed later", async () => {
    expect(await congest("detach")).to.equal(WRITES);
    expect(lone.primary.link?.lastError?.message).to.match(/slower than the guest/);
    await release();
    await lone.replicates();
    expectSame();
  });
});
