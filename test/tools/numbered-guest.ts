/** A guest that numbers its writes and remembers which were acknowledged. */
import { open } from "node:fs/promises";

import type { NbdDevice } from "../../src/nbd/client/device.js";
import { type Random, SEED } from "./seed.js";

const BLOCK_BYTES = 4096;

export class NumberedGuest {
  readonly #random: Random;
  readonly #offsets: readonly number[];
  readonly #acknowledged = new Map<number, number>();
  readonly #issued = new Map<number, Set<number>>();
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
        const issued = this.#issued.get(offset) ?? new Set<number>();
        this.#issued.set(offset, issued.add(number));
        await device.write(offset, contentOf(offset, number), 0);
        this.#acknowledgements++;
        this.#acknowledged.set(offset, number);
        this.#issued.set(offset, new Set([number]));
        busy.delete(offset);
        await pace();
      }
    };
    const ends = await Promise.allSettled(Array.from({ length: depth }, worker));
    return ends.flatMap((end) => (end.status === "rejected" ? [end.reason as unknown] : []));
  }

  /** @throws if an acknowledged write is not there, or something that nobody wrote is */
  async check(path: string): Promise<void> {
    const file = await open(path, "r");
    try {
      const content = Buffer.alloc(BLOCK_BYTES);
      for (const [offset, numbers] of this.#issued) {
        await file.read(content, 0, BLOCK_BYTES, offset);
        const acknowledged = this.#acknowledged.get(offset);
        const candidates = [...numbers, ...(acknowledged === undefined ? [] : [acknowledged])];
        const isKnown = candidates.some((number) => content.equals(contentOf(offset, number)));
        const isEmpty = acknowledged === undefined && content.every((byte) => byte === 0);
        if (!isKnown && !isEmpty) throw new Error(`seed ${SEED}: block at ${offset} is not what was written`);
      }
    } finally {
      await file.close();
    }
  }
}

function contentOf(offset: number, number: number): Buffer {
  const content = Buffer.alloc(BLOCK_BYTES, number % 251);
  content.writeDoubleLE(offset, 0);
  content.writeDoubleLE(number, 8);
  return content;
}
