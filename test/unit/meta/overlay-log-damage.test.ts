/** Logs that were cut off, damaged or replaced: each byte of them, one at a time. */
import { expect } from "chai";

import { MetadataError } from "../../../src/errors.js";
import { OverlayLog } from "../../../src/meta/overlay-log.js";
import {
  HEADER_BYTES,
  type LogRecord,
  PAGE_BYTES,
  RECORD_HEADER_BYTES,
} from "../../../src/meta/overlay-log-format.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";
import { failureOf, outcome } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";

const NAME = "log";
const OPTIONS = { epoch: 7, sync: true };

function zeroAt(offset: number): LogRecord {
  return { disk: 0, kind: "zero", offset, lengthBytes: 512, data: null };
}

function dataAt(offset: number, data: Buffer): LogRecord {
  return { disk: 1, kind: "data", offset, lengthBytes: data.length, data };
}

/** Offsets of the records that recovery reports; records are told apart by them. */
async function recovered(directory: MemoryStateDirectory): Promise<number[]> {
  const offsets: number[] = [];
  const log = await OverlayLog.recover(directory, NAME, OPTIONS, ({ offset }) => offsets.push(offset));
  await log.close();
  return offsets;
}

/** "damaged", or the offsets that were recovered. */
async function verdict(directory: MemoryStateDirectory): Promise<string | number[]> {
  try {
    return await recovered(directory);
  } catch (error) {
    if (error instanceof MetadataError) return error.code;
    throw error;
  }
}

/** A log of three batches, of which the last one counts as not synced yet. */
async function threeBatches(): Promise<{ directory: MemoryStateDirectory; ends: number[] }> {
  const directory = new MemoryStateDirectory();
  const random = new Random(SEED);
  const log = await OverlayLog.create(directory, NAME, OPTIONS);
  const ends = [HEADER_BYTES];
  for (const batch of [
    [dataAt(0, random.bytes(37)), zeroAt(1)],
    [zeroAt(2), dataAt(3, random.bytes(64))],
    [dataAt(4, random.bytes(50)), zeroAt(5)],
  ]) {
    await log.append(batch);
    ends.push(log.sizeBytes);
  }
  await log.close();
  return { directory, ends };
}

const ALL = [0, 1, 2, 3, 4, 5];

