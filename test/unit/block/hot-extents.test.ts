import { expect } from "chai";

import { EXTENT_BYTES, HotExtents, MAX_HOT_EXTENTS } from "../../../src/block/hot-extents.js";
import { Random, SEED } from "../../tools/seed.js";

const NEVER = (): boolean => false;

describe(`HotExtents (SEED=${SEED})`, () => {
  const make = (extents: number): HotExtents => new HotExtents(extents * EXTENT_BYTES);
  /** One write to each of these extents, one after the other. @returns how many of them had to wait for a sync */
  const writeTo = (hot: HotExtents, extents: readonly number[]): number => {
    let syncs = 0;
    for (const extent of extents) {
      if (!hot.begin(extent, extent)) {
        syncs++;
        hot.heated(hot.takeHeating());
        hot.cooled(hot.chooseCooling(false, NEVER), NEVER);
      }
      expect(hot.bits.has(extent)).to.equal(true);
      hot.end(extent, extent);
    }
    return syncs;
  };

  it("makes few extents hot ahead of need while few are hot", () => {
    const hot = make(1000);
    writeTo(hot, [0, 100, 200, 300]);
    expect(hot.bits.count).to.equal(4);
  });

  it("makes more of them hot at a time the more are hot: random writes all over a disk wait for few syncs", () => {
    const random = new Random(SEED);
    const extents = Array.from({ length: 1500 }, () => random.below(512));
    expect(writeTo(make(512), extents)).to.be.lessThan(120);
  });

  it("stays within the end of the disk and within its bound, beyond which others cool down", () => {
    const random = new Random(SEED);
    const hot = make(8000);
    writeTo(hot, [7999, 7998]);
    writeTo(
      hot,
      Array.from({ length: 6000 }, () => random.below(8000)),
    );
    expect(hot.bits.count).to.be.at.most(MAX_HOT_EXTENTS + 1);
  });
});
