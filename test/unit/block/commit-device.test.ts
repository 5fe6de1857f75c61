/** Failover's merge of overlays into the disk: cut off anywhere, written to beside it, failing and tried again. */
import { expect } from "chai";

import { type BlockDevice, Flag } from "../../../src/block/device.js";
import { ExtentMap } from "../../../src/block/extent-map.js";
import { ActiveOverlay, type ActiveStorage, recoverChange } from "../../../src/block/overlay/active.js";
import { CommitDevice } from "../../../src/block/overlay/commit.js";
import { HiddenOverlay, recoverImage } from "../../../src/block/overlay/hidden.js";
import { OverlayLog } from "../../../src/meta/overlay-log.js";
import { FailingDevice } from "../../tools/failing-device.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";
import { isSettled, outcome } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";

const BLOCK = 4096;
const BLOCKS = 40;
const SIZE_BYTES = BLOCKS * BLOCK - 500;
const OPTIONS = { epoch: 1, sync: true };
/** Blocks that the hidden overlay, the active overlay, and none of them hold. */
const HIDDEN = [0, 1, 5, 9, 20, 21, 22, 39];
const ACTIVE = [1, 6, 7, 21, 30, 33];
const NEITHER = [2, 10, 35];

function ignore(): void {
  return undefined;
}

async function contents(device: BlockDevice): Promise<Buffer> {
  const content = Buffer.alloc(SIZE_BYTES);
  await device.read(0, content);
  return content;
}

function blockOf(content: Buffer, block: number): number {
  return content[block * BLOCK] ?? -1;
}

/** The overlays as they are on the state directory now, over the disk. */
async function open(
  directory: MemoryStateDirectory,
  disk: BlockDevice,
): Promise<{ hidden: HiddenOverlay; active: ActiveOverlay }> {
  const [images, changes] = [new ExtentMap(), new ExtentMap()];
  const hiddenLog = await OverlayLog.recover(directory, "hidden", OPTIONS, (record) => {
    recoverImage(images, record);
  });
  const activeLog = await OverlayLog.recover(directory, "active", OPTIONS, (record) => {
    recoverChange(changes, record);
  });
  const hidden = new HiddenOverlay(disk, hiddenLog, 0, images);
  const storage: ActiveStorage = {
    open: async () => ({ file: await directory.open("data"), log: activeLog }),
    extend: (_lengthBytes, change) => change(),
    lost: () => undefined,
  };
  return { hidden, active: new ActiveOverlay(hidden, storage, 0, changes) };
}

class Subject {
  readonly directory = new MemoryStateDirectory();
  readonly memory = new MemoryDevice(SIZE_BYTES);
  readonly disk = new FailingDevice(this.memory);

  static async make(): Promise<Subject> {
    const subject = new Subject();
    const { directory, memory } = subject;
    const random = new Random(SEED);
    for (let block = 0; block < BLOCKS; block++)
      memory.fill(block * BLOCK, block === 39 ? Buffer.alloc(1, 99) : filled(100 + block));
    for (const name of ["hidden", "active"])
      await (await OverlayLog.create(directory, name, OPTIONS)).close();
    await directory.create("data");
    const { hidden, active } = await open(directory, memory);
    for (const block of HIDDEN) {
      const lengthBytes = Math.min(BLOCK, SIZE_BYTES - block * BLOCK);
      const data = random.below(3) === 0 ? null : Buffer.alloc(lengthBytes, 50 + block);
      await hidden.keep([{ offset: block * BLOCK, lengthBytes, data }]);
    }
    for (const block of ACTIVE) await active.write(block * BLOCK, filled(200 + block), Flag.None);
    for (const block of [7, 33]) await active.zero(block * BLOCK, BLOCK, Flag.None);
    await active.flush();
    return subject;
  }

  async begin(): Promise<CommitDevice> {
    const { hidden, active } = await open(this.directory, this.disk);
    return new CommitDevice(this.disk, hidden, active);
  }

  /** What the view shows before the failover. */
  async view(): Promise<Buffer> {
    return contents((await open(this.directory, this.memory)).active);
  }
}

function filled(value: number): Buffer {
  return Buffer.alloc(BLOCK, value);
}

