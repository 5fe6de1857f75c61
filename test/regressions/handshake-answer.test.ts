import { expect } from "chai";

import { Flag } from "../../src/block/device.js";
import { InProcessPair } from "../tools/in-process-pair.js";

const DISK_BYTES = 1024 * 1024;
const BLOCK_BYTES = 64 * 1024;

/** Whole disks are compared: what is at stake is a copy that never took place. */
function expectSame(primary: Buffer, secondary: Buffer): void {
  expect(primary.equals(secondary), "the disks are the same").to.equal(true);
}

describe("what a primary makes of a handshake", () => {
  const pairs: InProcessPair[] = [];

  async function openPair(): Promise<InProcessPair> {
    const pair = await InProcessPair.open({ sizes: [DISK_BYTES] });
    pairs.push(pair);
    return pair;
  }

  afterEach(async () => {
    for (const pair of pairs.splice(0)) await pair.dispose();
  });

  function contents(pair: InProcessPair, replica = pair): Promise<[Buffer, Buffer]> {
    const [disk] = pair.primaryMedia;
    const [copy] = replica.secondaryMedia;
    if (disk === undefined || copy === undefined) throw new Error("the pair has no disk");
    const both: [Buffer, Buffer] = [Buffer.alloc(DISK_BYTES), Buffer.alloc(DISK_BYTES)];
    return Promise.all([disk.read(0, both[0]), copy.read(0, both[1])]).then(() => both);
  }

  async function attach(pair: InProcessPair, replica: InProcessPair): Promise<void> {
    const { replicationAddress: address, qmpAddress: control } = replica;
    await pair.primary.attach({ address, control, uri: "in this process" });
    await pair.synchronised();
  }

  it("copies the whole disk when the attempt that shook hands first got no further", async () => {
    const pair = await openPair();
    await pair.guest().write(0, Buffer.alloc(DISK_BYTES, 0x55), Flag.None);
    // The secondary answers the handshake; its NBD server can't be reached.
    const nowhere = {
      kind: "unix",
      path: `${pair.qmpAddress.kind === "unix" ? pair.qmpAddress.path : ""}.none`,
    } as const;
    await pair.primary.attach({ address: nowhere, control: pair.qmpAddress, uri: "in this process" });
    await pair.primary.detach();

    await pair.attach();
    expectSame(...(await contents(pair)));
  });

  it("copies what changed while it replicated to another secondary", async () => {
    const [pair, other] = [await openPair(), await openPair()];
    await attach(pair, pair);
    await pair.primary.detach();
    await pair.guest().write(BLOCK_BYTES, Buffer.alloc(BLOCK_BYTES, 0x66), Flag.None);
    await attach(pair, other);
    await pair.primary.detach();

    await attach(pair, pair);
    expectSame(...(await contents(pair)));
    expectSame(...(await contents(pair, other)));
  });

  it("sends only what changed when the same secondary comes back", async () => {
    const pair = await openPair();
    await pair.guest().write(0, Buffer.alloc(DISK_BYTES, 0x55), Flag.None);
    await pair.attach();
    await pair.primary.detach();
    await pair.guest().write(BLOCK_BYTES, Buffer.alloc(BLOCK_BYTES, 0x66), Flag.None);

    const missing = pair.primary.disks.map(({ dirty }) => dirty.missedBytes);
    await pair.attach();
    expectSame(...(await contents(pair)));
    expect(missing[0]).to.be.lessThan(DISK_BYTES);
  });
});
