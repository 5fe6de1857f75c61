/** Which generation a replica may have, by what became of the word that it has everything. */
import { expect } from "chai";
import { systemClock } from "../../../src/clock.js";
import { Deferred } from "../../../src/deferred.js";
import { LinkError, StateError } from "../../../src/errors.js";
import { QmpError } from "../../../src/qmp/errors.js";
import { openPrimaryKeeper } from "../../../src/replication/primary/keeper.js";
import { PrimaryLineage } from "../../../src/replication/primary/lineage.js";
import { memoryLogger } from "../../tools/memory-logger.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";
import { failureOf, isSettled } from "../../tools/outcome.js";

describe("a primary's generation", () => {
  let directory: MemoryStateDirectory;
  let lineage: PrimaryLineage;

  async function open(): Promise<void> {
    const { keeper } = await openPrimaryKeeper(directory, [], memoryLogger());
    lineage = new PrimaryLineage(keeper, systemClock, memoryLogger());
  }

  beforeEach(async () => {
    directory = new MemoryStateDirectory();
    await open();
    await lineage.share();
  });

  /** Whether a write without the replica is of another generation. */
  async function partsWhenAlone(): Promise<boolean> {
    const { generation } = lineage.current;
    await lineage.goAlone();
    return lineage.current.generation !== generation;
  }

  it("is not the replica's while it is on record only that the replica is about to be told", async () => {
    expect(await partsWhenAlone()).to.equal(false);
  });

  it("is on record before any change without the replica may end, not only the first one", async () => {
    await lineage.tell(() => Promise.resolve());
    const held = new Deferred<void>();
    directory.intercept = ({ kind }): Promise<void> | undefined =>
      kind === "replace" ? held.promise : undefined;
    const changes = [lineage.goAlone(), lineage.goAlone()];
    expect(await Promise.all(changes.map(isSettled))).to.deep.equal([false, false]);
    held.resolve();
    await Promise.all(changes);
    const { generation } = lineage.current;
    await open();
    expect(lineage.current.generation).to.equal(generation);
  });

  it("is taken for the replica's after a restart that finds it on record so", async () => {
    await open();
    expect(await partsWhenAlone()).to.equal(true);
  });

  it("is the replica's once it was told", async () => {
    await lineage.tell(() => Promise.resolve());
    expect(await partsWhenAlone()).to.equal(true);
  });

  for (const [how, error, parts] of [
    ["not the replica's if it refused", new QmpError("GenericError", "old-epoch", "refused", "state"), false],
    ["not the replica's if it was not asked", new StateError("not-replicating", "refused"), false],
    ["taken for the replica's if it failed", new QmpError("GenericError", "EIO", "failed", "failed"), true],
    ["taken for the replica's if its answer stays out", new LinkError("timeout", "no answer"), true],
  ] as const) {
    it(`is ${how}`, async () => {
      expect(await failureOf(lineage.tell(() => Promise.reject(error)))).to.equal(error);
      expect(await partsWhenAlone()).to.equal(parts);
    });
  }

  it("that it has already stays the replica's when a later word is refused", async () => {
    await lineage.tell(() => Promise.resolve());
    await failureOf(lineage.tell(() => Promise.reject(new StateError("not-replicating", "refused"))));
    expect(await partsWhenAlone()).to.equal(true);
  });
});