describe("commit", () => {
  it("makes the disk what the view was, durably, and counts what it does", async () => {
    const subject = await Subject.make();
    const view = await subject.view();
    const commit = await subject.begin();
    const progress: [number, number][] = [];
    await commit.run((...done) => progress.push(done));
    expect(subject.disk.log.at(-1)?.operation).to.equal("flush");
    expect(subject.memory.contents()).to.deep.equal(view);
    expect(await contents(commit)).to.deep.equal(view);
    const blocks = new Set([...HIDDEN, ...ACTIVE]).size;
    expect(commit.totalBytes).to.equal(blocks * BLOCK - 500);
    expect(progress.at(-1)).to.deep.equal([commit.totalBytes, commit.totalBytes]);
  });

  it("punches holes where the content is zero", async () => {
    const subject = await Subject.make();
    await (await subject.begin()).run(ignore);
    expect(
      subject.disk.log.some(({ operation, offset }) => operation === "zero" && offset === 33 * BLOCK),
    ).to.equal(true);
  });

  it("ends with the same disk wherever it was cut off and begun anew", async () => {
    const whole = await Subject.make();
    await (await whole.begin()).run(ignore);
    const changes = whole.disk.log.filter(
      ({ operation }) => operation !== "read" && operation !== "extents",
    ).length;
    expect(changes).to.be.greaterThan(5);
    for (const when of ["before", "after"] as const) {
      for (let skip = 0; skip < changes; skip++) {
        const subject = await Subject.make();
        const view = await subject.view();
        const rule = subject.disk.fail({ operation: ["write", "zero", "flush"], skip, when });
        expect(await outcome((await subject.begin()).run(ignore)), `${when} change ${skip}`).to.equal("EIO");
        rule.remove();
        subject.directory.crash();
        const again = await subject.begin();
        expect(await contents(again), "while nothing is merged yet").to.deep.equal(view);
        await again.run(ignore);
        expect(subject.memory.contents(), `${when} change ${skip}`).to.deep.equal(view);
      }
    }
  });

  it("shows the view at every moment of its run", async () => {
    const subject = await Subject.make();
    const view = await subject.view();
    const commit = await subject.begin();
    const held = subject.disk.hold({ operation: ["write", "zero", "flush"] });
    const run = commit.run(ignore);
    const over = run.then(() => true);
    for (;;) {
      const isOver = await Promise.race([over, held.arrived(1).then(() => false)]);
      if (isOver) break;
      expect(await contents(commit)).to.deep.equal(view);
      held.releaseOne();
      await isSettled(run);
    }
    expect(subject.memory.contents()).to.deep.equal(view);
  });

  it("keeps what clients write at every moment of its run, on the disk and after a crash", async () => {
    const whole = await Subject.make();
    await (await whole.begin()).run(ignore);
    const steps = whole.disk.log.filter(
      ({ operation }) => operation === "write" || operation === "zero",
    ).length;
    for (let step = 0; step <= steps; step++) {
      for (const isCrash of [false, true]) {
        const subject = await Subject.make();
        const expected = await subject.view();
        const commit = await subject.begin();
        const held = subject.disk.hold({ operation: ["write", "zero", "flush"], skip: step, count: 1 });
        const run = outcome(commit.run(ignore));
        await held.arrived(1);
        const [under] = held.requests;
        const writes: Promise<void>[] = [];
        for (const block of [0, 5, 6, 22, 30, ...NEITHER]) {
          const offset = block * BLOCK;
          // A write to what is just being merged waits for that step, which is held.
          if (
            under !== undefined &&
            offset < under.offset + under.lengthBytes &&
            under.offset < offset + BLOCK
          )
            continue;
          const isZero = block === 22;
          if (isZero) writes.push(commit.zero(offset, BLOCK, Flag.Fua));
          else writes.push(commit.write(offset, filled(3 + block), Flag.Fua));
          expected.fill(isZero ? 0 : 3 + block, offset, offset + BLOCK);
        }
        await Promise.all(writes);
        expect(await contents(commit)).to.deep.equal(expected);
        if (isCrash) {
          held.failOne("EIO");
          await run;
          subject.directory.crash();
          const again = await subject.begin();
          expect(await contents(again), `after a crash at step ${step}`).to.deep.equal(expected);
          await again.run(ignore);
        } else {
          held.release();
          expect(await run).to.equal("done");
        }
        expect(subject.memory.contents(), `disk, written at step ${step}`).to.deep.equal(expected);
      }
    }
  });

  it("sends writes to the overlay where an overlay holds the block, else to the disk, before it and after a failure", async () => {
    const subject = await Subject.make();
    const commit = await subject.begin();
    const route = async (block: number): Promise<string[]> => {
      subject.disk.log.length = 0;
      subject.directory.log.length = 0;
      await commit.write(block * BLOCK, filled(1), Flag.None);
      const isOnDisk = subject.disk.log.some(({ operation }) => operation === "write");
      const isInOverlay = subject.directory.count("write", "data") > 0;
      return [...(isInOverlay ? ["overlay"] : []), ...(isOnDisk ? ["disk"] : [])];
    };
    const routes = async (): Promise<string[][]> => [await route(5), await route(6), await route(10)];
    expect(await routes(), "before").to.deep.equal([["overlay"], ["overlay"], ["disk"]]);
    const rule = subject.disk.fail({ operation: ["write", "zero"], offset: 30 * BLOCK, lengthBytes: 1 });
    expect(await outcome(commit.run(ignore))).to.equal("EIO");
    expect(await routes(), "after a failure").to.deep.equal([["overlay"], ["overlay"], ["disk"]]);
    rule.remove();
    await commit.run(ignore);
    expect(await routes(), "after the end").to.deep.equal([
      ["overlay", "disk"],
      ["overlay", "disk"],
      ["disk"],
    ]);
    expect(subject.memory.contents()).to.deep.equal(await contents(commit));
  });

  it("divides a write that lies over blocks of both kinds", async () => {
    const subject = await Subject.make();
    const commit = await subject.begin();
    const data = Buffer.alloc(6 * BLOCK);
    for (let at = 0; at < data.length; at += BLOCK) data.fill(60 + at / BLOCK, at, at + BLOCK);
    await commit.write(4 * BLOCK, data, Flag.None);
    expect((await contents(commit)).subarray(4 * BLOCK, 10 * BLOCK)).to.deep.equal(data);
    expect([4, 5, 8, 9].map((block) => blockOf(subject.memory.contents(), block))).to.deep.equal([
      60, 105, 64, 109,
    ]);
    await commit.run(ignore);
    expect(subject.memory.contents(4 * BLOCK, 6 * BLOCK)).to.deep.equal(data);
  });

  it("flushes overlay and disk, as either may hold what was written", async () => {
    const subject = await Subject.make();
    const commit = await subject.begin();
    await commit.write(5 * BLOCK, filled(1), Flag.None);
    await commit.write(10 * BLOCK, filled(1), Flag.None);
    subject.disk.log.length = 0;
    subject.directory.log.length = 0;
    await commit.flush();
    expect(subject.disk.log.map(({ operation }) => operation)).to.deep.equal(["flush"]);
    expect(subject.directory.count("sync", "data")).to.equal(1);
  });

  it("tells a failed write to its client, and stays usable", async () => {
    const subject = await Subject.make();
    const commit = await subject.begin();
    subject.disk.fail({ operation: "write", count: 1 }, "ENOSPC");
    expect(await outcome(commit.write(10 * BLOCK, filled(1), Flag.None))).to.equal("ENOSPC");
    expect(await outcome(commit.write(10 * BLOCK, filled(1), Flag.None))).to.equal("done");
  });

  it("refuses fast zeroes, and changes nothing then", async () => {
    const subject = await Subject.make();
    const view = await subject.view();
    const commit = await subject.begin();
    expect(await outcome(commit.zero(4 * BLOCK, 4 * BLOCK, Flag.FastZero))).to.equal("ENOTSUP");
    expect(await contents(commit)).to.deep.equal(view);
  });

  it("stops after the step it is at when it is interrupted", async () => {
    const subject = await Subject.make();
    const view = await subject.view();
    const commit = await subject.begin();
    const held = subject.disk.hold({ operation: ["write", "zero"], count: 1 });
    const run = outcome(commit.run(ignore));
    await held.arrived(1);
    commit.interrupt();
    held.release();
    expect(await run).to.equal("ESHUTDOWN");
    expect(
      subject.disk.log.filter(({ operation }) => operation === "write" || operation === "zero"),
    ).to.have.length(1);
    await (await subject.begin()).run(ignore);
    expect(subject.memory.contents()).to.deep.equal(view);
  });
});
