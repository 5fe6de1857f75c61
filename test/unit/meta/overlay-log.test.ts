import { expect } from "chai";

import { Deferred } from "../../../src/deferred.js";
import { DeviceError } from "../../../src/errors.js";
import { OverlayLog } from "../../../src/meta/overlay-log.js";
import { HEADER_BYTES, type LogRecord } from "../../../src/meta/overlay-log-format.js";
import type { RecoveredRecord } from "../../../src/meta/overlay-log-recovery.js";
import { MemoryStateDirectory, StorageFault } from "../../tools/memory-state-directory.js";
import { failureOf, isSettled, outcome, turns } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";

const NAME = "log";
const OPTIONS = { epoch: 7, sync: true };
/** What an epoch number beyond 32 bits must survive, too. */
const LARGE = { epoch: 2 ** 40 + 5, sync: true };

function dataRecord(offset: number, data: Buffer, disk = 0): LogRecord {
  return { disk, kind: "data", offset, lengthBytes: data.length, data };
}

function markRecord(kind: "zero" | "mapped", offset: number, lengthBytes: number): LogRecord {
  return { disk: 3, kind, offset, lengthBytes, data: null };
}

/** What recovery reports, with the content read back. */
async function recoverAll(
  directory: MemoryStateDirectory,
  options = OPTIONS,
): Promise<{ log: OverlayLog; records: LogRecord[] }> {
  const found: RecoveredRecord[] = [];
  const log = await OverlayLog.recover(directory, NAME, options, (record) => found.push(record));
  const records: LogRecord[] = [];
  for (const { position, ...record } of found) {
    let data: Buffer | null = null;
    if (record.kind === "data") {
      data = Buffer.alloc(record.lengthBytes);
      await log.read(position, data);
    }
    records.push({ ...record, data });
  }
  return { log, records };
}

