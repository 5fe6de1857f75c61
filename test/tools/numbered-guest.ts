/** A guest that numbers its writes and remembers which were acknowledged, and which were flushed. */
import { open } from "node:fs/promises";

import type { NbdDevice } from "../../src/nbd/client/device.js";
import { type Random, SEED } from "./seed.js";

const BLOCK_BYTES = 4096;
/** What a disk writes whole or not at all. */
const SECTOR_BYTES = 512;

/** What a block may hold: what the write of that number brought, or this. */
type Version = number | Buffer;
const EMPTY = Buffer.alloc(BLOCK_BYTES);

export class NumberedGuest {
  readonly #random: Random;
  readonly #offsets: readonly number[];
  readonly #acknowledged = new Map<number, Version>();
  /** Since then. */
  readonly #issued = new Map<number, Version[]>();
  /** Acknowledged before a flush that has succeeded since. */
  readonly #flushed = new Map<number, Version>();
  /** Issued since then. */
  readonly #unflushed = new Map<number, Version[]>();
  #number = 0;
  #acknowledgements = 0;

  /** @param places where it writes to: `lengthBytes` from each of them */
  constructor(random: Random, places: readonly number[], lengthBytes: number) {
    this.#random = random;
    this.#offsets = places.flatMap((place) =>
      Array.from({ length: lengthBytes / BLOCK_BYTES }, (_, block) => place + block * BLOCK_BYTES),
    );
  }

  /** Blocks of which a write was acknowledged. */
  get acknowledgedBlocks(): number {
    return this.#acknowledged.size;
  }

  /** Writes that were acknowledged, each counted. */
  get acknowledgements(): number {
    return this.#acknowledgements;
  }

  /**
   * Writes with `depth` requests in flight until the connection ends or `isOver`.
   * @param pace awaited between two writes of each
   * @returns the errors that writes ended with
   */
  async write(
    device: NbdDevice,
    depth: number,
    isOver: () => boolean,
    pace: () => Promise<void> = () => Promise.resolve(),
  ): Promise<unknown[]> {
    const busy = new Set<number>();
    const worker = async (): Promise<void> => {
      while (!isOver()) {
        const offset = this.#random.oneOf(this.#offsets);
        if (busy.has(offset)) continue;
        busy.add(offset);
        const number = ++this.#number;
        for (const versions of [this.#issued, this.#unflushed]) {
          const known = versions.get(offset);
          if (known === undefined) versions.set(offset, [number]);
          else known.push(number);
        }
        await device.write(offset, contentOf(offset, number), 0);
        this.#acknowledgements++;
        this.#acknowledged.set(offset, number);
        this.#issued.delete(offset);
        busy.delete(offset);
        await pace();
      }
    };
    const ends = await Promise.allSettled(Array.from({ length: depth }, worker));
    return ends.flatMap((end) => (end.status === "rejected" ? [end.reason as unknown] : []));
  }

  async flush(device: NbdDevice): Promise<void> {
    const covered = [...this.#unflushed.keys()].flatMap((offset): [number, Version][] => {
      const version = this.#acknowledged.get(offset);
      return version === undefined ? [] : [[offset, version]];
    });
    await device.flush();
    for (const [offset, version] of covered) {
      this.#flushed.set(offset, version);
      const versions = this.#unflushed.get(offset) ?? [];
      const later = versions.slice(versions.indexOf(version) + 1);
      if (later.length > 0) this.#unflushed.set(offset, later);
      else this.#unflushed.delete(offset);
    }
  }

  /** @throws if an acknowledged write is not there, or something that nobody wrote is */
  async check(path: string): Promise<void> {
    await forEachBlock(path, this.#offsets, (offset, content) => {
      const certain = this.#acknowledged.get(offset) ?? EMPTY;
      const possible = [certain, ...(this.#issued.get(offset) ?? [])];
      if (!possible.some((version) => content.equals(contentOf(offset, version)))) throw wrong(offset);
    });
  }

  /**
   * After a power loss, which may have cost what was not flushed, sector by sector.
   * @throws if a flushed write is not there, or something that nobody wrote is
   */
  async checkFlushed(path: string): Promise<void> {
    await forEachBlock(path, this.#offsets, (offset, content) => {
      const certain = this.#flushed.get(offset) ?? EMPTY;
      const possible = [certain, ...(this.#unflushed.get(offset) ?? [])].map((version) =>
        contentOf(offset, version),
      );
      for (let at = 0; at < BLOCK_BYTES; at += SECTOR_BYTES) {
        const end = at + SECTOR_BYTES;
        if (!possible.some((other) => content.compare(other, at, end, at, end) === 0))
          throw wrong(offset + at);
      }
    });
  }

  /** Goes on with what is there. */
  async adopt(path: string): Promise<void> {
    await forEachBlock(path, this.#offsets, (offset, content) => {
      const found = Buffer.from(content);
      this.#acknowledged.set(offset, found);
      this.#flushed.set(offset, found);
    });
    this.#issued.clear();
    this.#unflushed.clear();
  }
}

async function forEachBlock(
  path: string,
  offsets: Iterable<number>,
  visit: (offset: number, content: Buffer) => void,
): Promise<void> {
  const file = await open(path, "r");
  try {
    const content = Buffer.alloc(BLOCK_BYTES);
    for (const offset of offsets) {
      await file.read(content, 0, BLOCK_BYTES, offset);
      visit(offset, content);
    }
  } finally {
    await file.close();
  }
}

function wrong(offset: number): Error {
  return new Error(`seed ${SEED}: what is at ${offset} was not written`);
}

function contentOf(offset: number, version: Version): Buffer {
  if (typeof version !== "number") return version;
  const content = Buffer.alloc(BLOCK_BYTES, version % 251);
  content.writeDoubleLE(offset, 0);
  content.writeDoubleLE(version, 8);
  return content;
}
