/** What a primary is told whose data has another history than the secondary's. */
import { expect } from "chai";

import {
  type AskedSecondary,
  type Introduction,
  Introductions,
} from "../../../src/replication/secondary/introduction.js";

const PRIMARY: Introduction = {
  ...{
    primary: "the primary",
    session: "s",
    tenures: [],
    epoch: 0,
    dirty: { bytes: 65536, first: [{ disk: "disk0", offset: 0, lengthBytes: 65536 }] },
  },
  ...{ generation: "aaaaaaaa", ancestors: ["0"] },
};
const SECONDARY: Omit<AskedSecondary, "changed"> = {
  ...{
    writer: null,
    primary: null,
    isOutdated: false,
    discard: false,
    generation: "bbbbbbbb",
    ancestors: ["0"],
  },
};

describe("introduction in a split brain", () => {
  for (const [what, changed, told] of [
    ["nothing that is known", null, "the primary 64 KiB, first on disk0 at 0+65536"],
    ["nothing", { bytes: 0, first: [] }, "the primary 64 KiB, first on disk0 at 0+65536; the secondary 0 B"],
    [
      "ranges of one disk",
      {
        bytes: 131072,
        first: [
          { disk: "disk0", offset: 0, lengthBytes: 65536 },
          { disk: "disk0", offset: 1048576, lengthBytes: 65536 },
        ],
      },
      "the primary 64 KiB, first on disk0 at 0+65536; the secondary 128 KiB, first on disk0 at 0+65536, 1048576+65536",
    ],
    [
      "ranges of two disks",
      {
        bytes: 131072,
        first: [
          { disk: "disk0", offset: 65536, lengthBytes: 65536 },
          { disk: "disk1", offset: 65536, lengthBytes: 65536 },
        ],
      },
      "the primary 64 KiB, first on disk0 at 0+65536; the secondary 128 KiB, first on disk0 at 65536+65536, on disk1 at 65536+65536",
    ],
  ] as const) {
    it(`names what the secondary changed by itself: ${what}`, () => {
      const introductions = new Introductions();
      const refusal = `split brain: both nodes changed since they were the same, ${told} (the secondary's data is of generation bbbbbbbb, the primary's of aaaaaaaa): to give up what only the secondary has, start it once with --discard-local-changes, which saves it first`;
      expect(() => {
        introductions.admit(PRIMARY, { ...SECONDARY, changed });
      }).to.throw(refusal);
      expect(introductions.conflict).to.equal(refusal);
    });
  }
});
