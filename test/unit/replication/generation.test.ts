import { expect } from "chai";

import { branch, type Lineage, relationOf } from "../../../src/replication/generation.js";

function line(generation: string | null, ...ancestors: string[]): Lineage {
  return { generation, ancestors };
}

describe("generations", () => {
  const cases: readonly (readonly [what: string, replica: Lineage, writer: Lineage, relation: string])[] = [
    ["a replica that has nothing yet", line(null), line("a"), "none"],
    ["a replica of the present line", line("a"), line("a"), "same"],
    ["a replica whose primary went on alone", line("a"), line("b", "a"), "behind"],
    ["a replica that missed several turns", line("a"), line("d", "c", "b", "a"), "behind"],
    ["a promoted replica, to its old primary", line("b", "a"), line("a"), "ahead"],
    [
      "a promoted replica, to an old primary that went on alone",
      line("b", "a"),
      line("c", "a"),
      "split-brain",
    ],
    ["two that parted long ago", line("c", "b", "a"), line("e", "d", "a"), "split-brain"],
    ["two that never met", line("b"), line("a"), "unrelated"],
    ["two that never met, with a past each", line("b", "x"), line("a", "y"), "unrelated"],
  ];
  for (const [what, replica, writer, relation] of cases) {
    it(`${what}: ${relation}`, () => {
      expect(relationOf(replica, writer)).to.equal(relation);
    });
  }

  it("a branch has the line it left as its newest ancestor, and forgets the oldest of very many", () => {
    let lineage: Lineage = line("first");
    for (let turn = 0; turn < 40; turn++) {
      const next = branch(lineage);
      expect(next.ancestors[0]).to.equal(lineage.generation);
      expect(relationOf(lineage, next)).to.equal("behind");
      lineage = next;
    }
    expect(lineage.ancestors.length).to.equal(16);
    expect(branch(line(null)).ancestors).to.deep.equal([]);
  });
});
