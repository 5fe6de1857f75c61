import { expect } from "chai";

import { MEMORY_GUARANTEED_BYTES, MEMORY_PRESSURE_MS } from "../../../src/nbd/server/limits.js";
import { MemoryPool } from "../../../src/nbd/server/memory-pool.js";
import type { MemoryAccount } from "../../../src/nbd/server/memory-pool.js";

const POOL_BYTES = 10 * MEMORY_GUARANTEED_BYTES;

describe("MemoryPool", () => {
  let pool: MemoryPool;
  let granted: string[];

  beforeEach(() => {
    pool = new MemoryPool(POOL_BYTES);
    granted = [];
  });

  const open = (waitsForClient = false, cutOff: () => void = () => undefined): MemoryAccount =>
    pool.open({ movedBytes: () => 0, waitsForClient: () => waitsForClient, cutOff });
  const take = (account: MemoryAccount, bytes: number, name = ""): boolean =>
    account.take(bytes, () => granted.push(name));

  it("grants what fits, and each client its part when nothing fits any more", () => {
    const greedy = open();
    expect(take(greedy, POOL_BYTES)).to.equal(true);
    for (let i = 0; i < 5; i++) {
      const modest = open();
      expect(take(modest, MEMORY_GUARANTEED_BYTES)).to.equal(true);
      expect(take(modest, 1)).to.equal(false);
    }
    expect(pool.heldBytes).to.equal(POOL_BYTES + 5 * MEMORY_GUARANTEED_BYTES);
    for (const account of [greedy]) account.close();
  });

  it("grants in the order of asking what comes free, and lets nobody overtake", () => {
    const [holder, first, second, third] = [open(), open(), open(), open()];
    take(holder, POOL_BYTES);
    expect(take(first, POOL_BYTES - 1, "first")).to.equal(false);
    expect(take(second, MEMORY_GUARANTEED_BYTES + 1, "second")).to.equal(false);
    holder.give(POOL_BYTES / 2);
    expect(granted).to.deep.equal([]);
    expect(take(third, MEMORY_GUARANTEED_BYTES + 1, "third")).to.equal(false);
    holder.give(POOL_BYTES / 2);
    expect(granted).to.deep.equal(["first"]);
    first.give(POOL_BYTES - 1);
    expect(granted).to.deep.equal(["first", "second", "third"]);
    for (const account of [first, second, third, holder]) account.close();
    expect(pool.heldBytes).to.equal(0);
  });

  it("grants a request larger than the pool when nobody holds anything", () => {
    const account = open();
    expect(take(account, 2 * POOL_BYTES)).to.equal(true);
    account.close();
  });

  it("takes back all of a client that is gone, and forgets what it waited for", () => {
    const [gone, waiting] = [open(), open()];
    take(gone, POOL_BYTES);
    take(gone, POOL_BYTES, "gone");
    take(waiting, POOL_BYTES, "waiting");
    gone.close();
    gone.close();
    expect(granted).to.deep.equal(["waiting"]);
    expect(pool.heldBytes).to.equal(POOL_BYTES);
    waiting.close();
  });

  it("cuts off a client that holds memory and is too slow while others wait, and no other", async () => {
    const cut: string[] = [];
    const slow = open(true, () => {
      cut.push("slow");
      slow.close();
    });
    const busyDevice = open(false, () => cut.push("waits for the device"));
    const modest = open(true, () => cut.push("modest"));
    take(slow, POOL_BYTES / 2);
    take(busyDevice, POOL_BYTES / 4);
    take(modest, MEMORY_GUARANTEED_BYTES);
    const waiting = open();
    take(waiting, POOL_BYTES / 2, "waiting");
    expect(cut).to.deep.equal([]);
    await new Promise((resolve) => setTimeout(resolve, MEMORY_PRESSURE_MS + 100));
    expect(cut).to.deep.equal(["slow"]);
    expect(granted).to.deep.equal(["waiting"]);
    for (const account of [busyDevice, modest, waiting]) account.close();
  });
});
