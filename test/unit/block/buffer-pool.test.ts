import { mock } from "node:test";
import { expect } from "chai";

import { Arena, BufferPool, Loan, payloadBuffers } from "../../../src/block/buffer-pool.js";

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
    const arena = new Arena(64 * KIBIBYTE);
    const loan = new Loan(arena);
    const lengths = [10, 5000, 6000, 100 * KIBIBYTE, 300 * KIBIBYTE];
    expect(lengths.map((length) => loan.take(length).length)).to.deep.equal(lengths);
    const before = payloadBuffers.keptBytes;
    loan.release();
    expect(payloadBuffers.keptBytes - before).to.equal(128 * KIBIBYTE + 512 * KIBIBYTE);
    loan.release();
    expect(payloadBuffers.keptBytes - before).to.equal(128 * KIBIBYTE + 512 * KIBIBYTE);
    arena.letGo();
    expect(payloadBuffers.keptBytes - before).to.equal((64 + 128 + 512) * KIBIBYTE);
  });
});

describe("Arena", () => {
  const SLAB_BYTES = 64 * KIBIBYTE;

  it("gives parts that do not overlap, with the content that was copied", () => {
    const arena = new Arena(SLAB_BYTES);
    const lengths = [1, 4096, 30 * KIBIBYTE, 20 * KIBIBYTE, 40 * KIBIBYTE, SLAB_BYTES, 100 * KIBIBYTE];
    const parts = lengths.map((length, i) => arena.copy(Buffer.alloc(length, i + 1)));
    expect(parts.map(({ bytes }) => bytes)).to.deep.equal(
      lengths.map((length, i) => Buffer.alloc(length, i + 1)),
    );
    for (const { slab } of parts) slab.release();
  });

  it("fills a slab anew when all its parts are released, and not before", () => {
    const arena = new Arena(SLAB_BYTES);
    const [first, second] = [arena.take(30 * KIBIBYTE), arena.take(30 * KIBIBYTE)];
    first.slab.release();
    const third = arena.take(30 * KIBIBYTE);
    expect(third.slab).to.not.equal(first.slab);
    second.slab.release();
    third.slab.release();
    const fourth = arena.take(SLAB_BYTES);
    expect(fourth.slab).to.equal(third.slab);
    fourth.slab.release();
  });

  it("keeps nothing of the pool once it rests and its parts are released", () => {
    const arena = new Arena(SLAB_BYTES);
    const [short, long] = [arena.take(10), arena.take(900 * KIBIBYTE)];
    const before = payloadBuffers.keptBytes;
    arena.letGo();
    expect(payloadBuffers.keptBytes, "a part is in use").to.equal(before);
    short.slab.release();
    expect(payloadBuffers.keptBytes - before).to.equal(SLAB_BYTES);
    long.slab.release();
    expect(payloadBuffers.keptBytes - before).to.equal(SLAB_BYTES + 1024 * KIBIBYTE);
  });
});
