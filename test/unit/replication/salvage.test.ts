/** What a node gave up, as images; e2e/failback.test.ts has the verb, and damaged logs. */
import { type FileHandle, mkdtemp, open, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { expect } from "chai";

import { newSecondaryMetadata, writeMetadata } from "../../../src/meta/metadata.js";
import { OverlayLog } from "../../../src/meta/overlay-log.js";
import { extractSalvage, salvageName } from "../../../src/replication/secondary/salvage.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";
import { failureOf } from "../../tools/outcome.js";
import { Random, SEED } from "../../tools/seed.js";

const PAGE = 4096;
const SIZE_BYTES = 16 * PAGE;
const EPOCH = 3;

describe("salvage", () => {
  const random = new Random(SEED);
  let output: string;
  let directory: MemoryStateDirectory;
  let restoreWrite: () => void = () => undefined;

  beforeEach(async () => {
    output = join(await mkdtemp(join(tmpdir(), "salvage-")), "images");
    directory = new MemoryStateDirectory();
    const disk = { name: "disk0", sizeBytes: SIZE_BYTES, inode: null, modifiedNs: null };
    await writeMetadata(directory, newSecondaryMetadata([disk]));
  });

  afterEach(async () => {
    restoreWrite();
    await rm(join(output, ".."), { recursive: true });
  });

  /** No write() takes more than so many bytes, as one that finds little room left. */
  async function shortenWrites(maximumBytes: number): Promise<void> {
    const file = await open(join(output, "..", "any"), "w");
    const prototype = Object.getPrototypeOf(file) as Pick<FileHandle, "write">;
    await file.close();
    const whole = Reflect.get(prototype, "write") as (...args: unknown[]) => Promise<unknown>;
    const shortened = function (this: FileHandle, content: Buffer, from: number, length: number, at: number) {
      return Reflect.apply(whole, this, [content, from, Math.min(length, maximumBytes), at]);
    };
    Reflect.set(prototype, "write", shortened);
    restoreWrite = () => {
      Reflect.set(prototype, "write", whole);
    };
  }

  it("writes an image and a list of what is in it, whole, though the system writes less than asked at a time", async () => {
    const data = random.bytes(3 * PAGE);
    const log = await OverlayLog.create(directory, salvageName(EPOCH), { epoch: EPOCH, sync: true });
    await log.append([
      { disk: 0, kind: "data", offset: 2 * PAGE, lengthBytes: data.length, data },
      { disk: 0, kind: "zero", offset: 8 * PAGE, lengthBytes: PAGE, data: null },
    ]);
    await log.close();
    await shortenWrites(PAGE + 1);

    const image = join(output, "disk0.img");
    expect(await extractSalvage(directory, output)).to.deep.equal([{ image, bytes: 4 * PAGE }]);
    const expected = Buffer.alloc(SIZE_BYTES);
    data.copy(expected, 2 * PAGE);
    expect((await readFile(image)).equals(expected)).to.equal(true);
    expect(await readFile(`${image}.extents`, "utf8")).to.equal(
      `${2 * PAGE} ${3 * PAGE}\n${8 * PAGE} ${PAGE}\n`,
    );
    const again = await failureOf(extractSalvage(directory, output));
    expect([again.name, again.message]).to.deep.equal([
      "StateError",
      `${output} is there already: name a directory that is not, or remove it`,
    ]);
  });
});
