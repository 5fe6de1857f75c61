import { expect } from "chai";

import { StateError } from "../../../src/errors.js";
import {
  newPrimaryMetadata,
  newSecondaryMetadata,
  type SecondaryMetadata,
} from "../../../src/meta/metadata.js";
import { asPrimary, asSecondary } from "../../../src/replication/roles.js";

const DISKS = [{ name: "disk0", sizeBytes: 4096, inode: null, modifiedNs: null }];
const AS_IT_IS = { discardLocalChanges: false, demote: false };
const DISCARD = { discardLocalChanges: true, demote: false };
const DEMOTE = { discardLocalChanges: false, demote: true };
const GENERATION = "6f9d2b43-60c2-4f2e-9a53-0f8f6b1f0c11";

function secondary(change: Partial<SecondaryMetadata>): SecondaryMetadata {
  return { ...newSecondaryMetadata(DISKS), generation: GENERATION, ...change };
}

describe("a state directory in the other role", () => {
  it("a primary's is that of a secondary that comes back, with the same identity and history", () => {
    const primary = { ...newPrimaryMetadata(DISKS), ancestors: [GENERATION], epoch: 7 };
    const metadata = asSecondary(primary, AS_IT_IS);
    const { uuid, generation, ancestors, epoch, disks } = primary;
    expect(metadata).to.deep.include({ uuid, generation, ancestors, epoch, disks });
    expect(metadata).to.deep.include({ role: "secondary", stage: "none", returning: true, discard: false });
  });

  it("a promoted secondary's is a primary's", () => {
    const metadata = asPrimary(secondary({ stage: "done", epoch: 3 }), "metadata.json");
    expect(metadata).to.deep.include({ role: "primary", generation: GENERATION, epoch: 3 });
  });

  it("that of a node that came back as a secondary, and that nothing was written to, is a primary's as before", () => {
    const primary = { ...newPrimaryMetadata(DISKS), ancestors: [GENERATION], replicaGeneration: GENERATION };
    const back = asSecondary(primary, AS_IT_IS);
    expect(asPrimary(back, "metadata.json")).to.deep.equal(primary);
    const demoted = asSecondary(secondary({ stage: "done", epoch: 3 }), DEMOTE);
    expect(asPrimary(demoted, "metadata.json")).to.deep.include({
      ...{ role: "primary", generation: GENERATION, epoch: 3 },
    });
  });

  for (const [what, change, message] of [
    [
      "somebody wrote to",
      { mixed: "a writer wrote" },
      "metadata.json belongs to a secondary that was not promoted: fail over first (to take the disks as they are, start replication (QMP xen-set-replication, enable: true, primary: false), then fail over (repl-secondary failover --to latest)), or give another --state-dir",
    ],
    [
      "a primary is copying to",
      { copying: true, mixed: "a copy" },
      "metadata.json belongs to a secondary that was not promoted: fail over first (to take the disks as they are, give that copy up and start replication (QMP xen-set-replication, enable: false, then true, primary: false), then fail over (repl-secondary failover --to latest)), or give another --state-dir",
    ],
    [
      "is in an epoch of another primary",
      { stage: "running" },
      "metadata.json belongs to a secondary that was not promoted: fail over first (repl-secondary failover), or give another --state-dir",
    ],
    [
      "handed its disks over",
      { handedOver: true },
      "metadata.json belongs to a node that handed its disks over to another one: start it as the secondary of that, or if that is lost, fail over first (to take the disks as they are, start replication (QMP xen-set-replication, enable: true, primary: false), then fail over (repl-secondary failover --to latest)), or give another --state-dir",
    ],
  ] as const) {
    it(`that of a node that came back is no primary's if it ${what}`, () => {
      const back = asSecondary(newPrimaryMetadata(DISKS), AS_IT_IS);
      expect(() => asPrimary({ ...back, ...change }, "metadata.json")).to.throw(StateError, message);
    });
  }

  for (const begun of [
    { stage: "failover", failoverTarget: "checkpoint" },
    { stage: "running", failoverTarget: "latest" },
  ] as const) {
    it(`a secondary's whose failover was interrupted in stage ${begun.stage} is no primary's before it is finished`, () => {
      expect(() => asPrimary(secondary(begun), "metadata.json")).to.throw(
        StateError,
        "metadata.json belongs to a secondary whose failover is not over: start repl-secondary, which finishes it, or give another --state-dir",
      );
    });
  }

  for (const stage of ["none", "running", "failover-failed"] as const) {
    it(`a secondary's in stage ${stage} is no primary's`, () => {
      expect(() => asPrimary(secondary({ stage }), "metadata.json")).to.throw(
        StateError,
        /metadata.json belongs to a secondary that was not promoted/,
      );
    });
  }

  it("a promoted secondary stays promoted, unless it is demoted or told to give up what it has", () => {
    const done = secondary({ stage: "done" });
    expect(asSecondary(done, AS_IT_IS)).to.equal(done);
    expect(asSecondary(done, DISCARD)).to.deep.include({ stage: "none", returning: true, discard: true });
    const demoted = { stage: "none", generation: GENERATION, returning: true, discard: false };
    expect(asSecondary(done, DEMOTE)).to.deep.include(demoted);
  });

  for (const stage of ["none", "running"] as const) {
    it(`a secondary in stage ${stage} can't be demoted further`, () => {
      const metadata = secondary({ stage });
      expect(asSecondary(metadata, DEMOTE)).to.equal(metadata);
    });
  }

  it("a secondary that gives up what it has keeps its stage, for its checkpoint is not lost yet", () => {
    expect(asSecondary(secondary({ stage: "running" }), DISCARD)).to.deep.include({
      stage: "running",
      discard: true,
      returning: false,
    });
  });

  for (const stage of ["failover", "failover-failed"] as const) {
    it(`nothing is given up in stage ${stage}, and no role`, () => {
      expect(() => asSecondary(secondary({ stage }), DISCARD)).to.throw(
        StateError,
        /without --discard-local/,
      );
      expect(() => asSecondary(secondary({ stage }), DEMOTE)).to.throw(StateError, /without --demote/);
    });
  }
});
