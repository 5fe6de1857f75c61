import { expect } from "chai";
import fc from "fast-check";
import { ABSENT, ExtentMap, ZERO } from "../../../src/block/extent-map.js";

type Piece = [start: number, end: number, target: number];

function pieces(map: ExtentMap, start: number, end: number): Piece[] {
  const found: Piece[] = [];
  map.visit(start, end, (...piece) => found.push(piece));
  return found;
}

describe("extent map", () => {
  it("reports a gap over the whole range when empty", () => {
    expect(pieces(new ExtentMap(), 10, 20)).to.deep.equal([[10, 20, ABSENT]]);
  });

  it("merges extents that continue each other in offset and target", () => {
    const map = new ExtentMap();
    map.set(0, 10, 100);
    map.set(20, 30, 120);
    map.set(10, 20, 110);
    expect(map.extentCount).to.equal(1);
    expect(pieces(map, 5, 35)).to.deep.equal([
      [5, 30, 105],
      [30, 35, ABSENT],
    ]);
  });

  it("keeps neighbours apart whose targets do not continue", () => {
    const map = new ExtentMap();
    map.set(0, 10, 100);
    map.set(10, 20, ZERO);
    map.set(20, 30, ZERO);
    expect(map.extentCount).to.equal(2);
    expect(map.mappedBytes).to.equal(30);
  });

  it("splits an extent that loses its middle", () => {
    const map = new ExtentMap();
    map.set(0, 30, 100);
    map.delete(10, 20);
    expect(pieces(map, 0, 30)).to.deep.equal([
      [0, 10, 100],
      [10, 20, ABSENT],
      [20, 30, 120],
    ]);
  });

  it("works on offsets beyond 2^32", () => {
    const map = new ExtentMap();
    const offset = 2 ** 40;
    map.set(offset, offset + 4096, 2 ** 41);
    expect(pieces(map, offset + 1, offset + 2)).to.deep.equal([[offset + 1, offset + 2, 2 ** 41 + 1]]);
  });

  it("agrees with a byte-by-byte model after any sequence of sets and deletes, over many leaves", () => {
    const size = 3000;
    const change = fc.record({
      remove: fc.boolean(),
      zero: fc.boolean(),
      start: fc.nat(size - 1),
      length: fc.integer({ min: 1, max: 12 }),
      target: fc.nat(100_000),
    });
    fc.assert(
      fc.property(fc.array(change, { minLength: 400, maxLength: 1500 }), (changes) => {
        const map = new ExtentMap();
        const model = new Array<number>(size).fill(ABSENT);
        for (const { remove, zero, start, length, target } of changes) {
          const end = Math.min(size, start + length);
          if (remove) map.delete(start, end);
          else map.set(start, end, zero ? ZERO : target);
          for (let i = start; i < end; i++) model[i] = remove ? ABSENT : zero ? ZERO : target + i - start;
        }
        const seen: number[] = [];
        map.visit(0, size, (start, end, target) => {
          expect(start).to.equal(seen.length);
          for (let i = start; i < end; i++) seen.push(target < 0 ? target : target + i - start);
        });
        expect(seen).to.deep.equal(model);
        expect(map.mappedBytes).to.equal(model.filter((target) => target !== ABSENT).length);
        for (let start = 0; start + 50 <= size; start += 50) {
          const slice = model.slice(start, start + 50);
          expect(map.intersects(start, start + 50)).to.equal(slice.some((target) => target !== ABSENT));
          expect(map.covers(start, start + 50)).to.equal(slice.every((target) => target !== ABSENT));
        }
      }),
      { numRuns: 60 },
    );
  }).timeout(60_000);
});