describe("overlay log", () => {
  let directory: MemoryStateDirectory;

  beforeEach(() => {
    directory = new MemoryStateDirectory();
  });

  it("gives back its records in order, of every kind, length and disk, and goes on after them", async () => {
    const random = new Random(SEED);
    const written: LogRecord[] = [
      dataRecord(2 ** 45, random.bytes(4096), 65535),
      markRecord("zero", 0, 2 ** 44),
      markRecord("mapped", 4096, 8192),
    ];
    for (const lengthBytes of [1, 7, 8, 9, 4095, 70000])
      written.push(dataRecord(0, random.bytes(lengthBytes)));
    const log = await OverlayLog.create(directory, NAME, LARGE);
    await log.append(written.slice(0, 4));
    for (const record of written.slice(4)) await log.append([record]);
    const { sizeBytes } = log;
    await log.close();

    const first = await recoverAll(directory, LARGE);
    expect(first.records).to.deep.equal(written);
    expect(first.log.sizeBytes).to.equal(sizeBytes);
    const more = dataRecord(1, Buffer.from("more"));
    await first.log.append([more]);
    await first.log.close();
    expect((await recoverAll(directory, LARGE)).records).to.deep.equal([...written, more]);
  });

  it("gives back a long log in reads of a MiB, not in one or two for each record", async () => {
    const random = new Random(SEED);
    const written: LogRecord[] = [];
    const log = await OverlayLog.create(directory, NAME, OPTIONS);
    // Of lengths that have records, and their headers, lie across the ends of those reads; one record is longer than a read.
    for (let number = 0; number < 600; number++) {
      const lengthBytes = number === 300 ? 1024 * 1024 + 1 : 1 + random.below(16_000);
      written.push(dataRecord(number * 2 ** 21, random.bytes(lengthBytes)), markRecord("zero", number, 4096));
    }
    for (let from = 0; from < written.length; from += 50) await log.append(written.slice(from, from + 50));
    await log.close();
    const { length } = directory.contents(NAME);
    const before = directory.count("read");
    const found: RecoveredRecord[] = [];
    const recovered = await OverlayLog.recover(directory, NAME, OPTIONS, (record) => found.push(record));
    // Each begins where the record begins that the one before had only a part of, and that is less than 64 KiB long.
    expect(directory.count("read") - before).to.be.at.most(Math.ceil(length / (1024 * 1024 - 65536)) + 4);
    await recovered.close();
    expect((await recoverAll(directory)).records).to.deep.equal(written);
  });

  it("says where the content of each record is", async () => {
    const log = await OverlayLog.create(directory, NAME, OPTIONS);
    const contents = ["one", "second", "the third"].map((text) => Buffer.from(text));
    const positions = (
      await Promise.all(contents.map((data, index) => log.append([dataRecord(index, data)])))
    ).flat();
    for (const [index, expected] of contents.entries()) {
      const read = Buffer.alloc(expected.length);
      await log.read(positions[index] ?? -1, read);
      expect(read.toString()).to.equal(expected.toString());
    }
  });

  it("writes and syncs once for all that came in during one write and sync", async () => {
    const log = await OverlayLog.create(directory, NAME, OPTIONS);
    const held = new Deferred<void>();
    const [syncs, writes] = [directory.count("sync"), directory.count("write")];
    directory.intercept = ({ kind }): Promise<void> | undefined =>
      kind === "sync" ? held.promise : undefined;
    const appends = [log.append([dataRecord(0, Buffer.from("first"))])];
    await turns();
    for (let index = 1; index <= 100; index++) {
      appends.push(log.append([dataRecord(index, Buffer.from(`${index}`)), markRecord("zero", index, 1)]));
    }
    await turns();
    expect(directory.count("sync") - syncs, "syncs while the first is held").to.equal(1);
    held.resolve();
    await Promise.all(appends);
    expect(directory.count("sync") - syncs).to.equal(2);
    expect(directory.count("write") - writes).to.equal(2);
    expect((await recoverAll(directory)).records).to.have.length(201);
  });

  it("resolves no append before the sync that makes it durable has ended", async () => {
    const log = await OverlayLog.create(directory, NAME, OPTIONS);
    const held = new Deferred<void>();
    directory.intercept = ({ kind }): Promise<void> | undefined =>
      kind === "sync" ? held.promise : undefined;
    const append = log.append([markRecord("zero", 0, 4096)]);
    expect(await isSettled(append)).to.equal(false);
    held.resolve();
    await append;
    directory.crash();
    expect((await recoverAll(directory)).records).to.deep.equal([markRecord("zero", 0, 4096)]);
  });

  it("can't tell where it ends once it is marked as broken: it may have been cut, and be as long as before after a power loss", async () => {
    const log = await OverlayLog.create(directory, NAME, OPTIONS);
    await log.append([dataRecord(0, Buffer.alloc(512, 1))]);
    expect(log.endBytes).to.equal(log.sizeBytes);
    await log.markBroken();
    expect(log.endBytes).to.equal(null);
  });

  it("has committed what was added only when it is durable, also where that is on its way already", async () => {
    const log = await OverlayLog.create(directory, NAME, OPTIONS);
    const sync = new Deferred<void>();
    directory.intercept = ({ kind }): Promise<void> | undefined =>
      kind === "sync" ? sync.promise : undefined;
    log.add(dataRecord(0, Buffer.alloc(512, 1)));
    const first = log.commit();
    await turns();
    const second = log.commit();
    await turns();
    expect(await Promise.all([first, second].map(isSettled))).to.deep.equal([false, false]);
    sync.resolve();
    await Promise.all([first, second]);
  });

  describe("of two long batches that are written side by side", () => {
    /** Each a batch of its own: as long as one gets. */
    const long = (byte: number): LogRecord => dataRecord(byte * 2 ** 24, Buffer.alloc(5 * 1024 * 1024, byte));
    let log: OverlayLog;
    /** The syncs, in the order of the batches. */
    let syncs: Deferred<void>[];

    beforeEach(async () => {
      log = await OverlayLog.create(directory, NAME, OPTIONS);
      syncs = [];
      directory.intercept = ({ kind }): Promise<void> | undefined => {
        if (kind !== "sync") return undefined;
        const sync = new Deferred<void>();
        syncs.push(sync);
        return sync.promise;
      };
    });

    it("the second is not resolved before the first, although it is durable", async () => {
      const appends = [1, 2, 3].map((byte) => log.append([long(byte)]));
      await turns();
      expect(syncs, "at a time").to.have.length(2);
      syncs[1]?.resolve();
      await turns();
      expect(await Promise.all(appends.map(isSettled))).to.deep.equal([false, false, false]);
      syncs[0]?.resolve();
      await Promise.all(appends.slice(0, 2));
      await turns();
      syncs[2]?.resolve();
      await Promise.all(appends);
      directory.intercept = (): undefined => undefined;
      expect((await recoverAll(directory)).records).to.deep.equal([long(1), long(2), long(3)]);
    });

    it("the second fails with the first; if a crash leaves only the second, it is part of a torn tail", async () => {
      const appends = [1, 2].map((byte) => outcome(log.append([long(byte)])));
      await turns();
      syncs[1]?.resolve();
      await turns();
      syncs[0]?.reject(new DeviceError("EIO", "injected"));
      expect(await Promise.all(appends)).to.deep.equal(["EIO", "EIO"]);
      directory.intercept = (): undefined => undefined;
      const left = directory.contents(NAME);
      left.fill(0, HEADER_BYTES + 512, HEADER_BYTES + 1024);
      directory.put(NAME, left);
      const recovered = await recoverAll(directory);
      expect(recovered.records).to.deep.equal([]);
      await recovered.log.append([long(3)]);
      await recovered.log.close();
      expect((await recoverAll(directory)).records).to.deep.equal([long(3)]);
    });
  });

  it("never syncs where told not to", async () => {
    const log = await OverlayLog.create(directory, NAME, { epoch: 7, sync: false });
    await log.append([markRecord("zero", 0, 4096)]);
    await log.markBroken();
    expect(directory.count("sync")).to.equal(0);
  });

  it("has made the records it recovers durable: what they guard is overwritten without another append", async () => {
    const log = await OverlayLog.create(directory, NAME, OPTIONS);
    // The process ends between the write and the sync: the page cache has the record, the disk does not.
    const ended = new Deferred<void>();
    directory.intercept = ({ kind }): Promise<void> | undefined =>
      kind === "sync" ? ended.promise : undefined;
    const lost = log.append([markRecord("zero", 0, 4096)]);
    await turns();
    directory.intercept = (): undefined => undefined;
    expect((await recoverAll(directory)).records).to.have.length(1);
    directory.crash();
    expect((await recoverAll(directory)).records, "after a power loss").to.have.length(1);
    ended.resolve();
    await lost;
  });

  for (const kind of ["write", "sync"] as const) {
    it(`takes nothing more after a failed ${kind}, not even what came in meanwhile`, async () => {
      const log = await OverlayLog.create(directory, NAME, OPTIONS);
      await log.append([markRecord("zero", 0, 4096)]);
      const held = new Deferred<void>();
      directory.intercept = (operation): Promise<void> | undefined =>
        operation.kind === kind ? held.promise : undefined;
      const failing = [1, 2, 3].map((index) => outcome(log.append([markRecord("zero", index * 4096, 4096)])));
      await turns();
      failing.push(outcome(log.append([markRecord("zero", 99, 4096)])));
      held.reject(new DeviceError("ENOSPC", "no space"));
      expect(await Promise.all(failing)).to.deep.equal(["ENOSPC", "ENOSPC", "ENOSPC", "ENOSPC"]);
      directory.intercept = (): undefined => undefined;
      const before = directory.log.length;
      expect((await failureOf(log.append([markRecord("zero", 5, 4096)]))).message).to.equal("no space");
      expect(directory.log.length, "calls after the failure").to.equal(before);
      await log.close();
      directory.crash();
      expect((await recoverAll(directory)).records).to.deep.equal([markRecord("zero", 0, 4096)]);
    });
  }

  describe("broken mark", () => {
    it("persists, through a crash too, and leaves the records", async () => {
      const log = await OverlayLog.create(directory, NAME, OPTIONS);
      await log.append([markRecord("zero", 0, 4096)]);
      expect(log.isBroken).to.equal(false);
      await log.markBroken();
      expect(log.isBroken).to.equal(true);
      await log.append([markRecord("zero", 8192, 4096)]);
      directory.crash();
      const recovered = await recoverAll(directory);
      expect(recovered.log.isBroken).to.equal(true);
      expect(recovered.records).to.have.length(2);
    });

    it("counts when only one byte of it was written", async () => {
      await OverlayLog.create(directory, NAME, OPTIONS);
      const bytes = directory.contents(NAME);
      const marked = Buffer.from(bytes);
      const log = (await recoverAll(directory)).log;
      await log.markBroken();
      const changed = directory.contents(NAME);
      const positions = [...bytes.keys()].filter((at) => bytes[at] !== changed[at]);
      expect(positions.length).to.be.greaterThan(0);
      for (const at of positions) {
        bytes.copy(marked);
        marked[at] = changed[at] ?? 0;
        directory.put(NAME, marked);
        expect((await recoverAll(directory)).log.isBroken, `byte ${at}`).to.equal(true);
      }
    });

    it("can be set on a full file system, and after a failed append", async () => {
      const log = await OverlayLog.create(directory, NAME, OPTIONS);
      directory.intercept = ({ kind }): Promise<void> | undefined =>
        kind === "write" ? Promise.reject(new DeviceError("ENOSPC", "no space")) : undefined;
      expect(await outcome(log.append([dataRecord(0, Buffer.alloc(4096, 1))]))).to.equal("ENOSPC");
      directory.intercept = (): undefined => undefined;
      await log.markBroken();
      expect(log.sizeBytes).to.be.at.least(HEADER_BYTES);
      directory.crash();
      expect((await recoverAll(directory)).log.isBroken).to.equal(true);
    });

    it("can be set after a failed sync, though the failed handle never syncs again", async () => {
      const log = await OverlayLog.create(directory, NAME, OPTIONS);
      let isReopened = false;
      directory.intercept = ({ kind }): Promise<void> | undefined => {
        if (kind === "open") isReopened = true;
        return kind === "sync" && !isReopened ? Promise.reject(new DeviceError("EIO", "lost")) : undefined;
      };
      expect(await outcome(log.append([markRecord("zero", 0, 4096)]))).to.equal("EIO");
      await log.markBroken();
      expect(log.isBroken).to.equal(true);
      directory.crash();
      expect((await recoverAll(directory)).log.isBroken).to.equal(true);
    });

    it("does not say that it is set when it could not be made durable", async () => {
      const log = await OverlayLog.create(directory, NAME, OPTIONS);
      directory.intercept = ({ kind }): Promise<void> | undefined =>
        kind === "sync" ? Promise.reject(new DeviceError("EIO", "lost")) : undefined;
      expect(await outcome(log.markBroken())).to.equal("EIO");
      expect(log.isBroken).to.equal(false);
    });

    it("is durable once a restart has seen it, though it was left in the page cache alone by a failed sync", async () => {
      const log = await OverlayLog.create(directory, NAME, OPTIONS);
      directory.intercept = ({ kind }): Promise<void> | undefined =>
        kind === "sync" ? Promise.reject(new StorageFault("EIO", "lost")) : undefined;
      expect(await outcome(log.markBroken())).to.equal("EIO");
      directory.intercept = (): undefined => undefined;
      expect((await recoverAll(directory)).log.isBroken).to.equal(true);
      directory.crash();
      expect((await recoverAll(directory)).log.isBroken).to.equal(true);
    });
  });
});
