/** The parts of the fast path by themselves, in one process: `npm run bench -- --micro`. */
import { ExtentMap } from "../src/block/extent-map.js";
import { RangeLock } from "../src/block/range-lock.js";
import { OverlayLog } from "../src/meta/overlay-log.js";
import { openStateDirectory } from "../src/meta/state-directory.js";
import { type OptionSink, RequestReceiver, type RequestSink } from "../src/nbd/receiver.js";
import { Command } from "../src/nbd/wire/constants.js";
import { readRequestHeader, REQUEST_HEADER_BYTES, writeRequestHeader } from "../src/nbd/wire/request.js";
import { SIMPLE_REPLY_HEADER_BYTES, writeSimpleReplyHeader } from "../src/nbd/wire/simple-reply.js";
import { openDirtyMap } from "../test/tools/dirty-map.js";
import type { Lab } from "./lab.js";
import type { Table } from "./sample.js";
import { spreadOf } from "./statistics.js";

const BLOCK_BYTES = 4096;
const DISK_BYTES = 2 ** 31;
/** How often each is timed; the first does not count. */
const TIMINGS = 6;
const TIMING_MS = 100;
/** As many as a guest may have in flight. */
const BATCH = 32;
const EXTENTS = 100_000;

/** Does the operation this many times. */
type Work = (times: number) => void | Promise<void>;

interface Micro {
  readonly name: string;
  readonly work: Work;
  /** Operations in one time; 1 unless said. */
  readonly operations?: number;
}

export async function microTable(lab: Lab, say: (line: string) => void): Promise<Table> {
  const workspace = await lab.workspace();
  const lines: Table["lines"][number][] = [];
  const logs = await openStateDirectory(workspace.directory);
  const benchmarks: Micro[] = [...codec(), ...maps(), ...rangeLocks(), await dirtyMap()];
  for (const sync of [false, true]) benchmarks.push(...(await undoLog(logs, sync)));
  for (const { name, work, operations = 1 } of benchmarks) {
    say(name);
    const spread = spreadOf(await timings(work));
    if (spread === null) continue;
    lines.push([name, ...[spread.median, spread.minimum, spread.maximum].map((ns) => ns / operations)]);
  }
  await lab.discard(workspace);
  return {
    title: "Micro-benchmarks",
    remark: `Nanoseconds for each operation, in one process with nothing else to do; ${TIMINGS - 1} timings of ${TIMING_MS} ms.`,
    columns: ["operation", "median ns", "fastest", "slowest"],
    lines,
  };
}

/** Nanoseconds for one time, of each timing but the first. */
async function timings(work: Work): Promise<number[]> {
  const results: number[] = [];
  let times = 1;
  while (results.length < TIMINGS) {
    const startMs = performance.now();
    await work(times);
    const elapsedMs = performance.now() - startMs;
    if (elapsedMs < TIMING_MS / 2)
      times = Math.ceil(times * Math.min(10, TIMING_MS / Math.max(elapsedMs, 0.01)));
    else results.push((elapsedMs * 1e6) / times);
  }
  return results.slice(1);
}

/** Takes requests and keeps nothing. */
class CountingSink implements RequestSink, OptionSink {
  requests = 0;

  ready(): boolean {
    return true;
  }
  readyForPayload(): boolean {
    return true;
  }

  requestHeader(): boolean {
    return true;
  }
  payloadBuffer(lengthBytes: number): Buffer {
    return Buffer.allocUnsafe(lengthBytes);
  }
  request(): void {
    this.requests++;
  }
  clientFlags(): void {
    throw new Error("there is no handshake here");
  }
  optionHeader(): boolean {
    throw new Error("there is no handshake here");
  }
  option(): void {
    throw new Error("there is no handshake here");
  }
}