describe("overlay log that was damaged", () => {
  it("gives a prefix of its records wherever it was cut off", async () => {
    const { directory } = await threeBatches();
    const whole = directory.contents(NAME);
    const lengths = new Set<number>();
    for (let lengthBytes = HEADER_BYTES; lengthBytes <= whole.length; lengthBytes++) {
      directory.put(NAME, whole.subarray(0, lengthBytes));
      const offsets = await recovered(directory);
      expect(offsets, `cut at ${lengthBytes}`).to.deep.equal(ALL.slice(0, offsets.length));
      lengths.add(offsets.length);
    }
    expect([...lengths]).to.deep.equal([0, 1, 2, 3, 4, 5, 6]);
  });

  it("ends before long content that was cut off", async () => {
    const directory = new MemoryStateDirectory();
    const log = await OverlayLog.create(directory, NAME, OPTIONS);
    await log.append([zeroAt(0)]);
    await log.append([dataAt(1, Buffer.alloc(2 * 1024 * 1024, 1))]);
    await log.close();
    directory.put(NAME, directory.contents(NAME).subarray(0, -1024 * 1024));
    expect(await recovered(directory)).to.deep.equal([0]);
  });

  it("gives a prefix of its records wherever the rest of it was lost and reads as zeroes", async () => {
    const { directory, ends } = await threeBatches();
    const whole = directory.contents(NAME);
    // What was synced stays: only the last batch may be torn, at any byte.
    for (let at = ends[2] ?? 0; at <= whole.length; at++) {
      const torn = Buffer.from(whole);
      torn.fill(0, at);
      directory.put(NAME, torn);
      const offsets = await recovered(directory);
      expect(offsets.length, `zeroes from ${at}`).to.be.within(4, 6);
      expect(offsets).to.deep.equal(ALL.slice(0, offsets.length));
    }
  });

  it("refuses to be used after a byte went bad in front of records that were appended later", async () => {
    const { directory, ends } = await threeBatches();
    const whole = directory.contents(NAME);
    let intact = 0;
    for (let at = HEADER_BYTES; at < (ends[2] ?? 0); at++) {
      const bad = Buffer.from(whole);
      bad[at] = (bad[at] ?? 0) ^ 0x10;
      directory.put(NAME, bad);
      const found = await verdict(directory);
      // Nobody reads the padding behind a record's content: then nothing is lost either.
      if (typeof found === "string") expect(found, `byte ${at}`).to.equal("damaged");
      else {
        expect(found, `byte ${at}`).to.deep.equal(ALL);
        intact++;
      }
    }
    // 27 behind the content of 37, and twice what three headers and 64 bytes of content leave of a page.
    expect(intact, "bytes of padding").to.equal(27 + 2 * (4096 - 4 * 64));
  });

  it("takes a bad byte in what was appended last for a torn tail", async () => {
    const { directory, ends } = await threeBatches();
    const whole = directory.contents(NAME);
    for (let at = ends[2] ?? 0; at < whole.length; at++) {
      const bad = Buffer.from(whole);
      bad[at] = (bad[at] ?? 0) ^ 0x01;
      directory.put(NAME, bad);
      const offsets = await recovered(directory);
      expect(offsets.length, `byte ${at}`).to.be.within(4, 6);
      expect(offsets).to.deep.equal(ALL.slice(0, offsets.length));
    }
  });

  it("finds damage far in front of the records that prove it", async () => {
    const directory = new MemoryStateDirectory();
    const log = await OverlayLog.create(directory, NAME, OPTIONS);
    for (let offset = 0; offset < 4; offset++)
      await log.append([dataAt(offset, Buffer.alloc(700_001, 0xab))]);
    await log.close();
    const bad = directory.contents(NAME);
    bad[HEADER_BYTES + 100] = 0;
    directory.put(NAME, bad);
    expect(await verdict(directory)).to.equal("damaged");
  });

  it("does not take a record of a torn batch again after another was appended in its place", async () => {
    const directory = new MemoryStateDirectory();
    const log = await OverlayLog.create(directory, NAME, OPTIONS);
    // A page each: what is left of the second one begins where the batch of a later one ends.
    const page = Buffer.alloc(PAGE_BYTES - RECORD_HEADER_BYTES, 1);
    await log.append([dataAt(0, page), dataAt(1, page)]);
    await log.close();
    const torn = directory.contents(NAME);
    torn[HEADER_BYTES] = 0xff;
    directory.put(NAME, torn);
    const offsets: number[] = [];
    const again = await OverlayLog.recover(directory, NAME, OPTIONS, ({ offset }) => offsets.push(offset));
    expect(offsets).to.deep.equal([]);
    await again.append([dataAt(40, page)]);
    await again.close();
    expect(await recovered(directory)).to.deep.equal([40]);
  });

  it("does not take records of an older log whose file it reuses", async () => {
    const { directory } = await threeBatches();
    const old = directory.contents(NAME);
    const log = await OverlayLog.create(directory, NAME, OPTIONS);
    await log.append([zeroAt(70)]);
    await log.close();
    const young = directory.contents(NAME);
    const reused = Buffer.from(old);
    young.copy(reused);
    directory.put(NAME, reused);
    expect(await recovered(directory)).to.deep.equal([70]);
  });

  it("does not take a record that lies where it was not written", async () => {
    const { directory } = await threeBatches();
    const whole = directory.contents(NAME);
    const doubled = Buffer.concat([whole, whole.subarray(HEADER_BYTES)]);
    directory.put(NAME, doubled);
    expect(await recovered(directory)).to.deep.equal(ALL);
  });

  describe("in its header", () => {
    it("is damaged when shorter than it", async () => {
      const { directory } = await threeBatches();
      const whole = directory.contents(NAME);
      for (const lengthBytes of [0, 1, 40, HEADER_BYTES - 1]) {
        directory.put(NAME, whole.subarray(0, lengthBytes));
        expect(await verdict(directory), `${lengthBytes} bytes`).to.equal("damaged");
      }
    });

    it("refuses a bad byte in each field that counts", async () => {
      const { directory } = await threeBatches();
      const whole = directory.contents(NAME);
      for (let at = 0; at < 44; at++) {
        const bad = Buffer.from(whole);
        bad[at] = (bad[at] ?? 0) ^ 0x80;
        directory.put(NAME, bad);
        const expected = at < 8 ? "foreign" : at < 12 ? "version" : "damaged";
        expect(await verdict(directory), `byte ${at}`).to.equal(expected);
      }
    });

    it("of a format of before says so, and what to do", async () => {
      const { directory } = await threeBatches();
      const old = directory.contents(NAME);
      old.writeUInt32BE(1, 8);
      directory.put(NAME, old);
      expect((await failureOf(recovered(directory))).message).to.equal(
        "/state/log has format version 1; this program reads 2: start the one that wrote it, or remove the directory, which costs a full copy",
      );
    });

    it("names the file and what is wrong with it", async () => {
      const { directory } = await threeBatches();
      const refusal = (options: { epoch: number; sync: boolean }): Promise<string> =>
        OverlayLog.recover(directory, NAME, options, () => undefined).then(
          () => "none",
          (error: unknown) => String(error),
        );
      expect(await refusal({ epoch: 8, sync: true })).to.equal(
        "MetadataError: /state/log is damaged: it is of epoch 7, not of epoch 8 as metadata.json says",
      );
      directory.put(NAME, Buffer.alloc(HEADER_BYTES, "something else"));
      expect(await refusal(OPTIONS)).to.equal(
        "MetadataError: /state/log is not an overlay log of nbd-replication",
      );
      expect(await outcome(OverlayLog.recover(directory, "other", OPTIONS, () => undefined))).to.equal(
        "missing",
      );
    });
  });
});
