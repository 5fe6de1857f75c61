import { expect } from "chai";

import { type BlockDevice, Flag } from "../../../src/block/device.js";
import { ExtentMap } from "../../../src/block/extent-map.js";
import { ActiveOverlay, recoverChange } from "../../../src/block/overlay/active.js";
import { Deferred } from "../../../src/deferred.js";
import { DeviceError } from "../../../src/errors.js";
import { OverlayLog } from "../../../src/meta/overlay-log.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { MemoryStateDirectory, StorageFault } from "../../tools/memory-state-directory.js";
import { failureOf, isSettled, outcome, turns } from "../../tools/outcome.js";

const BLOCK_BYTES = 4096;
const SIZE_BYTES = 16 * BLOCK_BYTES;
const OPTIONS = { epoch: 1, sync: true };

function filled(blocks: number, value: number): Buffer {
  return Buffer.alloc(blocks * BLOCK_BYTES, value);
}

interface Heard {
  lost(): void;
  /** A hole has been punched: what this returns is waited for before the overlay hears of it. */
  punched(): Promise<void>;
}

function make(
  directory: MemoryStateDirectory,
  backing: BlockDevice,
  { lost = () => undefined, punched = () => Promise.resolve() }: Partial<Heard> = {},
): ActiveOverlay {
  return new ActiveOverlay(
    backing,
    {
      open: async () => {
        const file = await directory.create("data");
        const punch = async (position: number, lengthBytes: number): Promise<boolean> => {
          const isDone = await file.punch(position, lengthBytes);
          await punched();
          return isDone;
        };
        return { file: { ...file, punch }, log: await OverlayLog.create(directory, "log", OPTIONS) };
      },
      extend: (_lengthBytes, change) => change(),
      lost,
    },
    0,
  );
}

/** The overlay as it is after a power loss now. */
async function afterCrash(directory: MemoryStateDirectory, backing: BlockDevice): Promise<ActiveOverlay> {
  directory.crash();
  const map = new ExtentMap();
  const log = await OverlayLog.recover(directory, "log", OPTIONS, (record) => {
    recoverChange(map, record);
  });
  return new ActiveOverlay(
    backing,
    {
      open: async () => ({ file: await directory.open("data"), log }),
      extend: (_lengthBytes, change) => change(),
      lost: () => undefined,
    },
    0,
    map,
  );
}

async function contents(device: BlockDevice): Promise<Buffer> {
  const content = Buffer.alloc(SIZE_BYTES);
  await device.read(0, content);
  return content;
}

