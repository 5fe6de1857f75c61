import { expect } from "chai";
import fc from "fast-check";

import type { RangeHold, RangeLockMode } from "../../../src/block/range-lock.js";
import { RangeLock } from "../../../src/block/range-lock.js";
import { isSettled } from "../../tools/outcome.js";
import { SEED } from "../../tools/seed.js";

/** A request of the model: granted when no earlier, unreleased one conflicts. */
interface Modelled {
  readonly start: number;
  readonly end: number;
  readonly mode: RangeLockMode;
  hold: RangeHold | null;
}

function conflict(a: Modelled, b: Modelled): boolean {
  return a.start < b.end && b.start < a.end && (a.mode === "exclusive" || b.mode === "exclusive");
}

/** Those of the list, oldest first, that must be held. */
function admitted(list: readonly Modelled[]): Modelled[] {
  return list.filter((request, index) => !list.slice(0, index).some((earlier) => conflict(earlier, request)));
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

const step = fc.oneof(
  fc.record({
    kind: fc.constantFrom("lock" as const, "tryLock" as const),
    start: fc.nat(12),
    length: fc.integer({ min: 1, max: 6 }),
    mode: fc.constantFrom<RangeLockMode>("shared", "exclusive"),
  }),
  fc.record({ kind: fc.constant("release" as const), which: fc.nat() }),
);

describe("RangeLock", () => {
  it("grants exactly what no earlier conflicting request holds or waits for", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
        const lock = new RangeLock();
        const list: Modelled[] = [];
        const release = async (request: Modelled): Promise<void> => {
          list.splice(list.indexOf(request), 1);
          request.hold?.release();
          await turn();
        };
        for (const action of steps) {
          if (action.kind === "release") {
            const held = admitted(list);
            const request = held[action.which % Math.max(1, held.length)];
            if (request !== undefined) await release(request);
          } else {
            const { kind, start, length, mode } = action;
            const request: Modelled = { start, end: start + length, mode, hold: null };
            const free = !list.some((earlier) => conflict(earlier, request));
            if (kind === "tryLock") {
              request.hold = lock.tryLock(request.start, request.end, mode);
              expect(request.hold !== null, "tryLock").to.equal(free);
              if (free) list.push(request);
            } else {
              list.push(request);
              void lock.lock(request.start, request.end, mode).then((hold) => (request.hold = hold));
              await turn();
            }
          }
          expect(list.filter(({ hold }) => hold !== null)).to.deep.equal(admitted(list));
        }
        while (list.length > 0) {
          const [oldest] = admitted(list);
          if (oldest === undefined) throw new Error("nobody can go on");
          await release(oldest);
        }
        expect(lock.idle).to.equal(true);
      }),
      { seed: SEED, numRuns: 150 },
    );
  });

  for (const [beside, mode, first, second] of [
    ["one that is shared and covers the range", "shared", [0, 5], [2, 6]],
    ["one that covers all of the range but its last byte", "exclusive", [4, 5], [0, 4]],
  ] as const) {
    it(`waits for an earlier hold, too, when it overlaps it beside ${beside}`, async () => {
      const lock = new RangeLock();
      const holds = [lock.tryLock(first[0], first[1], mode), lock.tryLock(second[0], second[1], mode)];
      const newcomer = lock.lock(mode === "shared" ? 3 : 0, 5, "exclusive");
      holds[1]?.release();
      expect(await isSettled(newcomer)).to.equal(false);
      holds[0]?.release();
      (await newcomer).release();
      expect(lock.idle).to.equal(true);
    });
  }

  it("does not let readers overtake a writer that waits", async () => {
    const lock = new RangeLock();
    const reader = lock.tryLock(0, 10, "shared");
    const order: string[] = [];
    const writer = lock.lock(5, 15, "exclusive").then((hold) => {
      order.push("writer");
      hold.release();
    });
    const lateReader = lock.lock(8, 9, "shared").then((hold) => {
      order.push("late reader");
      hold.release();
    });
    expect(lock.tryLock(8, 9, "shared"), "past the writer").to.equal(null);
    expect(lock.tryLock(15, 20, "exclusive"), "beside it").to.not.equal(null);
    reader?.release();
    await Promise.all([writer, lateReader]);
    expect(order).to.deep.equal(["writer", "late reader"]);
  });

  it("lets a hundred thousand wait for one range, in order of arrival", async () => {
    const lock = new RangeLock();
    const order: number[] = [];
    const waiting = Array.from({ length: 100_000 }, async (_, index) => {
      const hold = await lock.lock(0, 100 - (index % 2), "exclusive");
      order.push(index);
      hold.release();
    });
    await Promise.all(waiting);
    expect(order.every((index, at) => index === at)).to.equal(true);
    expect(lock.idle).to.equal(true);
  });

  it("asserts that a range is not empty and that a hold is released once", () => {
    const lock = new RangeLock();
    expect(() => lock.tryLock(5, 5, "shared")).to.throw("empty range");
    const hold = lock.tryLock(5, 6, "shared");
    hold?.release();
    expect(() => hold?.release()).to.throw("released twice");
  });
});
