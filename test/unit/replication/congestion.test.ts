/** A replica that is slower than the guest in ack mode async: --on-congestion. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { InProcessPair } from "../../tools/in-process-pair.js";
import { isSettled, turns } from "../../tools/outcome.js";

const MEBIBYTE = 1024 * 1024;
const SIZE_BYTES = 160 * MEBIBYTE;

describe("congestion", () => {
  let pair: InProcessPair;

  afterEach(() => pair.dispose());

  /** Writes the whole disk, while nothing gets onto the replica's. @returns how many writes were acknowledged, and what lets the others go on */
  async function congest(
    onCongestion: "block" | "detach",
  ): Promise<{ acknowledged: number; release: () => Promise<void> }> {
    pair = await InProcessPair.open({ sizes: [SIZE_BYTES], ackMode: "async", onCongestion });
    await pair.attach();
    const held = pair.node.disk().hold({ operation: "write" });
    const writes = Array.from({ length: SIZE_BYTES / MEBIBYTE }, (_, index) =>
      pair.guest().write(index * MEBIBYTE, Buffer.alloc(MEBIBYTE, index + 1), Flag.None),
    );
    await held.arrived(1);
    for (let round = 0; round < 500; round++) await turns();
    const settled = await Promise.all(writes.map(isSettled));
    return {
      acknowledged: settled.filter(Boolean).length,
      release: async () => {
        held.release();
        await Promise.all(writes);
      },
    };
  }

  function expectSame(): void {
    const [disk] = pair.primaryMedia;
    const [copy] = pair.secondaryMedia;
    if (disk === undefined || copy === undefined) throw new Error("the pair has no disk");
    expect(disk.contents().equals(copy.contents())).to.equal(true);
  }

  it("block: the guest waits for the replica, and nothing is lost", async () => {
    const { acknowledged, release } = await congest("block");
    expect(acknowledged).to.be.lessThan(SIZE_BYTES / MEBIBYTE);
    await release();
    await pair.checkpoint();
    expectSame();
    expect(pair.primary.link?.reconnects).to.equal(0);
  });

  it("block: a checkpoint lets guests go on until the replica has nearly all that waits for it", async () => {
    const { release } = await congest("block");
    const checkpoint = pair.checkpoint();
    await turns();
    await pair.guest().zero(0, MEBIBYTE, Flag.None);
    expect(await isSettled(checkpoint)).to.equal(false);
    await release();
    await checkpoint;
    await pair.checkpoint();
    expectSame();
  });

  it("detach: the guest goes on, and the replica gets what it missed later", async () => {
    const { acknowledged, release } = await congest("detach");
    expect(acknowledged).to.equal(SIZE_BYTES / MEBIBYTE);
    expect(pair.primary.link?.lastError?.message).to.match(/slower than the guest/);
    await release();
    await pair.synchronised();
    expectSame();
  }).timeout(20_000);
});
