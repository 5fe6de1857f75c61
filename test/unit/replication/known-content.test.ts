/** What a resync finds on the replica, and does not send. */
import { expect } from "chai";
import { pino } from "pino";

import { DIRTY_BLOCK_BYTES as BLOCK } from "../../../src/block/dirty-blocks.js";
import { Deferred } from "../../../src/deferred.js";
import { LinkError } from "../../../src/errors.js";
import { digestsOf } from "../../../src/replication/digest.js";
import { COMPARED_BYTES, KnownContent } from "../../../src/replication/primary/known-content.js";
import { turns } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";

const BLOCKS = COMPARED_BYTES / BLOCK;

/** Content of which each block tells its number, or another. */
function content(...numbers: number[]): Buffer {
  return Buffer.concat(numbers.map((number) => Buffer.alloc(BLOCK, number)));
}

describe("KnownContent", () => {
  /** One whose replica has this, at any offset. */
  const knowing = (theirs: () => Buffer): KnownContent =>
    new KnownContent(
      (_offset, lengthBytes, blockBytes) =>
        Promise.resolve(digestsOf(theirs().subarray(0, lengthBytes), blockBytes)),
      (error) => {
        throw error;
      },
    );

  it("tells block by block what the replica has, the last one of a disk, too", async () => {
    const theirs = content(1, 9, 3, 4);
    const own = Promise.resolve(content(1, 2, 3, 4).subarray(0, 3 * BLOCK + 100));
    expect(await knowing(() => theirs).compare(0, 3 * BLOCK + 100, own)).to.deep.equal([
      true,
      false,
      true,
      true,
    ]);
  });

  it("takes nothing for the same of which one byte differs", async () => {
    const random = new Random(SEED);
    const theirs = content(1, 2, 3, 4);
    const at = random.below(theirs.length);
    const own = Buffer.from(theirs);
    own[at] = 77;
    const expected = Array.from({ length: BLOCKS }, (_, block) => block !== Math.floor(at / BLOCK));
    expect(
      await knowing(() => theirs).compare(0, own.length, Promise.resolve(own)),
      `seed ${SEED}`,
    ).to.deep.equal(expected);
  });

  /** Goes over a disk as a resync does. @returns how many pieces were compared, of how many */
  async function goOver(known: KnownContent, pieces: number, own: Buffer): Promise<number> {
    let compared = 0;
    for (let piece = 0; piece < pieces; piece++) {
      if (!known.isDue(COMPARED_BYTES)) continue;
      compared++;
      await known.compare(piece * COMPARED_BYTES, COMPARED_BYTES, Promise.resolve(own));
    }
    return compared;
  }

  it("compares each piece as long as the replica has something of it", async () => {
    expect(
      await goOver(
        knowing(() => content(1, 2, 9, 9)),
        1000,
        content(1, 5, 5, 5),
      ),
    ).to.equal(1000);
  });

  it("compares one piece in hundreds where the replica has nothing, and each again once it has", async () => {
    let theirs = content(0, 0, 0, 0);
    const own = content(1, 2, 3, 4);
    const known = knowing(() => theirs);
    // 1, 4 without, 1, 8 without ... 1, 256 without, 1, 256 without.
    expect(await goOver(known, 4 + 8 + 16 + 32 + 64 + 128 + 256 + 7, own)).to.equal(7);
    expect(await goOver(known, 10 * 257, own)).to.equal(10);
    expect(await goOver(known, 1, own)).to.equal(1);
    theirs = own;
    expect(await goOver(known, 256 + 100, own)).to.equal(100);
  });

  it("compares many pieces at a time, and one where the replica has nothing, until it has something again", async () => {
    let theirs = content(0, 0, 0, 0);
    const own = content(1, 2, 3, 4);
    const known = knowing(() => theirs);
    const compare = (): Promise<readonly boolean[]> => known.compare(0, own.length, Promise.resolve(own));
    /** Claims so many pieces before any of them is compared. @returns how many are to be */
    const claim = (pieces: number): number =>
      Array.from({ length: pieces }, () => known.isDue(COMPARED_BYTES)).filter(Boolean).length;
    expect(claim(10)).to.equal(10);
    await Promise.all(Array.from({ length: 10 }, compare));
    // However many were in vain at a time: four pass, then one is due.
    expect(claim(4)).to.equal(0);
    expect(claim(10)).to.equal(1);
    theirs = own;
    await compare();
    expect(claim(10)).to.equal(10);
  });

  /** How many pieces go without before one is due, which is claimed. */
  const passing = (known: KnownContent): number => {
    let passed = 0;
    while (passed < 1000 && !known.isDue(COMPARED_BYTES)) passed++;
    return passed;
  };

  /** One whose replica answers when it is told to, the oldest question first. */
  const slowly = (): { known: KnownContent; answer: (theirs: Buffer) => Promise<void>; ask: () => void } => {
    const own = content(1, 2, 3, 4);
    const questions: Deferred<readonly string[]>[] = [];
    const known = new KnownContent(
      () => {
        const question = new Deferred<readonly string[]>();
        questions.push(question);
        return question.promise;
      },
      (error) => {
        throw error;
      },
    );
    return {
      known,
      ask: () => void known.compare(0, own.length, Promise.resolve(own)),
      answer: async (theirs) => {
        questions.shift()?.resolve(digestsOf(theirs, BLOCK));
        await turns();
      },
    };
  };

  it("learns nothing from an answer in vain that comes behind others of the same time", async () => {
    const { known, ask, answer } = slowly();
    for (let piece = 0; piece < 3; piece++) {
      expect(known.isDue(COMPARED_BYTES)).to.equal(true);
      ask();
    }
    await answer(content(0, 0, 0, 0));
    expect([known.isDue(COMPARED_BYTES), known.isDue(COMPARED_BYTES)]).to.deep.equal([false, false]);
    await answer(content(0, 0, 0, 0));
    expect(passing(known), "of four").to.equal(2);
    ask();
    await answer(content(0, 0, 0, 0));
    expect(passing(known), "one is being compared: no other is").to.equal(1000);
    await answer(content(0, 0, 0, 0));
    expect(passing(known)).to.equal(8);
  });

  it("compares all again when the replica has something of a piece, whichever that is, and begins anew with few that pass", async () => {
    const { known, ask, answer } = slowly();
    expect(passing(known)).to.equal(0);
    ask();
    await answer(content(0, 0, 0, 0));
    for (const passed of [4, 8, 16]) {
      expect(passing(known)).to.equal(passed);
      ask();
      await answer(content(0, 0, 0, 0));
    }
    expect(passing(known)).to.equal(32);
    ask();
    await answer(content(0, 2, 0, 0));
    expect([passing(known), passing(known)]).to.deep.equal([0, 0]);
    ask();
    await answer(content(0, 0, 0, 0));
    expect(passing(known)).to.equal(4);
  });

  it("asks no more once something could not be asked, and tells why once", async () => {
    const told: unknown[] = [];
    let asked = 0;
    const known = new KnownContent(
      () => {
        asked++;
        return Promise.reject(new Error("no digests here"));
      },
      (error) => told.push(error),
    );
    const own = content(1, 2, 3, 4);
    const compare = (): Promise<readonly boolean[]> => known.compare(0, own.length, Promise.resolve(own));
    expect(await Promise.all([compare(), compare()])).to.deep.equal([
      [false, false, false, false],
      [false, false, false, false],
    ]);
    expect(await compare()).to.deep.equal([false, false, false, false]);
    expect(asked).to.equal(2);
    expect(told.map(String)).to.deep.equal(["Error: no digests here"]);
    expect(known.isDue(1)).to.equal(false);
  });

  for (const [what, error, isSilent] of [
    ["that is silent", new LinkError("timeout", "no answer"), true],
    ["whose connection is lost", new LinkError("connection-lost", "it is gone"), false],
    ["that tells no digests", new Error("no digests here"), false],
  ] as const) {
    it(`of a replica ${what} ${isSilent ? "says so" : "says nothing of silence"}`, async () => {
      let silences = 0;
      const known = KnownContent.of(
        "disk0",
        { of: () => Promise.reject(error) },
        pino({ level: "silent" }),
        () => silences++,
      );
      const own = content(1, 2, 3, 4);
      expect(await known.compare(0, own.length, Promise.resolve(own))).to.deep.equal([
        false,
        false,
        false,
        false,
      ]);
      expect(silences).to.equal(isSilent ? 1 : 0);
    });
  }
});
