import { expect } from "chai";
import fc from "fast-check";

import { Bitmap } from "../../../src/block/bitmap.js";
import { SEED } from "../../tools/seed.js";

const LENGTHS = [1, 31, 32, 33, 64, 100, 1000];

/** The same in the plainest way. */
class Model {
  bits: boolean[];

  constructor(length: number) {
    this.bits = new Array<boolean>(length).fill(false);
  }

  get set(): number[] {
    return [...this.bits.keys()].filter((index) => this.bits[index]);
  }
}

const step = fc.record({
  kind: fc.constantFrom("set", "clear", "set", "clear", "setAll", "clearAll", "add", "remove"),
  start: fc.nat(),
  length: fc.nat(70),
  other: fc.array(fc.nat(), { maxLength: 5 }),
});

function expectSame(bitmap: Bitmap, model: Model): void {
  const { length } = model.bits;
  expect(bitmap.count).to.equal(model.set.length);
  for (let index = 0; index < length; index++) expect(bitmap.has(index)).to.equal(model.bits[index]);
  for (let from = 0; from <= length; from += 1 + (from >> 4)) {
    expect(bitmap.nextSet(from), `nextSet(${from})`).to.equal(model.bits.indexOf(true, from));
    const clear = model.bits.indexOf(false, from);
    expect(bitmap.nextClear(from), `nextClear(${from})`).to.equal(clear === -1 ? length : clear);
  }
}

describe("Bitmap", () => {
  it("agrees with an array of booleans after any sequence of changes", () => {
    fc.assert(
      fc.property(fc.constantFrom(...LENGTHS), fc.array(step, { maxLength: 15 }), (length, steps) => {
        const bitmap = new Bitmap(length);
        const model = new Model(length);
        for (const { kind, start, length: count, other } of steps) {
          const from = start % length;
          const to = Math.min(length, from + count);
          switch (kind) {
            case "set":
              bitmap.set(from, to);
              model.bits.fill(true, from, to);
              break;
            case "clear":
              bitmap.clear(from, to);
              model.bits.fill(false, from, to);
              break;
            case "setAll":
              bitmap.setAll();
              model.bits.fill(true);
              break;
            case "clearAll":
              bitmap.clearAll();
              model.bits.fill(false);
              break;
            case "add":
            case "remove": {
              const others = new Bitmap(length);
              for (const index of other) {
                others.set(index % length, (index % length) + 1);
                model.bits[index % length] = kind === "add";
              }
              bitmap[kind](others);
              break;
            }
          }
          expectSame(bitmap, model);
        }
      }),
      { seed: SEED, numRuns: 150 },
    );
  });

  it("tells whether any bit of a range is set, and minds none beside it", () => {
    for (const length of LENGTHS) {
      for (let index = 0; index < length; index++) {
        const bitmap = new Bitmap(length);
        bitmap.set(index, index + 1);
        const ranges = [
          [0, index],
          [index, index + 1],
          [0, length + 7],
          [index + 1, length],
          [index, index],
        ] as const;
        expect(ranges.map(([start, end]) => bitmap.intersects(start, end))).to.deep.equal([
          false,
          true,
          true,
          false,
          false,
        ]);
      }
    }
  });

  it("finds a single bit wherever it is", () => {
    for (const length of LENGTHS) {
      for (let index = 0; index < length; index++) {
        const bitmap = new Bitmap(length);
        bitmap.set(index, index + 1);
        expect([bitmap.nextSet(0), bitmap.nextSet(index), bitmap.nextSet(index + 1)]).to.deep.equal([
          index,
          index,
          -1,
        ]);
        bitmap.setAll();
        bitmap.clear(index, index + 1);
        expect([bitmap.nextClear(0), bitmap.nextClear(index + 1), bitmap.count]).to.deep.equal([
          index,
          length,
          length - 1,
        ]);
      }
    }
  });
});
