import { expect } from "chai";
import { pino } from "pino";

import { newSecondaryMetadata, readMetadata } from "../../../src/meta/metadata.js";
import { MetadataKeeper } from "../../../src/replication/metadata-keeper.js";
import { FailingStateDirectory } from "../../tools/failing-state-directory.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";
import { failureOf } from "../../tools/outcome.js";

describe("metadata of a node", () => {
  const initial = newSecondaryMetadata([]);
  let directory: FailingStateDirectory;
  let keeper: MetadataKeeper<typeof initial>;
  let lines: string[];

  beforeEach(() => {
    directory = new FailingStateDirectory(new MemoryStateDirectory());
    lines = [];
    keeper = new MetadataKeeper(directory, initial, pino({}, { write: (line) => lines.push(line) }));
  });

  it("is written once for all that changes while another write is under way, however much that is", async () => {
    const held = directory.hold({ operation: "replace" });
    const first = keeper.save({ epoch: 1 });
    await held.arrived;
    const later = Array.from({ length: 1000 }, (_, index) => keeper.save({ epoch: 2 + index }));
    expect(new Set(later).size).to.equal(1);
    expect([keeper.current.epoch, keeper.recorded.epoch]).to.deep.equal([1001, 0]);
    held.release();
    await first;
    await Promise.all(later);
    expect([keeper.recorded.epoch, (await readMetadata(directory))?.epoch]).to.deep.equal([1001, 1001]);
  });

  it("is not on record after a write that failed, until a later one has it all", async () => {
    directory.fail({ operation: "replace", count: 1 });
    const failed = keeper.save({ epoch: 1 });
    expect(await failureOf(failed))
      .to.have.property("message")
      .that.matches(/injected EIO/);
    expect([keeper.current.epoch, keeper.recorded.epoch]).to.deep.equal([1, 0]);
    await keeper.save({ gap: "lost" });
    expect(keeper.recorded).to.deep.include({ epoch: 1, gap: "lost" });
  });

  it("is logged once that can't be written, however many ask, until a write succeeds", async () => {
    const tried = async (): Promise<void> => {
      await Promise.allSettled([keeper.saveSoon({ epoch: 1 }), keeper.saveSoon({ epoch: 2 })]);
    };
    directory.fail({ operation: "replace", count: 3 });
    for (let round = 0; round < 3; round++) await tried();
    expect(lines).to.have.length(1);
    await tried();
    directory.fail({ operation: "replace", count: 1 });
    await tried();
    expect(lines).to.have.length(2);
  });
});