describe("active overlay", () => {
  let directory: MemoryStateDirectory;
  let backing: MemoryDevice;
  let overlay: ActiveOverlay;

  beforeEach(() => {
    directory = new MemoryStateDirectory();
    backing = new MemoryDevice(SIZE_BYTES);
    backing.fill(0, filled(16, 7));
    overlay = make(directory, backing);
  });

  it("opens no file before the first write", async () => {
    await overlay.flush();
    expect(await contents(overlay)).to.deep.equal(filled(16, 7));
    await overlay.close();
    expect(directory.log).to.deep.equal([]);
  });

  it("never changes what lies under it", async () => {
    await overlay.write(0, filled(2, 1), Flag.Fua);
    await overlay.zero(4 * BLOCK_BYTES, BLOCK_BYTES, Flag.None);
    await overlay.trim(8 * BLOCK_BYTES, BLOCK_BYTES, Flag.None);
    expect(backing.contents()).to.deep.equal(filled(16, 7));
    expect(overlay.mapped()).to.deep.equal([
      [0, 2 * BLOCK_BYTES],
      [4 * BLOCK_BYTES, 5 * BLOCK_BYTES],
      [8 * BLOCK_BYTES, 9 * BLOCK_BYTES],
    ]);
  });

  it("has after a power loss what was flushed, and of the rest nothing", async () => {
    await overlay.write(0, filled(2, 1), Flag.None);
    await overlay.zero(2 * BLOCK_BYTES, BLOCK_BYTES, Flag.None);
    await overlay.flush();
    await overlay.write(3 * BLOCK_BYTES, filled(1, 2), Flag.Fua);
    await overlay.write(4 * BLOCK_BYTES, filled(1, 3), Flag.None);
    await overlay.zero(5 * BLOCK_BYTES, BLOCK_BYTES, Flag.None);
    expect(await contents(await afterCrash(directory, backing))).to.deep.equal(
      Buffer.concat([filled(2, 1), filled(1, 0), filled(1, 2), filled(12, 7)]),
    );
  });

  it("has after a power loss what a block was last, however often it was written and zeroed", async () => {
    await overlay.write(0, filled(3, 1), Flag.Fua);
    await overlay.zero(0, 3 * BLOCK_BYTES, Flag.Fua);
    await overlay.write(BLOCK_BYTES, filled(1, 2), Flag.Fua);
    const recovered = await afterCrash(directory, backing);
    expect((await contents(recovered)).subarray(0, 4 * BLOCK_BYTES)).to.deep.equal(
      Buffer.concat([filled(1, 0), filled(1, 2), filled(1, 0), filled(1, 7)]),
    );
    await recovered.write(0, filled(1, 4), Flag.Fua);
    const again = await afterCrash(directory, backing);
    expect((await contents(again)).subarray(0, 2 * BLOCK_BYTES)).to.deep.equal(
      Buffer.concat([filled(1, 4), filled(1, 2)]),
    );
  });

  it("has after a power loss what was written where a hole was punched that a longer zero has covered since", async () => {
    await overlay.write(0, filled(1, 1), Flag.Fua);
    await overlay.zero(0, BLOCK_BYTES, Flag.Fua);
    await overlay.zero(0, 2 * BLOCK_BYTES, Flag.Fua);
    await overlay.write(0, filled(1, 2), Flag.Fua);
    const recovered = await afterCrash(directory, backing);
    expect((await contents(recovered)).subarray(0, 2 * BLOCK_BYTES)).to.deep.equal(
      Buffer.concat([filled(1, 2), filled(1, 0)]),
    );
  });

  it("makes content durable before the log names it", async () => {
    await overlay.write(0, filled(1, 1), Flag.None);
    const held = new Deferred<void>();
    directory.intercept = ({ kind, name }): Promise<void> | undefined =>
      kind === "sync" && name === "data" ? held.promise : undefined;
    const writes = directory.count("write", "log");
    const flush = overlay.flush();
    await turns();
    expect(directory.count("write", "log")).to.equal(writes);
    expect(await isSettled(flush)).to.equal(false);
    held.resolve();
    await flush;
    expect(directory.count("write", "log")).to.equal(writes + 1);
  });

  it("leaves its files alone once it is closed, whenever it is flushed", async () => {
    await overlay.write(0, filled(1, 1), Flag.None);
    const held = new Deferred<void>();
    directory.intercept = ({ kind, name }): Promise<void> | undefined =>
      kind === "sync" && name === "data" ? held.promise : undefined;
    const flushes = [overlay.flush(), overlay.flush()];
    const closed = overlay.close();
    await turns();
    expect(await isSettled(closed)).to.equal(false);
    held.resolve();
    await closed;
    const calls = directory.log.length;
    expect(await Promise.all([...flushes, overlay.flush()].map(outcome))).to.deep.equal([
      "done",
      "done",
      "done",
    ]);
    expect(directory.log.length).to.equal(calls);
  });

  it("logs a block once, however often it is written", async () => {
    await overlay.write(0, filled(4, 1), Flag.Fua);
    const bytes = directory.contents("log").length;
    for (let count = 0; count < 10; count++) await overlay.write(BLOCK_BYTES, filled(2, count), Flag.Fua);
    expect(directory.contents("log").length).to.equal(bytes);
  });

  it("logs a block twice at most, however often it is written and zeroed", async () => {
    await overlay.zero(0, 4 * BLOCK_BYTES, Flag.Fua);
    await overlay.write(0, filled(4, 1), Flag.Fua);
    const bytes = directory.contents("log").length;
    const content = filled(16, 7);
    content.fill(1, 0, 4 * BLOCK_BYTES);
    for (let count = 2; count < 12; count++) {
      const flags = count % 2 === 0 ? Flag.Fua : Flag.None;
      await overlay.zero(BLOCK_BYTES, 2 * BLOCK_BYTES, flags);
      content.fill(0, BLOCK_BYTES, 3 * BLOCK_BYTES);
      expect(await contents(overlay)).to.deep.equal(content);
      await overlay.write(2 * BLOCK_BYTES, filled(2, count), flags);
      content.fill(count, 2 * BLOCK_BYTES, 4 * BLOCK_BYTES);
      expect(await contents(overlay)).to.deep.equal(content);
    }
    expect(directory.contents("log").length).to.equal(bytes);
    await overlay.trim(0, 2 * BLOCK_BYTES, Flag.Fua);
    content.fill(0, 0, 2 * BLOCK_BYTES);
    expect(directory.contents("log").length).to.equal(bytes);
    expect(await overlay.extents(0, 5 * BLOCK_BYTES, 9)).to.deep.equal([
      { lengthBytes: 2 * BLOCK_BYTES, hole: true, zero: true },
      { lengthBytes: 2 * BLOCK_BYTES, hole: false, zero: false },
      { lengthBytes: BLOCK_BYTES, hole: false, zero: false },
    ]);
    expect(await contents(await afterCrash(directory, backing))).to.deep.equal(content);
  });

  it("logs what is zeroed where its file system punches no holes", async () => {
    directory.canPunch = false;
    await overlay.write(0, filled(4, 1), Flag.Fua);
    await overlay.zero(0, 2 * BLOCK_BYTES, Flag.Fua);
    await overlay.write(BLOCK_BYTES, filled(1, 2), Flag.Fua);
    const expected = Buffer.concat([filled(1, 0), filled(1, 2), filled(2, 1), filled(12, 7)]);
    expect(await contents(overlay)).to.deep.equal(expected);
    expect(await contents(await afterCrash(directory, backing))).to.deep.equal(expected);
  });

  it("a block that is written and zeroed at once is after a power loss what it was before", async () => {
    const told = new Deferred<void>();
    overlay = make(directory, backing, {
      punched: () => told.promise,
    });
    await overlay.write(0, filled(1, 1), Flag.Fua);
    const zero = overlay.zero(0, BLOCK_BYTES, Flag.None);
    await turns();
    const write = overlay.write(0, filled(1, 2), Flag.None);
    await turns();
    told.resolve();
    await Promise.all([zero, write]);
    await overlay.flush();
    const before = await contents(overlay);
    expect(await contents(await afterCrash(directory, backing))).to.deep.equal(before);
  });

  it("answers a zero that could not be punched with its error, and goes on", async () => {
    await overlay.write(0, filled(1, 1), Flag.Fua);
    directory.intercept = ({ kind }): Promise<void> | undefined =>
      kind === "punch" ? Promise.reject(new DeviceError("ENOSPC", "full")) : undefined;
    expect(await outcome(overlay.zero(0, BLOCK_BYTES, Flag.None))).to.equal("ENOSPC");
    directory.intercept = () => undefined;
    expect(await outcome(overlay.zero(0, BLOCK_BYTES, Flag.Fua))).to.equal("done");
    expect((await contents(await afterCrash(directory, backing))).subarray(0, BLOCK_BYTES)).to.deep.equal(
      filled(1, 0),
    );
  });

  it("flushes by itself before it has too many extents that are not in the log", async () => {
    const large = new MemoryDevice(10_000 * BLOCK_BYTES);
    const many = make(directory, large);
    for (let block = 0; block < 4095; block++)
      await many.zero(2 * block * BLOCK_BYTES, BLOCK_BYTES, Flag.None);
    expect(directory.count("sync", "data")).to.equal(0);
    await many.zero(9000 * BLOCK_BYTES, BLOCK_BYTES, Flag.None);
    expect(directory.count("sync", "data")).to.equal(1);
  });

  it("fails every flush after one has failed", async () => {
    await overlay.write(0, filled(1, 1), Flag.None);
    directory.intercept = ({ kind }): Promise<void> | undefined =>
      kind === "sync" ? Promise.reject(new DeviceError("EIO", "lost")) : undefined;
    expect(await outcome(overlay.flush())).to.equal("EIO");
    directory.intercept = (): undefined => undefined;
    expect(await outcome(overlay.flush())).to.equal("EIO");
    expect(await outcome(overlay.write(BLOCK_BYTES, filled(1, 1), Flag.Fua))).to.equal("EIO");
    await overlay.close();
  });

  it("shows nothing any more once its data file could not be synced, and says so: a restart has what was flushed before", async () => {
    const told: string[] = [];
    overlay = make(directory, backing, { lost: () => told.push("lost") });
    await overlay.write(0, filled(1, 1), Flag.Fua);
    await overlay.write(BLOCK_BYTES, filled(1, 2), Flag.None);
    // What the kernel gives up reads as the hole that it was before.
    directory.isDone = () => true;
    directory.intercept = ({ kind, name }) =>
      kind === "sync" && name === "data" ? Promise.reject(new StorageFault("EIO", "lost")) : undefined;
    const reason = "what was written to the view may be lost: lost";
    expect((await failureOf(overlay.flush())).message).to.equal(reason);
    directory.intercept = () => undefined;
    expect(told).to.deep.equal(["lost"]);
    for (const request of [
      overlay.read(0, Buffer.alloc(BLOCK_BYTES)),
      overlay.write(0, filled(1, 3), Flag.None),
      overlay.zero(0, BLOCK_BYTES, Flag.None),
      overlay.extents(0, BLOCK_BYTES, 1),
    ])
      expect((await failureOf(request)).message).to.equal(reason);
    const expected = filled(16, 7);
    expected.fill(1, 0, BLOCK_BYTES);
    expect(await contents(await afterCrash(directory, backing))).to.deep.equal(expected);
  });

  it("shows nothing of what it was reading when the sync failed: that may be gone from its data file already", async () => {
    await overlay.write(0, filled(1, 1), Flag.None);
    directory.isDone = () => true;
    const held = new Deferred<void>();
    directory.intercept = ({ kind }) => {
      if (kind === "read") return held.promise;
      return kind === "sync" ? Promise.reject(new StorageFault("EIO", "lost")) : undefined;
    };
    const read = outcome(overlay.read(0, Buffer.alloc(BLOCK_BYTES)));
    expect(await outcome(overlay.flush())).to.equal("EIO");
    held.resolve();
    expect(await read).to.equal("EIO");
  });

  it("does not show a write that failed", async () => {
    await overlay.write(0, filled(1, 1), Flag.None);
    directory.intercept = ({ kind }): Promise<void> | undefined =>
      kind === "write" ? Promise.reject(new DeviceError("ENOSPC", "full")) : undefined;
    expect(await outcome(overlay.write(BLOCK_BYTES, filled(1, 2), Flag.None))).to.equal("ENOSPC");
    expect((await contents(overlay)).subarray(0, 2 * BLOCK_BYTES)).to.deep.equal(
      Buffer.concat([filled(1, 1), filled(1, 7)]),
    );
  });

  it("tries again to make its files after that has failed, and can be closed in between", async () => {
    directory.intercept = ({ kind }): Promise<void> | undefined =>
      kind === "create" ? Promise.reject(new DeviceError("ENOSPC", "full")) : undefined;
    expect(await outcome(overlay.write(0, filled(1, 1), Flag.None))).to.equal("ENOSPC");
    expect(await outcome(overlay.flush())).to.equal("done");
    expect(await outcome(overlay.close())).to.equal("done");
    directory.intercept = (): undefined => undefined;
    expect(await outcome(overlay.write(0, filled(1, 1), Flag.None))).to.equal("done");
    expect((await contents(overlay)).subarray(0, BLOCK_BYTES)).to.deep.equal(filled(1, 1));
  });
});
