import { expect } from "chai";

import fc from "fast-check";

import { ProtocolError } from "../../../src/errors.js";
import { ReadCoverage } from "../../../src/nbd/client/read-coverage.js";

function addCode(coverage: ReadCoverage, offset: number, lengthBytes: number): string {
  try {
    coverage.add(offset, lengthBytes);
    return "ok";
  } catch (error) {
    expect(error).to.be.instanceOf(ProtocolError);
    return (error as ProtocolError).code;
  }
}

describe("ReadCoverage", () => {
  it("is complete when every byte was described, in whatever order", () => {
    const coverage = new ReadCoverage(100, 30);
    for (const offset of [120, 100, 110]) {
      expect(coverage.complete).to.equal(false);
      coverage.add(offset, 10);
    }
    expect(coverage.complete).to.equal(true);
  });

  it("takes a reply in many pieces, but not in any number of them", () => {
    const coverage = new ReadCoverage(0, 10_000);
    for (let i = 0; i < 1024; i++) coverage.add(2 * i, 1);
    expect(addCode(coverage, 9_000, 1)).to.equal("too-many-chunks");
  });

  it("agrees with a map of the bytes on any chunks", () => {
    const chunks = fc.array(fc.tuple(fc.integer({ min: 0, max: 40 }), fc.integer({ min: 1, max: 12 })), {
      maxLength: 20,
    });
    fc.assert(
      fc.property(chunks, (list) => {
        const coverage = new ReadCoverage(5, 30);
        const described = new Set<number>();
        for (const [offset, lengthBytes] of list) {
          const bytes = Array.from({ length: lengthBytes }, (_, i) => offset + i);
          const expected = bytes.some((byte) => byte < 5 || byte >= 35)
            ? "chunk-out-of-range"
            : bytes.some((byte) => described.has(byte))
              ? "chunk-overlap"
              : "ok";
          expect(addCode(coverage, offset, lengthBytes)).to.equal(expected);
          if (expected === "ok") for (const byte of bytes) described.add(byte);
          expect(coverage.complete).to.equal(described.size === 30);
        }
      }),
      { numRuns: 500 },
    );
  });
});
