import { expect } from "chai";
import { takeWelcome } from "../../../src/replication/primary/handshake.js";
import { failureOf } from "../../tools/outcome.js";

describe("a primary that is welcomed", () => {
  /** What happens, in order. */
  const meet = (known: boolean, isNewLine: boolean): { told: string[]; done: Promise<void> } => {
    const told: string[] = [];
    const options = {
      disks: [],
      primary: "primary",
      lineage: () => ({ generation: "generation", ancestors: [] }),
      epoch: () => 1,
      events: {
        epochLearned: (epoch: number): void => void told.push(`epoch ${epoch}`),
        otherReplica: (): Promise<boolean> => {
          told.push("other replica");
          return Promise.resolve(isNewLine);
        },
      },
    };
    const welcome = { known, tenure: "tenure", changed: {}, memory: "memory", writer: null, epoch: 7 };
    return { told, done: takeWelcome(options, { ...welcome, stage: "running" }) };
  };

  it("puts the replica's epoch on record only after what another replica needs on record first: it goes there with the disks", async () => {
    const { told, done } = meet(false, false);
    await done;
    expect(told).to.deep.equal(["other replica", "epoch 7"]);
  });

  it("puts no epoch on record of a replica that it has to introduce itself to anew", async () => {
    const { told, done } = meet(false, true);
    expect((await failureOf(done)).message).to.include("a new generation begins");
    expect(told).to.deep.equal(["other replica"]);
  });

  it("puts the epoch of its own replica on record", async () => {
    const { told, done } = meet(true, true);
    await done;
    expect(told).to.deep.equal(["epoch 7"]);
  });
});
