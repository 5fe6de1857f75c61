/**
 * Nodes killed at random under load, again and again: what a guest was told is there, the disks are the same, and
 * only what was written to lately travels again.
 */
import { expect } from "chai";
import { open } from "node:fs/promises";

import type { NbdDevice } from "../../src/nbd/client/device.js";
import { connectNbd } from "../../src/nbd/client/connect.js";
import { parseNbdUri } from "../../src/nbd/uri.js";
import { expectSameContent } from "../tools/disk-files.js";
import { MEBIBYTE, type Pair, startPair } from "../tools/pair.js";
import { Random, SEED } from "../tools/seed.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 512 * MEBIBYTE;
const BLOCK_BYTES = 4096;
/** Blocks that the guest writes to: two places of the disk, 8 MiB each. */
const PLACES = [16 * MEBIBYTE, 400 * MEBIBYTE];
const BLOCKS_PER_PLACE = (8 * MEBIBYTE) / BLOCK_BYTES;
const ROUNDS = 4;
/** Extents of 4 MiB that the guest writes to. */
const HOT_BYTES = PLACES.length * 8 * MEBIBYTE;

/** A guest that numbers its writes and remembers which were acknowledged. */
class Guest {
  readonly #random: Random;
  readonly #acknowledged = new Map<number, number>();
  readonly #issued = new Map<number, Set<number>>();
  #number = 0;

  constructor(random: Random) {
    this.#random = random;
  }

  get acknowledgedWrites(): number {
    return this.#acknowledged.size;
  }

  /** Writes with `depth` requests in flight until the connection ends or `isOver`. */
  async write(device: NbdDevice, depth: number, isOver: () => boolean): Promise<void> {
    const busy = new Set<number>();
    const worker = async (): Promise<void> => {
      while (!isOver()) {
        const offset = this.#offset();
        if (busy.has(offset)) continue;
        busy.add(offset);
        const number = ++this.#number;
        const issued = this.#issued.get(offset) ?? new Set<number>();
        this.#issued.set(offset, issued.add(number));
        await device.write(offset, contentOf(offset, number), 0);
        this.#acknowledged.set(offset, number);
        this.#issued.set(offset, new Set([number]));
        busy.delete(offset);
      }
    };
    await Promise.allSettled(Array.from({ length: depth }, worker));
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

  #offset(): number {
    return this.#random.oneOf(PLACES) + this.#random.below(BLOCKS_PER_PLACE) * BLOCK_BYTES;
  }
}

function contentOf(offset: number, number: number): Buffer {
  const content = Buffer.alloc(BLOCK_BYTES, number % 251);
  content.writeDoubleLE(offset, 0);
  content.writeDoubleLE(number, 8);
  return content;
}

describe("nodes that are killed at random under load", () => {
  const workspace = useWorkspace();

  async function resyncedBytes(pair: Pair): Promise<number> {
    const { disks } = await pair.primary.status();
    return disks[0]?.primary?.bytesResynced ?? Number.NaN;
  }

  for (const ackMode of ["async", "memsync", "sync"] as const) {
    it(`ack mode ${ackMode}: nothing that was acknowledged is lost, the disks are the same, only hot extents are copied`, async () => {
      const random = new Random(SEED);
      const guest = new Guest(random);
      const pair = await startPair(workspace, {
        sizeBytes: SIZE_BYTES,
        primary: ["--ack-mode", ackMode, "--checkpoint-interval", "50ms"],
      });
      let copied = 0;
      for (let round = 0; round < ROUNDS; round++) {
        const device = await connectNbd(parseNbdUri(pair.primaryUri()));
        const state = { isOver: false };
        const written = guest.write(device, 16, () => state.isOver);
        const enough = guest.acknowledgedWrites + 100 + random.below(400);
        for (let turns = 0; turns < 2000 && guest.acknowledgedWrites < enough; turns++) {
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
        const victim = random.oneOf(["primary", "secondary", "both"] as const);
        const before = victim === "secondary" ? await resyncedBytes(pair) : 0;
        if (victim !== "secondary") await pair.primary.process.kill();
        if (victim !== "primary") await pair.secondary.process.kill();
        state.isOver = true;
        await written;
        device.destroy(new Error("the round is over"));
        await guest.check(pair.primaryFile());
        if (victim !== "primary") await pair.startSecondary();
        if (victim !== "secondary") await pair.startPrimary();
        await pair.synchronised();
        const sent = (await resyncedBytes(pair)) - before;
        expect(sent, `seed ${SEED}, round ${round}: ${victim}`).to.be.at.most(HOT_BYTES);
        copied += sent;
      }
      expect(copied, "something was lost and copied again").to.be.greaterThan(0);
      await pair.primary.succeed("stop");
      await pair.secondary.succeed("stop");
      await guest.check(pair.primaryFile());
      await expectSameContent(pair.primaryFile(), pair.secondaryFile());
    });
  }
});