function codec(): Micro[] {
  const sink = new CountingSink();
  const receiver = new RequestReceiver(sink);
  receiver.enterTransmission(sink);
  const messageBytes = REQUEST_HEADER_BYTES + BLOCK_BYTES;
  const chunk = Buffer.alloc(BATCH * messageBytes);
  for (let index = 0; index < BATCH; index++) {
    writeRequestHeader(chunk, index * messageBytes, {
      flags: 0,
      type: Command.Write,
      cookieHigh: 0,
      cookieLow: index,
      offset: index * BLOCK_BYTES,
      lengthBytes: BLOCK_BYTES,
    });
  }
  const header = Buffer.alloc(REQUEST_HEADER_BYTES);
  const request = readRequestHeader(chunk, 0);
  const reply = Buffer.alloc(SIMPLE_REPLY_HEADER_BYTES);
  return [
    {
      name: `receive a 4 KiB write, ${BATCH} in a chunk`,
      operations: BATCH,
      work: repeat(() => receiver.push(chunk)),
    },
    { name: "decode a request header", work: repeat(() => readRequestHeader(chunk, 0)) },
    {
      name: "encode a request header",
      work: repeat(() => {
        writeRequestHeader(header, 0, request);
      }),
    },
    {
      name: "encode a simple reply",
      work: repeat(() => {
        writeSimpleReplyHeader(reply, 0, request, 0);
      }),
    },
  ];
}

function maps(): Micro[] {
  const blocks = DISK_BYTES / BLOCK_BYTES;
  const offset = (): number => Math.floor(Math.random() * blocks) * BLOCK_BYTES;
  const filled = (extents: number): ExtentMap => {
    const map = new ExtentMap();
    while (map.extentCount < extents) insert(map, offset());
    return map;
  };
  const [few, many] = [filled(100), filled(EXTENTS)];
  let growing = new ExtentMap();
  const ignore = (): undefined => undefined;
  const lookUp = (map: ExtentMap) => (): void => {
    const at = offset();
    map.visit(at, at + BLOCK_BYTES, ignore);
  };
  return [
    { name: "overlay: look up 4 KiB among 100 extents", work: repeat(lookUp(few)) },
    { name: `overlay: look up 4 KiB among ${EXTENTS} extents`, work: repeat(lookUp(many)) },
    {
      name: `overlay: insert 4 KiB, up to ${EXTENTS} extents`,
      work: repeat(() => {
        if (growing.extentCount >= EXTENTS) growing = new ExtentMap();
        insert(growing, offset());
      }),
    },
  ];
}

/** Targets that continue nothing, so that extents stay apart. */
function insert(map: ExtentMap, offset: number): void {
  map.set(offset, offset + BLOCK_BYTES, DISK_BYTES + 2 * offset);
}

function rangeLocks(): Micro[] {
  const lockBeside = (others: number): Work => {
    const lock = new RangeLock();
    for (let index = 1; index <= others; index++) {
      lock.tryLock(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES, "exclusive");
    }
    return repeat(() => lock.tryLock(0, BLOCK_BYTES, "exclusive")?.release());
  };
  return [0, BATCH].map((others) => ({
    name: `range lock: take and release beside ${others}`,
    work: lockBeside(others),
  }));
}

async function dirtyMap(): Promise<Micro> {
  const map = await openDirtyMap(DISK_BYTES);
  // Hot already: what is measured is the usual case, without a write of the file.
  await map.prepare(0, BLOCK_BYTES);
  return {
    name: "dirty map: a write to a hot extent",
    work: repeat(() => {
      void map.prepare(0, BLOCK_BYTES);
      map.acknowledged(0, BLOCK_BYTES);
      map.done(0, BLOCK_BYTES);
    }),
  };
}

async function undoLog(
  directory: Awaited<ReturnType<typeof openStateDirectory>>,
  sync: boolean,
): Promise<Micro[]> {
  const data = Buffer.alloc(BLOCK_BYTES, 1);
  const record = { disk: 0, kind: "data", offset: 0, lengthBytes: BLOCK_BYTES, data } as const;
  const how = sync ? "synced" : "not synced";
  return Promise.all(
    [1, BATCH].map(async (together): Promise<Micro> => {
      const log = await OverlayLog.create(directory, `micro-${how}-${together}`, { epoch: 1, sync });
      const requests = Array.from({ length: together }, () => [record]);
      return {
        name: `undo log: append 4 KiB, ${together} at once, ${how}`,
        operations: together,
        work: async (times) => {
          for (let time = 0; time < times; time++)
            await Promise.all(requests.map((records) => log.append(records)));
        },
      };
    }),
  );
}

function repeat(operation: () => unknown): Work {
  return (times) => {
    for (let time = 0; time < times; time++) operation();
  };
}
