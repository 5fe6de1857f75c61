/** An epoch's overlays and their files, through crashes at inconvenient moments. */
import { expect } from "chai";
import { pino } from "pino";

import type { BlockDevice } from "../../../src/block/device.js";
import { Flag } from "../../../src/block/device.js";
import { DeviceError } from "../../../src/errors.js";
import { HEADER_BYTES } from "../../../src/meta/overlay-log-format.js";
import { makingRoom } from "../../../src/meta/making-room.js";
import { type Epoch, EpochStore } from "../../../src/replication/secondary/epoch.js";
import { SpareLog } from "../../../src/replication/secondary/spare-log.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";
import { failureOf, isSettled, outcome } from "../../tools/outcome.js";
import { Deferred } from "../../../src/deferred.js";

const BLOCK_BYTES = 4096;

/** What the stores logged. */
let logged: { readonly level: number; readonly msg: string; readonly error?: string }[] = [];
const log = pino(
  { base: null },
  { write: (line: string) => logged.push(JSON.parse(line) as (typeof logged)[0]) },
);
const SIZE_BYTES = 8 * BLOCK_BYTES;

function filled(value: number): Buffer {
  return Buffer.alloc(BLOCK_BYTES, value);
}

function overlaysOf(epoch: Epoch, index: number): Epoch["overlays"][number] {
  const overlays = epoch.overlays[index];
  if (overlays === undefined) throw new Error(`no disk ${index}`);
  return overlays;
}

/** The first byte of each block: the tests write whole blocks of one value. */
async function firstBytes(device: BlockDevice): Promise<number[]> {
  const content = Buffer.alloc(SIZE_BYTES);
  await device.read(0, content);
  return Array.from({ length: SIZE_BYTES / BLOCK_BYTES }, (_, block) => content[block * BLOCK_BYTES] ?? -1);
}

/** Keeps the image of a block of disk 0 and then overwrites it, as copy-before-write does. */
async function overwrite(epoch: Epoch, disk: MemoryDevice, block: number, value: number): Promise<void> {
  const offset = block * BLOCK_BYTES;
  const data = disk.contents(offset, BLOCK_BYTES);
  const { hidden } = overlaysOf(epoch, 0);
  for (const [start] of hidden.missing(offset, offset + BLOCK_BYTES)) {
    await hidden.keep([{ offset: start, lengthBytes: BLOCK_BYTES, data }]);
  }
  disk.fill(offset, filled(value));
}

