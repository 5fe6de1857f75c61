import { mock } from "node:test";
import { expect } from "chai";

import { BufferPool, CopyArena, Loan, payloadBuffers } from "../../../src/block/buffer-pool.js";

const KIBIBYTE = 1024;

describe("BufferPool", () => {
  it("gives out again what was given back, and to one holder only", () => {
    const pool = new BufferPool(1024 * KIBIBYTE);
    const first = pool.take(100 * KIBIBYTE);
    expect(first.length).to.equal(128 * KIBIBYTE);
    pool.give(first);
    expect(pool.keptBytes).to.equal(first.length);
    expect(pool.take(128 * KIBIBYTE)).to.equal(first);
    expect(pool.keptBytes).to.equal(0);
    expect(pool.take(128 * KIBIBYTE)).to.not.equal(first);
  });

  it("gives a longer buffer for no wish, a shorter one for none", () => {
    const pool = new BufferPool(1024 * KIBIBYTE);
    pool.give(pool.take(64 * KIBIBYTE));
    expect(pool.take(64 * KIBIBYTE + 1).length).to.equal(128 * KIBIBYTE);
    expect(pool.take(1).length).to.equal(32 * KIBIBYTE);
    expect(pool.take(32 * 1024 * KIBIBYTE + 1).length, "never kept").to.equal(32 * 1024 * KIBIBYTE + 4096);
  });

  it("keeps no more than its limit", () => {
    const pool = new BufferPool(200 * KIBIBYTE);
    const held = [1, 2, 3, 4].map(() => pool.take(64 * KIBIBYTE));
    for (const buffer of held) pool.give(buffer);
    expect(pool.keptBytes).to.equal(192 * KIBIBYTE);
  });

  it("keeps one of the longest beyond its limit, until nobody took it for a while", () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    try {
      const pool = new BufferPool(200 * KIBIBYTE);
      const longest = 32 * 1024 * KIBIBYTE;
      const held = [...[1, 2, 3].map(() => pool.take(64 * KIBIBYTE)), pool.take(longest), pool.take(longest)];
      for (const buffer of held) pool.give(buffer);
      expect(pool.keptBytes).to.equal(192 * KIBIBYTE + longest);
      for (let round = 0; round < 3; round++) {
        mock.timers.tick(2000);
        const again = pool.take(longest - 1);
        expect(again).to.equal(held[3]);
        pool.give(again);
      }
      for (let round = 0; round < 2; round++) mock.timers.tick(2000);
      expect(pool.keptBytes).to.equal(0);
    } finally {
      mock.timers.reset();
    }
  });

  it("lets go of what nobody took for a while, and keeps what was in use", () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    try {
      const pool = new BufferPool(1024 * KIBIBYTE);
      const held = [1, 2, 3, 4].map(() => pool.take(64 * KIBIBYTE));
      for (const buffer of held) pool.give(buffer);
      for (let round = 0; round < 5; round++) {
        const used = [pool.take(64 * KIBIBYTE), pool.take(64 * KIBIBYTE)];
        for (const buffer of used) pool.give(buffer);
        mock.timers.tick(2000);
      }
      expect(pool.keptBytes).to.equal(128 * KIBIBYTE);
      mock.timers.tick(4000);
      expect(pool.keptBytes).to.equal(0);
    } finally {
      mock.timers.reset();
    }
  });

  it("refuses a part of what it gave", () => {
    const pool = new BufferPool(1024 * KIBIBYTE);
    expect(() => {
      pool.give(pool.take(64 * KIBIBYTE).subarray(0, 1000));
    }).to.throw("not a buffer of this pool");
  });
});

describe("Loan", () => {
  it("borrows long buffers of the exact length, and gives all of them back at once", () => {
    const loan = new Loan();
    const lengths = [10, 100 * KIBIBYTE, 300 * KIBIBYTE];
    expect(lengths.map((length) => loan.take(length).length)).to.deep.equal(lengths);
    const before = payloadBuffers.keptBytes;
    loan.release();
    expect(payloadBuffers.keptBytes - before).to.equal(128 * KIBIBYTE + 512 * KIBIBYTE);
    loan.release();
    expect(payloadBuffers.keptBytes - before).to.equal(128 * KIBIBYTE + 512 * KIBIBYTE);
  });
});

describe("CopyArena", () => {
  it("does not keep the buffer of a long copy, which all short ones after it would share", () => {
    const arena = new CopyArena();
    const long = arena.copy(Buffer.alloc(900 * KIBIBYTE));
    const short = arena.copy(Buffer.from("short"));
    const before = payloadBuffers.keptBytes;
    arena.release(long);
    expect(payloadBuffers.keptBytes, "the short one lies there").to.equal(before);
    arena.release(short);
    expect(payloadBuffers.keptBytes - before).to.equal(1024 * KIBIBYTE);
    arena.release(arena.copy(Buffer.from("next")));
  });
});
