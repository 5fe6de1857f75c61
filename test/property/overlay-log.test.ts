/**
 * Random lives of overlay logs, one made from the other, each cut off by a power loss that tears what was under way: whatever
 * was acknowledged is found again, in order, and of everything else at most what comes right behind it.
 */
import fc from "fast-check";
import { pino } from "pino";

import { payloadBuffers } from "../../src/block/buffer-pool.js";
import { OverlayLog } from "../../src/meta/overlay-log.js";
import { type LogRecord, RECORD_HEADER_BYTES } from "../../src/meta/overlay-log-format.js";
import type { RecoveredRecord } from "../../src/meta/overlay-log-recovery.js";
import { SpareLog } from "../../src/replication/secondary/spare-log.js";
import { MemoryStateDirectory } from "../tools/memory-state-directory.js";
import { turns } from "../tools/outcome.js";
import { Random } from "../tools/seed.js";
import { PROPERTY_TIMEOUT_MS, propertyOptions } from "./options.js";

const NAME = "log";
const MEBIBYTE = 1024 * 1024;
/** Short content, such as is copied, such as is lent, and so much that two batches are written at a time. */
const LENGTHS = [1, 63, 64, 512, 4096, 5000, 12_288, 65_536, 69_632, 70_000, 262_144, MEBIBYTE] as const;

interface Life {
  /** Of the records, one append() each; 0: a marker. */
  readonly lengths: readonly number[];
  /** Of a disk: what it writes whole. */
  readonly sectorBytes: number;
  /** How many writes and syncs of the log may be done before the power is lost. */
  readonly calls: number;
  /** Whether this life's log is over then, and the next life's is made from it. */
  readonly isLast: boolean;
}

/** A record whose content is told by its number, which is its offset. */
interface Appended {
  readonly offset: number;
  readonly lengthBytes: number;
  isAcknowledged: boolean;
}

const mixed = fc.array(fc.constantFrom(0, ...LENGTHS), { maxLength: 14 });
/** Records of a page each: what is left of a torn batch lies just where the records of later ones may end. */
const pages = fc.array(fc.constant(4096 - RECORD_HEADER_BYTES), { maxLength: 4 });
/** Batches so long that two of them are written at a time. */
const long = fc.array(fc.constantFrom(0, 3 * MEBIBYTE, 5 * MEBIBYTE), { maxLength: 5 });

const life = fc.record({
  lengths: fc.oneof(
    { weight: 4, arbitrary: mixed },
    { weight: 4, arbitrary: pages },
    { weight: 1, arbitrary: long },
  ),
  sectorBytes: fc.constantFrom(512, 4096),
  calls: fc.nat({ max: 12 }),
  isLast: fc.boolean(),
});

describe("property: an overlay log", function () {
  this.timeout(PROPERTY_TIMEOUT_MS);

  it("has all that was acknowledged, and a part of the rest, after each of many power losses", () =>
    fc.assert(
      fc.asyncProperty(fc.array(life, { minLength: 1, maxLength: 8 }), fc.nat(), run),
      propertyOptions(60),
    ));
});

async function run(lives: readonly Life[], seed: number): Promise<void> {
  const random = new Random(seed);
  const directory = new MemoryStateDirectory();
  const spare = new SpareLog(directory, pino({ level: "silent" }));
  let epoch = 1;
  let expected: Appended[] = [];
  let next = 0;
  let isMade = false;
  for (const { lengths, sectorBytes, calls, isLast } of lives) {
    const options = { epoch, sync: true };
    let log: OverlayLog;
    if (isMade) {
      const found = await recover(directory, epoch);
      expected = checked(found.records, expected);
      ({ log } = found);
    } else {
      log = await OverlayLog.create(directory, NAME, { ...options, spare });
      expected = [];
      isMade = true;
    }
    let left = calls;
    directory.intercept = ({ kind }) => {
      if (kind !== "write" && kind !== "sync") return undefined;
      left--;
      // The last ones overtake each other: of two batches at a time the later one may be the one that is done.
      if (left < 0 || (left < 4 && random.below(2) === 0)) return new Promise(() => undefined);
      return random.below(2) === 0 ? undefined : turns(random.below(4));
    };
    for (const lengthBytes of lengths) {
      const record: Appended = { offset: next++, lengthBytes, isAcknowledged: false };
      expected.push(record);
      append(log, record, random.below(4) === 0);
      if (random.below(3) === 0) await turns(random.below(5));
    }
    log.hurry();
    await turns(100);
    directory.intercept = () => undefined;
    const oneIn = random.oneOf([2, 16]);
    directory.crash(() => random.below(oneIn) !== 0, sectorBytes);
    if (isLast) {
      const found = await recover(directory, epoch);
      checked(found.records, expected);
      await found.log.close();
      await spare.keep(NAME);
      isMade = false;
      // The same number again: after a crash an epoch that never came to be is begun anew.
      epoch += random.below(2);
    }
  }
}

/** Its buffer is somebody else's as soon as it is acknowledged. */
function append(log: OverlayLog, appended: Appended, patient: boolean): void {
  const { offset, lengthBytes } = appended;
  const whole = payloadBuffers.take(Math.max(1, lengthBytes));
  const data = lengthBytes === 0 ? null : whole.subarray(0, lengthBytes);
  data?.fill(byteOf(offset));
  const record: LogRecord = { disk: 0, kind: data === null ? "zero" : "data", offset, lengthBytes, data };
  void log.append([record], patient).then(() => {
    appended.isAcknowledged = true;
    whole.fill(0xff);
    payloadBuffers.give(whole);
  });
}

async function recover(
  directory: MemoryStateDirectory,
  epoch: number,
): Promise<{ log: OverlayLog; records: RecoveredRecord[] }> {
  const records: RecoveredRecord[] = [];
  const options = { epoch, sync: true };
  const log = await OverlayLog.recover(directory, NAME, options, (record) => records.push(record));
  for (const { kind, offset, lengthBytes, position } of records) {
    if (kind !== "data") continue;
    const content = Buffer.alloc(lengthBytes);
    await log.read(position, content);
    if (!content.equals(Buffer.alloc(lengthBytes, byteOf(offset))))
      throw new Error(`record ${offset} has other content`);
  }
  return { log, records };
}

/** @returns what there is from now on @throws Error if it is not the beginning of what was appended, or lacks what was acknowledged */
function checked(records: readonly RecoveredRecord[], expected: readonly Appended[]): Appended[] {
  for (const [index, { offset, lengthBytes }] of records.entries()) {
    const appended = expected[index];
    if (appended?.offset !== offset || appended.lengthBytes !== lengthBytes) {
      throw new Error(
        `record ${index} is ${offset}, of ${lengthBytes} bytes; it was ${String(appended?.offset)}`,
      );
    }
  }
  const lost = expected.slice(records.length).find(({ isAcknowledged }) => isAcknowledged);
  if (lost !== undefined) throw new Error(`record ${lost.offset} was acknowledged and is lost`);
  return expected.slice(0, records.length).map((record) => ({ ...record, isAcknowledged: true }));
}

function byteOf(offset: number): number {
  return (offset * 37 + 1) % 251;
}
