import { Writable } from "node:stream";

import { expect } from "chai";

import { payloadBuffers } from "../../../src/block/buffer-pool.js";
import { writeGathered } from "../../../src/net/gather.js";
import { Random, SEED } from "../../tools/seed.js";

const KIBIBYTE = 1024;

/** The chunks that a stream is given for these pieces, once it has taken them. */
async function chunksFor(pieces: readonly Buffer[]): Promise<Buffer[]> {
  const chunks: Buffer[] = [];
  const stream = new Writable({
    writev(given, taken) {
      for (const { chunk } of given) chunks.push(chunk as Buffer);
      taken();
    },
  });
  await new Promise<void>((resolve, reject) => {
    writeGathered(stream, pieces, (error) => {
      if (error === null || error === undefined) resolve();
      else reject(error);
    });
  });
  return chunks;
}

describe(`writeGathered (SEED=${SEED})`, () => {
  it("sends pieces that lie one behind the other from where they are, as one", async () => {
    const memory = Buffer.alloc(40 * KIBIBYTE, "abcdefg");
    const pieces = [0, 1, 2, 3].map((index) => memory.subarray(index * 9000, (index + 1) * 9000));
    const chunks = await chunksFor(pieces);
    expect(chunks.length).to.equal(1);
    expect(chunks[0]?.buffer).to.equal(memory.buffer);
    expect(chunks[0]).to.deep.equal(memory.subarray(0, 36_000));
  });

  it("does not take neighbours in another order, or in other memory, for one", async () => {
    const [left, right] = [Buffer.alloc(40 * KIBIBYTE, 1), Buffer.alloc(40 * KIBIBYTE, 2)];
    const pieces = [
      left.subarray(20 * KIBIBYTE),
      left.subarray(0, 20 * KIBIBYTE),
      right.subarray(20 * KIBIBYTE),
    ];
    expect(await chunksFor(pieces)).to.deep.equal(pieces);
  });

  it("gives the pool back what it gathered in, when the stream has taken it and when it has failed", async () => {
    const lent = new Set<Buffer>();
    const take = payloadBuffers.take.bind(payloadBuffers);
    const give = payloadBuffers.give.bind(payloadBuffers);
    payloadBuffers.take = (lengthBytes): Buffer => {
      const buffer = take(lengthBytes);
      lent.add(buffer);
      return buffer;
    };
    payloadBuffers.give = (buffer): void => {
      lent.delete(buffer);
      give(buffer);
    };
    try {
      const pieces = Array.from({ length: 4 }, () => Buffer.alloc(10 * KIBIBYTE));
      const counts: number[] = [];
      for (const failure of [null, new Error("broken")]) {
        const stream = new Writable({
          writev(_given, taken) {
            counts.push(lent.size);
            taken(failure);
          },
        });
        stream.on("error", () => undefined);
        await new Promise<void>((resolve) => {
          writeGathered(stream, pieces, () => {
            counts.push(lent.size);
            resolve();
          });
        });
      }
      expect(counts, "while it is on its way, and afterwards").to.deep.equal([1, 0, 1, 0]);
    } finally {
      Reflect.deleteProperty(payloadBuffers, "take");
      Reflect.deleteProperty(payloadBuffers, "give");
    }
  });

  it("sends all bytes in order, whatever the pieces and where they lie", async () => {
    const random = new Random(SEED);
    const memory = Buffer.from(Array.from({ length: 200 * KIBIBYTE }, () => random.below(256)));
    for (let round = 0; round < 200; round++) {
      const pieces: Buffer[] = [];
      let at = 0;
      for (let count = 1 + random.below(40); count > 0; count--) {
        if (random.below(3) === 0) at = random.below(memory.length);
        const end = Math.min(
          memory.length,
          at + 1 + random.below(random.below(2) === 0 ? 100 : 20 * KIBIBYTE),
        );
        if (end > at) pieces.push(memory.subarray(at, end));
        at = end;
      }
      const chunks = await chunksFor(pieces);
      expect(Buffer.concat(chunks).equals(Buffer.concat(pieces)), `round ${round}`).to.equal(true);
    }
  });
});
