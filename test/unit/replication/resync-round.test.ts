/** One round of copies over a link: what becomes of the others, and of what asks the replica, when one ends. */
import { expect } from "chai";
import { pino } from "pino";

import { DIRTY_BLOCK_BYTES as BLOCK } from "../../../src/block/dirty-blocks.js";
import type { DirtyMap } from "../../../src/block/dirty-map.js";
import { systemClock } from "../../../src/clock.js";
import { Deferred } from "../../../src/deferred.js";
import { type DigestRequest, digestsOf } from "../../../src/replication/digest.js";
import { RateLimit } from "../../../src/replication/primary/rate-limit.js";
import { ReplicaDigests } from "../../../src/replication/primary/replica-digests.js";
import { ResyncRound } from "../../../src/replication/primary/resync-round.js";
import { openDirtyMap } from "../../tools/dirty-map.js";
import { MirroredDisk } from "../../tools/mirrored-disk.js";
import { failureOf, turns } from "../../tools/outcome.js";

const SIZE_BYTES = 16 * BLOCK;
const SILENT_LOG = pino({ level: "silent" });

/** A disk of which its replica lacks all. */
class Subject extends MirroredDisk {
  private constructor(name: string, dirty: DirtyMap) {
    super(dirty, { name });
    this.localMemory.fill(0, Buffer.alloc(SIZE_BYTES, 0x11));
  }

  static async open(name: string): Promise<Subject> {
    const dirty = await openDirtyMap(SIZE_BYTES);
    await dirty.describe(null, false);
    return new Subject(name, dirty);
  }

  get isSame(): boolean {
    return this.localMemory.contents().equals(this.replicaMemory.contents());
  }
}

describe("a round of copies", () => {
  let subjects: Subject[];
  /** Of the connections for digests. */
  let opened: number;
  let closed: number;
  /** Resolves when the replica may answer. */
  let answer: Promise<void>;
  /** What was told of each disk's copy. */
  let told: [disk: string, error: string | null][];

  beforeEach(async () => {
    subjects = [await Subject.open("disk0"), await Subject.open("disk1")];
    [opened, closed] = [0, 0];
    answer = Promise.resolve();
    told = [];
  });

  const round = (): ResyncRound => {
    const execute = async (_command: string, args: unknown): Promise<object> => {
      const { disk, ranges, block } = args as DigestRequest;
      await answer;
      const memory = subjects.find(({ disk: { name } }) => name === disk)?.replicaMemory;
      return {
        digests: ranges.map(({ offset, length }) =>
          digestsOf(memory?.contents(offset, length) ?? Buffer.alloc(0), block),
        ),
      };
    };
    const commands = (): Promise<{ execute: typeof execute; close: () => Promise<void> }> => {
      opened++;
      const close = (): Promise<void> => {
        closed++;
        return Promise.resolve();
      };
      return Promise.resolve({ execute, close });
    };
    return new ResyncRound({
      disks: subjects.map(({ disk }) => disk),
      replicas: subjects.map(({ replica }) => replica),
      digests: new ReplicaDigests({ commands }, { kind: "unix", path: "/nowhere" }, 1000, "session"),
      onSilent: () => undefined,
      rate: new RateLimit(0),
      clock: systemClock,
      log: SILENT_LOG,
    });
  };

  const run = (of: ResyncRound): Promise<void> =>
    of.run(({ disk }, error) => {
      told.push([disk.name, error?.message ?? null]);
    });

  it("copies all disks, tells of each that it has ended, and closes the connection for its questions", async () => {
    await run(round());
    await turns();
    expect(subjects.map(({ isSame }) => isSame)).to.deep.equal([true, true]);
    expect(told.sort()).to.deep.equal([
      ["disk0", null],
      ["disk1", null],
    ]);
    expect([opened, closed]).to.deep.equal([1, 1]);
  });

  it("tells why a disk's copy has failed, has the others end first, and closes the connection for its questions", async () => {
    const [failing, other] = subjects;
    failing?.local.fail({ operation: "extents" });
    const held = other?.replica.hold({ operation: "write" });
    const failed = failureOf(run(round()));
    await held?.arrived(1);
    await turns(20);
    expect(told.map(([disk]) => disk)).to.deep.equal(["disk0"]);
    expect(closed, "the other asks yet").to.equal(0);
    held?.release();
    const { message } = await failed;
    await turns();
    expect(message).to.match(/^injected EIO: extents at 0/);
    expect(told).to.deep.equal([
      ["disk0", message],
      ["disk1", null],
    ]);
    expect(other?.isSame).to.equal(true);
    expect([opened, closed]).to.deep.equal([1, 1]);
  });

  it("ends soon when it is stopped, though the replica answers nothing, and has sent nothing then", async () => {
    const never = new Deferred<undefined>();
    answer = never.promise.then(() => undefined);
    const stopped = round();
    const failed = failureOf(run(stopped));
    await turns(20);
    expect([opened, closed]).to.deep.equal([1, 0]);
    stopped.stop();
    expect((await failed).message).to.equal("the resync was stopped");
    await turns();
    expect(told.sort()).to.deep.equal([
      ["disk0", "the resync was stopped"],
      ["disk1", "the resync was stopped"],
    ]);
    expect(subjects.map(({ replica }) => replica.log)).to.deep.equal([[], []]);
    expect([opened, closed]).to.deep.equal([1, 1]);
  });
});
