import { expect } from "chai";

import {
  MEMORY_GUARANTEED_BYTES,
  MEMORY_PRESSURE_MS,
  MEMORY_PROGRESS_BYTES,
  RESERVE_BYTES,
  RESERVE_PRICE,
  RESERVE_REQUEST_BYTES,
} from "../../../src/nbd/server/limits.js";
import { MemoryPool } from "../../../src/nbd/server/memory-pool.js";
import type { MemoryAccount } from "../../../src/nbd/server/memory-pool.js";
import { stopThisProcess } from "../../tools/stopped-process.js";
import { waitFor } from "../../tools/wait-for.js";

const POOL_BYTES = 10 * MEMORY_GUARANTEED_BYTES;
/** What one client can hold: its own part besides. */
const ALL_BYTES = POOL_BYTES + MEMORY_GUARANTEED_BYTES;

describe("MemoryPool", () => {
  let pool: MemoryPool;
  let granted: string[];

  beforeEach(() => {
    pool = new MemoryPool(POOL_BYTES);
    granted = [];
  });

  const open = (
    waitsForClient = false,
    cutOff: () => void = () => undefined,
    movedBytes = 0,
  ): MemoryAccount =>
    pool.open({ movedBytes: () => movedBytes, waitsForClient: () => waitsForClient, cutOff });
  const openProven = (): MemoryAccount => open(false, undefined, RESERVE_PRICE * RESERVE_REQUEST_BYTES);
  const take = (account: MemoryAccount, bytes: number, name = ""): boolean =>
    account.take(bytes, () => granted.push(name));

  it("grants what fits, and each client its part when nothing fits any more", () => {
    const greedy = open();
    expect(take(greedy, ALL_BYTES)).to.equal(true);
    for (let i = 0; i < 5; i++) {
      const modest = open();
      expect(take(modest, MEMORY_GUARANTEED_BYTES)).to.equal(true);
      expect(take(modest, 1)).to.equal(false);
    }
    expect(pool.heldBytes).to.equal(ALL_BYTES + 5 * MEMORY_GUARANTEED_BYTES);
    for (const account of [greedy]) account.close();
  });

  it("grants in the order of asking what comes free, and lets nobody overtake", () => {
    const [holder, first, second, third] = [open(), open(), open(), open()];
    take(holder, ALL_BYTES);
    expect(take(first, ALL_BYTES - 1, "first")).to.equal(false);
    expect(take(second, 2 * MEMORY_GUARANTEED_BYTES, "second")).to.equal(false);
    holder.give(POOL_BYTES / 2);
    expect(granted).to.deep.equal([]);
    expect(take(third, 2 * MEMORY_GUARANTEED_BYTES, "third")).to.equal(false);
    holder.give(ALL_BYTES - POOL_BYTES / 2);
    expect(granted).to.deep.equal(["first"]);
    first.give(ALL_BYTES - 1);
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
    take(gone, ALL_BYTES);
    take(gone, ALL_BYTES, "gone");
    take(waiting, ALL_BYTES, "waiting");
    gone.close();
    gone.close();
    expect(granted).to.deep.equal(["waiting"]);
    expect(pool.heldBytes).to.equal(ALL_BYTES);
    waiting.close();
  });

  it("doesn't count the guaranteed parts: small requests never keep a large one waiting", () => {
    const modest = Array.from({ length: 50 }, () => open());
    for (const account of modest) take(account, MEMORY_GUARANTEED_BYTES);
    expect(take(open(), ALL_BYTES)).to.equal(true);
    expect(take(open(), MEMORY_GUARANTEED_BYTES + 1)).to.equal(false);
    for (const account of modest) account.give(MEMORY_GUARANTEED_BYTES);
    expect(take(open(), MEMORY_GUARANTEED_BYTES + 1)).to.equal(false);
  });

  describe("when others wait for all there is", () => {
    let hoarder: MemoryAccount;

    beforeEach(() => {
      hoarder = open();
      take(hoarder, ALL_BYTES);
      for (let i = 0; i < 10; i++) take(open(), ALL_BYTES, "another hoarder");
    });

    it("lets a client have a request at a time from the reserve, one after the other", () => {
      const proven = openProven();
      for (let i = 0; i < 100; i++) {
        expect(take(proven, RESERVE_REQUEST_BYTES)).to.equal(true);
        expect(take(proven, MEMORY_GUARANTEED_BYTES), "its own part is apart").to.equal(true);
        // Each to where it came from, whichever is given back first.
        const [first, last] =
          i % 2 === 0
            ? [RESERVE_REQUEST_BYTES, MEMORY_GUARANTEED_BYTES]
            : [MEMORY_GUARANTEED_BYTES, RESERVE_REQUEST_BYTES];
        proven.give(first);
        expect(pool.heldBytes).to.equal(ALL_BYTES + last);
        proven.give(last);
      }
      expect(pool.heldBytes).to.equal(ALL_BYTES);
      expect(granted).to.deep.equal([]);
    });

    it("lets nobody have from the reserve more than it has moved, more than one request, or a long one", () => {
      expect(take(open(false, undefined, 99_999), 100_000)).to.equal(false);
      expect(take(open(false, undefined, 100_000), 100_000)).to.equal(true);
      expect(take(open(false, undefined, Infinity), RESERVE_REQUEST_BYTES + 1)).to.equal(false);
      const deep = openProven();
      expect(take(deep, 100_000)).to.equal(true);
      expect(take(deep, 100_000)).to.equal(false);
      const busy = openProven();
      take(busy, 1);
      expect(take(busy, 100_000)).to.equal(false);
    });

    it("lets a read have from the reserve beside what its client holds, one at a time, and goes on with the next", () => {
      const waitsForItsReplica = openProven();
      take(waitsForItsReplica, MEMORY_GUARANTEED_BYTES);
      const read = (name = ""): boolean => waitsForItsReplica.take(100_000, () => granted.push(name), true);
      expect(read()).to.equal(true);
      expect(read("next")).to.equal(false);
      waitsForItsReplica.give(100_000);
      expect(granted).to.deep.equal(["next"]);
      expect(pool.heldBytes).to.equal(ALL_BYTES + MEMORY_GUARANTEED_BYTES + 100_000);
    });

    it("bounds the reserve, and passes on what comes back to the first who may have it", () => {
      const proven = Array.from({ length: RESERVE_BYTES / RESERVE_REQUEST_BYTES }, openProven);
      for (const account of proven) expect(take(account, RESERVE_REQUEST_BYTES)).to.equal(true);
      take(open(), RESERVE_REQUEST_BYTES, "unproven");
      expect(take(openProven(), RESERVE_REQUEST_BYTES, "proven")).to.equal(false);
      expect(take(openProven(), RESERVE_REQUEST_BYTES, "later")).to.equal(false);
      proven[0]?.give(RESERVE_REQUEST_BYTES);
      expect(granted).to.deep.equal(["proven"]);
      proven[1]?.close();
      expect(granted).to.deep.equal(["proven", "later"]);
    });

    it("leaves most of the reserve to those who have moved much, whoever came first", () => {
      const newcomers = Array.from({ length: 200 }, () => open(false, undefined, 200_000));
      const served = newcomers.filter((each) => take(each, 65_536, "newcomer")).length;
      expect(served).to.equal(
        Math.ceil((RESERVE_BYTES / 65_536) * (Math.log(200_000 / 65_536) / Math.log(RESERVE_PRICE))),
      );
      const proven = openProven();
      expect(take(proven, RESERVE_REQUEST_BYTES)).to.equal(true);
      newcomers[0]?.give(65_536);
      expect(granted, "the proven one has some of it").to.deep.equal([]);
      proven.give(RESERVE_REQUEST_BYTES);
      expect(granted).to.deep.equal(["newcomer"]);
    });

    it("passes on a long part to as many as may have it", () => {
      const proven = Array.from({ length: RESERVE_BYTES / RESERVE_REQUEST_BYTES }, openProven);
      for (const account of proven) take(account, RESERVE_REQUEST_BYTES);
      for (let i = 0; i < 5; i++) take(openProven(), RESERVE_REQUEST_BYTES / 4, `${i}`);
      proven[0]?.give(RESERVE_REQUEST_BYTES);
      expect(granted).to.deep.equal(["0", "1", "2", "3"]);
    });

    it("cuts off who holds a part of the reserve and is too slow", async () => {
      const cut: string[] = [];
      const slow = open(true, () => cut.push("slow"), RESERVE_REQUEST_BYTES);
      take(slow, RESERVE_REQUEST_BYTES);
      // What it moved earlier may count in the first period.
      await waitFor(
        "the cut",
        () => cut,
        ({ length }) => length > 0,
      );
      expect(cut).to.deep.equal(["slow"]);
    });
  });

  it("cuts off a client that holds memory and is too slow while others wait, and no other", async () => {
    const cut: string[] = [];
    const slow = open(true, () => {
      cut.push("slow");
      slow.close();
    });
    const busyDevice = open(false, () => cut.push("waits for the device"));
    const modest = open(true, () => cut.push("modest"));
    let movedBytes = 0;
    const quick = pool.open({
      movedBytes: () => (movedBytes += MEMORY_PROGRESS_BYTES),
      waitsForClient: () => true,
      cutOff: () => cut.push("quick"),
    });
    take(slow, POOL_BYTES / 2);
    take(busyDevice, POOL_BYTES / 4);
    take(quick, 2 * MEMORY_GUARANTEED_BYTES);
    take(modest, MEMORY_GUARANTEED_BYTES);
    const waiting = open();
    take(waiting, 6 * MEMORY_GUARANTEED_BYTES, "waiting");
    expect(cut).to.deep.equal([]);
    await waitFor(
      "the cut",
      () => cut,
      ({ length }) => length > 0,
    );
    expect(cut).to.deep.equal(["slow"]);
    expect(granted).to.deep.equal(["waiting"]);
    for (const account of [busyDevice, modest, quick, waiting]) account.close();
  });

  it("cuts nobody off once nobody waits any more", async () => {
    const cut: string[] = [];
    const left = open(true, () => cut.push("left alone"));
    const waiting = open();
    take(left, ALL_BYTES);
    take(waiting, ALL_BYTES, "waiting");
    waiting.close();
    // Watched from later on: what happens to its clients would have happened to ours.
    const later = new MemoryPool(POOL_BYTES);
    const [slow, another] = ["slow", "another"].map((name) =>
      later.open({ movedBytes: () => 0, waitsForClient: () => true, cutOff: () => cut.push(name) }),
    );
    if (slow === undefined || another === undefined) throw new Error("there are two");
    take(slow, ALL_BYTES);
    take(another, ALL_BYTES);
    await waitFor(
      "the cut",
      () => cut,
      ({ length }) => length > 0,
    );
    expect(cut).to.deep.equal(["slow"]);
    for (const account of [left, slow, another]) account.close();
  });

  it("cuts nobody off who moved nothing because this process was stopped", async () => {
    const cut: string[] = [];
    const quick = open(true, () => cut.push("quick"));
    const waiting = open();
    take(quick, ALL_BYTES);
    take(waiting, ALL_BYTES, "waiting");
    stopThisProcess(MEMORY_PRESSURE_MS + 100);
    // The timers that are due come before what is in the sockets.
    await new Promise((resolve) => setTimeout(resolve, 1));
    expect(cut).to.deep.equal([]);
    for (const account of [quick, waiting]) account.close();
  });
});