describe("epoch store", () => {
  let directory: MemoryStateDirectory;
  let disks: [MemoryDevice, MemoryDevice];
  let store: EpochStore;

  beforeEach(() => {
    logged = [];
    directory = new MemoryStateDirectory();
    disks = [new MemoryDevice(SIZE_BYTES), new MemoryDevice(SIZE_BYTES)];
    for (const disk of disks) disk.fill(0, Buffer.alloc(SIZE_BYTES, 7));
    store = open(disks);
  });

  /** As the secondary does. */
  function open(someDisks: readonly MemoryDevice[]): EpochStore {
    const spare = new SpareLog(directory, log);
    return new EpochStore({
      directory: makingRoom(directory, () => spare.makeRoom()),
      disks: someDisks,
      salvage: () => null,
      spare,
    });
  }

  const create = (number: number): Promise<Epoch> => store.create(number, () => Promise.resolve());

  it("brings back images and view writes of every disk after a power loss", async () => {
    const epoch = await create(1);
    await overwrite(epoch, disks[0], 0, 1);
    await overlaysOf(epoch, 1).hidden.keep([{ offset: BLOCK_BYTES, lengthBytes: BLOCK_BYTES, data: null }]);
    await overlaysOf(epoch, 0).active.write(3 * BLOCK_BYTES, filled(2), Flag.Fua);
    await overlaysOf(epoch, 1).active.zero(4 * BLOCK_BYTES, BLOCK_BYTES, Flag.Fua);
    directory.crash();
    const recovered = await store.recover(1);
    expect(await firstBytes(overlaysOf(recovered, 0).active)).to.deep.equal([7, 7, 7, 2, 7, 7, 7, 7]);
    expect(await firstBytes(overlaysOf(recovered, 1).active)).to.deep.equal([7, 0, 7, 7, 0, 7, 7, 7]);
    await overwrite(recovered, disks[0], 5, 3);
    await overlaysOf(recovered, 0).active.write(6 * BLOCK_BYTES, filled(4), Flag.Fua);
    await recovered.close();
    directory.crash();
    const again = await store.recover(1);
    expect(await firstBytes(overlaysOf(again, 0).active)).to.deep.equal([7, 7, 7, 2, 7, 7, 4, 7]);
  });

  it("keeps before-images that are to be salvaged, also if their log is damaged, and no log that has none", async () => {
    let salvage = 1;
    const nothing: number[] = [];
    store = new EpochStore({
      directory,
      disks,
      salvage: () => salvage,
      nothingSalvaged: (epoch) => Promise.resolve(void nothing.push(epoch)),
      spare: new SpareLog(directory, log),
    });
    const saved = async (): Promise<string[]> =>
      (await directory.list()).filter((file) => file.startsWith("salvage-")).sort();
    const first = await create(1);
    await overwrite(first, disks[0], 0, 1);
    await first.close();
    await store.removeAllBut(2);
    expect([await saved(), nothing]).to.deep.equal([["salvage-1.log"], []]);

    salvage = 2;
    await (await create(2)).close();
    await store.removeAllBut(3);
    expect([await saved(), nothing]).to.deep.equal([["salvage-1.log"], [2]]);

    salvage = 3;
    await (await create(3)).close();
    const damaged = await directory.open("hidden-3.log");
    await damaged.write(0, [filled(0xff)]);
    await damaged.close();
    await store.removeAllBut(4);
    expect([await saved(), nothing]).to.deep.equal([["salvage-1.log", "salvage-3.log"], [2]]);
  });

  it("goes back over a checkpoint that was announced and never became durable", async () => {
    const epoch = await create(1);
    await overwrite(epoch, disks[0], 0, 1);
    await overwrite(epoch, disks[0], 1, 1);
    const second = await create(2);
    await overwrite(second, disks[0], 1, 2);
    await overwrite(second, disks[0], 2, 2);
    const third = await create(3);
    await overwrite(third, disks[0], 2, 3);
    await overwrite(third, disks[0], 3, 3);
    directory.crash();
    const recovered = await store.recover(1);
    expect(await firstBytes(overlaysOf(recovered, 0).hidden)).to.deep.equal([7, 7, 7, 7, 7, 7, 7, 7]);
    expect(await directory.list()).to.deep.equal(["hidden-1.log", "spare.log"]);
    await recovered.close();
    directory.crash();
    const again = await store.recover(1);
    expect(await firstBytes(overlaysOf(again, 0).hidden)).to.deep.equal([7, 7, 7, 7, 7, 7, 7, 7]);
  });

  it("goes back over one with many images, or long ones, by a few syncs, and with all of them", async () => {
    const blocks = 3000;
    const large = Array.from({ length: 2 }, () => new MemoryDevice(blocks * BLOCK_BYTES));
    for (const disk of large) disk.fill(0, Buffer.alloc(blocks * BLOCK_BYTES, 7));
    const of = open(large);
    const first = await of.create(1, () => Promise.resolve());
    await overlaysOf(first, 0).hidden.keep([
      { offset: 2 * BLOCK_BYTES, lengthBytes: BLOCK_BYTES, data: filled(0xab) },
    ]);
    const second = await of.create(2, () => Promise.resolve());
    for (const [index, disk] of large.entries()) {
      const { hidden } = overlaysOf(second, index);
      for (let block = index; block < blocks; block += 2) {
        const offset = block * BLOCK_BYTES;
        const data = block % 3 === 0 ? null : Buffer.alloc(BLOCK_BYTES, block);
        hidden.stage({ offset, lengthBytes: BLOCK_BYTES, data });
      }
      await hidden.commit(false);
      disk.fill(0, Buffer.alloc(blocks * BLOCK_BYTES, 0xee));
    }
    directory.crash();
    const syncs = directory.count("sync");
    const recovered = await of.recover(1);
    expect(directory.count("sync") - syncs).to.be.below(10);
    for (const index of [0, 1]) {
      const expected = Buffer.alloc(blocks * BLOCK_BYTES, 0xee);
      for (let block = index; block < blocks; block += 2)
        expected.fill(block % 3 === 0 ? 0 : block % 256, block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
      // The earlier image is the older content.
      if (index === 0) expected.fill(0xab, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES);
      const shown = Buffer.alloc(expected.length);
      await overlaysOf(recovered, index).hidden.read(0, shown);
      expect(shown.equals(expected), `disk ${index}`).to.equal(true);
    }
  });

  it("has no checkpoint when an image of the later epoch was lost", async () => {
    await create(1);
    const second = await create(2);
    await second.breakCheckpoint();
    directory.crash();
    expect((await store.recover(1)).isBroken).to.equal(true);
    expect((await store.recover(1)).isBroken, "after another restart").to.equal(true);
  });

  it("gives back the room of images that count for nothing, of which a crash came first", async () => {
    const epoch = await create(1);
    for (let block = 0; block < 4; block++) await overwrite(epoch, disks[0], block, 1);
    await epoch.breakCheckpoint();
    directory.crash();
    const recovered = await store.recover(1);
    expect(recovered.undoBytes).to.equal(HEADER_BYTES);
    expect(directory.contents("hidden-1.log").length).to.equal(HEADER_BYTES);
    expect(recovered.lost).to.match(/^its before-images could not be kept/);
    const ends = await recovered.logEnds();
    await recovered.close();
    directory.crash();
    expect(directory.contents("hidden-1.log").length, "the cut was lost").to.be.above(HEADER_BYTES);
    expect((await store.recover(1, ends)).lost).to.match(/^its before-images could not be kept/);
  });

  it("takes the log that was prepared for an epoch, which nothing is created for then", async () => {
    await create(1);
    await store.prepare(2);
    await store.prepare(2);
    const created = directory.count("create");
    const epoch = await create(2);
    expect(directory.count("create")).to.equal(created);
    await overwrite(epoch, disks[0], 0, 1);
    directory.crash();
    expect(await firstBytes(overlaysOf(await store.recover(2), 0).hidden)).to.deep.equal(Array(8).fill(7));
  });

  it("leaves nothing of a log that was prepared in vain, nor minds one that a crash left", async () => {
    const epoch = await create(1);
    await overwrite(epoch, disks[0], 0, 1);
    await store.prepare(2);
    await store.prepare(3);
    expect((await directory.list()).sort()).to.deep.equal(["hidden-1.log", "hidden-3.log"]);
    await create(5);
    expect((await directory.list()).sort()).to.deep.equal(["hidden-1.log", "hidden-5.log"]);
    await store.prepare(6);
    directory.crash();
    store = open(disks);
    expect(await firstBytes(overlaysOf(await store.recover(1), 0).hidden)).to.deep.equal(Array(8).fill(7));
    expect(await directory.list()).to.deep.equal(["hidden-1.log", "spare.log"]);
    await store.prepare(2);
    await store.discardPrepared();
    expect(await directory.list()).to.deep.equal(["hidden-1.log"]);
  });

  it("makes the log of an epoch from that of one that is over, and finds none of its images", async () => {
    await overwrite(await create(1), disks[0], 0, 1);
    await create(2);
    await store.removeAllBut(2);
    const old = directory.contents("spare.log");
    expect(old.length, "an image and more").to.be.at.least(2 * BLOCK_BYTES);
    const created = directory.count("create");
    await create(3);
    expect(directory.count("create")).to.equal(created);
    expect((await directory.list()).sort()).to.deep.equal(["hidden-2.log", "hidden-3.log"]);
    expect(
      directory.contents("hidden-3.log").subarray(4096).equals(old.subarray(4096)),
      "left as it is",
    ).to.equal(true);
    directory.crash();
    const third = await store.recover(3);
    expect(third.undoBytes, "nothing in it").to.equal(4096);
    // The same image, where the old one was.
    await overwrite(third, disks[0], 1, 3);
    const whole = directory.contents("hidden-3.log");
    for (let at = 4096; at < whole.length; at += 512) {
      const torn = Buffer.concat([whole.subarray(0, at), old.subarray(at)]);
      directory.put("hidden-3.log", torn);
      const { overlays, undoBytes } = await store.recover(3);
      expect(overlays[0]?.hidden.mappedBytes, `torn at ${at}`).to.equal(undoBytes === 4096 ? 0 : BLOCK_BYTES);
    }
  });

  it("begins no epoch on a full file system, though a spare log would need no room", async () => {
    await create(1);
    await create(2);
    await store.removeAllBut(2);
    directory.bytesLeft = 1000;
    const error = await failureOf(create(3));
    expect(error.message).to.equal("/state has no space left for a checkpoint: make room");
    expect(await directory.list()).to.deep.equal(["hidden-2.log"]);
    directory.bytesLeft = Infinity;
    await create(3);
  });

  it("gives the spare log up for an epoch that there is no room for beside it", async () => {
    await create(1);
    await create(2);
    await store.removeAllBut(2);
    directory.freeBytes = async () => ((await directory.list()).includes("spare.log") ? 1000 : 1_000_000);
    await create(3);
    expect((await directory.list()).sort()).to.deep.equal(["hidden-2.log", "hidden-3.log"]);
  });

  it("makes a log anew when a crash cut off its making from a spare one", async () => {
    for (const bytes of [Buffer.alloc(0), Buffer.alloc(100, 1), Buffer.alloc(9000, 1)]) {
      directory.put("spare.log", bytes);
      await overwrite(await create(1), disks[0], 0, 1);
      directory.crash();
      expect(await firstBytes(overlaysOf(await store.recover(1), 0).hidden)).to.deep.equal(Array(8).fill(7));
      await store.removeAllBut(null);
      await disks[0].write(0, filled(7), 0);
    }
  });

  for (const kind of ["open", "write", "sync"] as const) {
    it(`makes a log anew, and removes the spare one and says why, when that can't be used: ${kind} fails`, async () => {
      await create(1);
      await create(2);
      await store.removeAllBut(2);
      directory.intercept = (operation) =>
        operation.kind === kind && operation.name === "spare.log"
          ? Promise.reject(new DeviceError("EIO", "a bad sector"))
          : undefined;
      const third = await create(3);
      expect((await directory.list()).sort()).to.deep.equal(["hidden-2.log", "hidden-3.log"]);
      expect(logged.map(({ level, msg, error }) => [level, msg, error])).to.deep.equal([
        [40, "spare log removed: it can't be written; a log is made anew", "a bad sector"],
      ]);
      await overwrite(third, disks[0], 0, 1);
      directory.crash();
      expect(await firstBytes(overlaysOf(await store.recover(3), 0).hidden)).to.deep.equal(Array(8).fill(7));
    });
  }

  it("makes no spare log of one that failed", async () => {
    const epoch = await create(1);
    directory.intercept = ({ kind }) =>
      kind === "sync" ? Promise.reject(new DeviceError("EIO", "a bad sector")) : undefined;
    expect(await outcome(overwrite(epoch, disks[0], 0, 1))).to.equal("EIO");
    directory.intercept = () => undefined;
    await create(2);
    await epoch.close();
    await store.removeAllBut(2);
    expect(await directory.list()).to.deep.equal(["hidden-2.log"]);
  });

  /** Epoch 2, with a spare log, on a file system that is full for as long as that is there. */
  async function fullWithSpare(): Promise<Epoch> {
    await create(1);
    const epoch = await create(2);
    await store.removeAllBut(2);
    directory.intercept = async ({ kind, name }) => {
      if (kind !== "write" || name === "spare.log") return;
      if ((await directory.list()).includes("spare.log")) throw new DeviceError("ENOSPC", "full");
    };
    return epoch;
  }

  it("gives up the spare log, and no image, when the file system is full", async () => {
    const epoch = await fullWithSpare();
    // Two at once: for the second one there is nothing left to give up.
    await Promise.all([overwrite(epoch, disks[0], 0, 1), overwrite(epoch, disks[0], 1, 1)]);
    await overwrite(epoch, disks[0], 2, 1);
    expect(await directory.list()).to.deep.equal(["hidden-2.log"]);
    expect(logged.map(({ level, msg }) => [level, msg])).to.deep.equal([
      [30, "spare log removed: the file system of the state directory is full"],
    ]);
    directory.crash();
    expect(await firstBytes(overlaysOf(await store.recover(2), 0).hidden)).to.deep.equal(Array(8).fill(7));
  });

  it("gives up the spare log, and no write to the view, when the file system is full", async () => {
    const { active } = overlaysOf(await fullWithSpare(), 0);
    await Promise.all([0, 1].map((block) => active.write(block * BLOCK_BYTES, filled(9), Flag.Fua)));
    directory.crash();
    const recovered = overlaysOf(await store.recover(2), 0).active;
    expect(await firstBytes(recovered)).to.deep.equal([9, 9, 7, 7, 7, 7, 7, 7]);
  });

  it("loses the image when the file system is full without a spare log", async () => {
    const epoch = await create(1);
    directory.intercept = ({ kind }) =>
      kind === "write" ? Promise.reject(new DeviceError("ENOSPC", "full")) : undefined;
    expect(await outcome(overwrite(epoch, disks[0], 0, 1))).to.equal("ENOSPC");
    directory.intercept = () => undefined;
    expect(await outcome(overwrite(epoch, disks[0], 1, 1)), "the log takes nothing more").to.equal("ENOSPC");
  });

  it("keeps no more than 512 MiB of a log that is over", async () => {
    await create(1);
    const cut: number[] = [];
    directory.truncate = (_name, lengthBytes) => {
      cut.push(lengthBytes);
      return Promise.resolve();
    };
    await create(2);
    await store.removeAllBut(2);
    expect(cut).to.deep.equal([512 * 1024 * 1024]);
  });

  it("removes what belongs to other epochs, and nothing else", async () => {
    await create(1);
    const second = await create(2);
    await overlaysOf(second, 0).active.write(0, filled(1), Flag.Fua);
    await create(12);
    await directory.replaceText("metadata.json", "{}");
    expect(await store.anyFile()).to.equal("hidden-1.log");
    await store.removeAllBut(2);
    expect((await directory.list()).sort()).to.deep.equal([
      "active-2-0.data",
      "active-2.log",
      "hidden-2.log",
      "metadata.json",
      "spare.log",
    ]);
    await store.removeAllBut(null);
    expect(await directory.list()).to.deep.equal(["metadata.json"]);
    expect(await store.anyFile()).to.equal(null);
  });

  for (const lengthBytes of [0, 100, 4096]) {
    it(`comes back although a crash cut off the making of a later log, at ${lengthBytes} bytes`, async () => {
      const epoch = await create(1);
      await overwrite(epoch, disks[0], 0, 1);
      directory.put("hidden-2.log", Buffer.alloc(lengthBytes));
      const recovered = await store.recover(1);
      expect(await firstBytes(overlaysOf(recovered, 0).hidden)).to.deep.equal([7, 7, 7, 7, 7, 7, 7, 7]);
      expect(recovered.isBroken).to.equal(false);
    });

    it(`comes back although a crash cut off the making of the active log, at ${lengthBytes} bytes`, async () => {
      await create(1);
      directory.put("active-1.log", Buffer.alloc(lengthBytes));
      directory.put("active-1-0.data", Buffer.alloc(SIZE_BYTES, 9));
      const recovered = await store.recover(1);
      const { active } = overlaysOf(recovered, 0);
      expect(await firstBytes(active)).to.deep.equal([7, 7, 7, 7, 7, 7, 7, 7]);
      await active.write(0, filled(3), Flag.Fua);
      await recovered.close();
      directory.crash();
      const again = await store.recover(1);
      expect(await firstBytes(overlaysOf(again, 0).active)).to.deep.equal([3, 7, 7, 7, 7, 7, 7, 7]);
    });
  }

  it("refuses a later log with records behind a header that went bad", async () => {
    await create(1);
    const second = await create(2);
    await overwrite(second, disks[0], 0, 1);
    const bytes = directory.contents("hidden-2.log");
    directory.put("hidden-2.log", bytes.fill(0, 0, 4096));
    expect(await outcome(store.recover(1))).to.equal("foreign");
  });

  it("refuses to come back without the log in force, or with a bad one", async () => {
    expect(await outcome(store.recover(1))).to.equal("missing");
    directory.put("hidden-1.log", Buffer.alloc(0));
    expect(await outcome(store.recover(1))).to.equal("damaged");
  });

  it("refuses a log that names what the disks don't have", async () => {
    const epoch = await create(1);
    await overlaysOf(epoch, 1).hidden.keep([
      { offset: 7 * BLOCK_BYTES, lengthBytes: BLOCK_BYTES, data: null },
    ]);
    const smaller = [disks[0], new MemoryDevice(SIZE_BYTES - 1)];
    const other = open(smaller);
    expect((await failureOf(other.recover(1))).message).to.equal(
      "hidden-1.log names bytes 28672 to 32768 of disk 1, which has fewer",
    );
    const fewer = open([disks[0]]);
    expect(await outcome(fewer.recover(1))).to.equal("damaged");
  });

  it("lets no write to the view be acknowledged before the epoch is in force", async () => {
    const inForce = new Deferred<void>();
    const epoch = await store.create(1, () => inForce.promise);
    const write = overlaysOf(epoch, 0).active.write(0, filled(1), Flag.None);
    expect(await isSettled(write)).to.equal(false);
    inForce.resolve();
    await write;
  });

  describe("on a file system that what clients write to the view would fill", () => {
    const MEBIBYTE = 1024 * 1024;
    const ENOUGH = MEBIBYTE + 3 * BLOCK_BYTES;
    const view = (epoch: Epoch, disk = 0): BlockDevice => overlaysOf(epoch, disk).active;
    let epoch: Epoch;

    /** As much as is there and not taken by files that begin like this. */
    function give(bytes: number, name: string): void {
      directory.freeBytes = async () => {
        const taken = (await directory.list()).filter((file) => file.startsWith(name));
        return taken.reduce((left, file) => left - directory.contents(file).length, bytes);
      };
    }

    beforeEach(async () => {
      epoch = await create(1);
    });

    it("refuses the last MiB to them, and makes the next epoch in it", async () => {
      give(ENOUGH, "active-1-");
      await view(epoch).write(0, filled(1), Flag.None);
      const error = await failureOf(view(epoch, 1).write(0, Buffer.alloc(2 * BLOCK_BYTES), Flag.None));
      expect(error).to.have.property("errno", "ENOSPC");
      expect(error.message).to.equal(
        "/state has no space left for what clients write to the view: its last MiB is the node's own; make room, or take a checkpoint, which drops what they wrote",
      );
      expect(await firstBytes(view(epoch))).to.deep.equal([1, 7, 7, 7, 7, 7, 7, 7]);
      expect(await firstBytes(view(epoch, 1))).to.deep.equal([7, 7, 7, 7, 7, 7, 7, 7]);
      await create(2);
    });

    it("takes, there, what needs no more room or gives some back, and refuses zeroes that need a record", async () => {
      await view(epoch).write(0, filled(1), Flag.None);
      await view(epoch).zero(BLOCK_BYTES, BLOCK_BYTES, Flag.None);
      directory.bytesLeft = MEBIBYTE;
      await view(epoch).write(0, filled(2), Flag.Fua);
      await view(epoch).zero(BLOCK_BYTES, BLOCK_BYTES, Flag.None);
      expect(await outcome(view(epoch).zero(2 * BLOCK_BYTES, BLOCK_BYTES, Flag.None))).to.equal("ENOSPC");
      expect(await outcome(view(epoch).flush())).to.equal("done");
      expect(await firstBytes(view(epoch))).to.deep.equal([2, 0, 7, 7, 7, 7, 7, 7]);
      await view(epoch).trim(0, BLOCK_BYTES, Flag.Fua);
      expect(await firstBytes(view(epoch))).to.deep.equal([0, 0, 7, 7, 7, 7, 7, 7]);
      expect(await outcome(view(epoch).write(0, filled(3), Flag.None)), "its room was given back").to.equal(
        "ENOSPC",
      );
    });

    it("counts what is being written to any disk", async () => {
      directory.bytesLeft = ENOUGH;
      const held = new Deferred<void>();
      directory.intercept = ({ kind, name }) =>
        kind === "write" && name.endsWith(".data") ? held.promise : undefined;
      const first = view(epoch).write(0, filled(1), Flag.None);
      expect(await outcome(view(epoch, 1).write(0, filled(1), Flag.None))).to.equal("ENOSPC");
      held.resolve();
      await first;
      expect(await outcome(view(epoch, 1).write(0, filled(1), Flag.None))).to.equal("done");
    });

    it("gives the spare log up for them", async () => {
      const second = await create(2);
      await store.removeAllBut(2);
      give(MEBIBYTE + 2 * BLOCK_BYTES, "spare");
      await view(second).write(0, filled(1), Flag.None);
      expect(await directory.list()).to.not.include("spare.log");
    });
  });

  it("can be closed after a write to the view has failed for want of space", async () => {
    const epoch = await create(1);
    directory.intercept = ({ kind }): Promise<void> | undefined =>
      kind === "create" ? Promise.reject(new DeviceError("ENOSPC", "full")) : undefined;
    const { active } = overlaysOf(epoch, 0);
    expect(await outcome(active.write(0, filled(1), Flag.None))).to.equal("ENOSPC");
    directory.intercept = (): undefined => undefined;
    expect(await outcome(active.write(0, filled(1), Flag.None))).to.equal("done");
    directory.intercept = ({ kind }): Promise<void> | undefined =>
      kind === "create" ? Promise.reject(new DeviceError("ENOSPC", "full")) : undefined;
    expect(await outcome(overlaysOf(epoch, 1).active.write(0, filled(1), Flag.None))).to.equal("ENOSPC");
    expect(await outcome(epoch.close())).to.equal("done");
  });
});
