/** `--grow` at the start of a node: what is on record, and what a start that was cut off leaves. */
import { expect } from "chai";
import { mkdtemp, rename, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";

import { openDisks } from "../../../src/app/disks.js";
import { Lifecycle } from "../../../src/app/lifecycle.js";
import type { GrowthConfig } from "../../../src/config/fields.js";
import { ConfigError, MetadataError } from "../../../src/errors.js";
import { findForeignDisk, identifyDisks } from "../../../src/meta/disk-identity.js";
import {
  type DiskIdentity,
  newPrimaryMetadata,
  readMetadata,
  writeMetadata,
} from "../../../src/meta/metadata.js";
import { MemoryStateDirectory, StorageFault } from "../../tools/memory-state-directory.js";
import { failureOf } from "../../tools/outcome.js";

const OLD_BYTES = 64 * 1024;
const NEW_BYTES = 1024 * 1024;
const GROWTH: readonly GrowthConfig[] = [{ name: "b", sizeBytes: NEW_BYTES }];

describe("a disk that is to grow (--grow)", () => {
  let files: string;
  let directory: MemoryStateDirectory;
  let paths: { name: string; path: string }[];

  /** Two disks that the node stopped with. */
  beforeEach(async () => {
    files = await mkdtemp(join(tmpdir(), "growth-"));
    directory = new MemoryStateDirectory();
    paths = ["a", "b"].map((name) => ({ name, path: join(files, `${name}.img`) }));
    for (const { path } of paths) await writeFile(path, Buffer.alloc(OLD_BYTES, 0x11));
    await start([], async (disks) => {
      await writeMetadata(directory, newPrimaryMetadata(await identifyDisks(disks, true)));
    });
  });

  afterEach(() => rm(files, { recursive: true }));

  /** Opens the disks as a node does, and closes them. @returns their sizes */
  async function start(
    growth: readonly GrowthConfig[],
    use: (disks: Awaited<ReturnType<typeof openDisks>>) => Promise<void> = () => Promise.resolve(),
    createSizeBytes: number | null = null,
  ): Promise<number[]> {
    const lifecycle = new Lifecycle();
    try {
      const options = { createSizeBytes, growth, cache: "writeback", directory } as const;
      const disks = await openDisks(paths, options, pino({ level: "silent" }), lifecycle);
      await use(disks);
      return disks.map(({ device }) => device.info.sizeBytes);
    } finally {
      await lifecycle.close();
    }
  }

  /** What is on record tells of nobody else's changes. */
  async function expectOwn(disks: Awaited<ReturnType<typeof openDisks>>): Promise<void> {
    expect(findForeignDisk(await recorded(), await identifyDisks(disks, true), disks)).to.equal(null);
  }

  async function recorded(): Promise<DiskIdentity[]> {
    return (await readMetadata(directory))?.disks ?? [];
  }

  const sizesOf = (disks: readonly DiskIdentity[]): number[] => disks.map(({ sizeBytes }) => sizeBytes);
  const fileSizes = (): Promise<number[]> =>
    Promise.all(paths.map(async ({ path }) => (await stat(path)).size));

  it("is made larger, it alone, and is that large on record; its content stays, what is new reads as zeroes", async () => {
    const into = Buffer.alloc(NEW_BYTES);
    const sizes = await start(GROWTH, async ([, disk]) => {
      await disk?.device.read(0, into);
    });
    expect(sizes).to.deep.equal([OLD_BYTES, NEW_BYTES]);
    expect(await fileSizes()).to.deep.equal([OLD_BYTES, NEW_BYTES]);
    expect(sizesOf(await recorded())).to.deep.equal([OLD_BYTES, NEW_BYTES]);
    expect(into.equals(Buffer.concat([Buffer.alloc(OLD_BYTES, 0x11)], NEW_BYTES))).to.equal(true);
  });

  it("is not taken for one that somebody else has written to", async () => {
    await start(GROWTH, expectOwn);
  });

  it("stays noticed if somebody else has written to it", async () => {
    const [, before] = await recorded();
    await writeFile(paths[1]?.path ?? "", Buffer.alloc(OLD_BYTES, 0x22));
    await start(GROWTH);
    expect((await recorded())[1]).to.deep.equal({ ...before, sizeBytes: NEW_BYTES });
  });

  it("may have been made that large by somebody else, as devices are, which stays noticed", async () => {
    const [, before] = await recorded();
    await truncate(paths[1]?.path ?? "", NEW_BYTES);
    expect(await start(GROWTH)).to.deep.equal([OLD_BYTES, NEW_BYTES]);
    expect((await recorded())[1]).to.deep.equal({ ...before, sizeBytes: NEW_BYTES });
  });

  for (const [what, growth] of [
    ["as large as it is", GROWTH],
    ["smaller than it is", [{ name: "b", sizeBytes: NEW_BYTES / 2 }]],
  ] as const) {
    it(`and is ${what} stays as it is: the option may be left`, async () => {
      await start(GROWTH);
      const before = await recorded();
      expect(await start(growth)).to.deep.equal([OLD_BYTES, NEW_BYTES]);
      expect(await recorded()).to.deep.equal(before);
    });
  }

  it("is as large as on record, whatever --size was when it was made", async () => {
    expect(await start(GROWTH, undefined, OLD_BYTES)).to.deep.equal([OLD_BYTES, NEW_BYTES]);
  });

  it("stays as it is if it is another file", async () => {
    const path = paths[1]?.path ?? "";
    await writeFile(`${path}.other`, Buffer.alloc(OLD_BYTES, 0x33));
    await rename(path, `${path}.old`);
    await rename(`${path}.other`, path);
    const before = await recorded();
    const refusal = await failureOf(start(GROWTH));
    expect(refusal).to.be.instanceOf(MetadataError).with.property("code", "foreign-disk");
    expect(refusal.message).to.equal(
      `--grow: disk b: ${path} is another file than the one of /state/metadata.json: put that back`,
    );
    expect(await fileSizes()).to.deep.equal([OLD_BYTES, OLD_BYTES]);
    expect(await recorded()).to.deep.equal(before);
  });

  it("is refused if it has neither size, with the one that it has", async () => {
    const path = paths[1]?.path ?? "";
    await truncate(path, 2 * NEW_BYTES);
    const refusal = await failureOf(start(GROWTH));
    expect(refusal).to.be.instanceOf(ConfigError);
    expect(refusal.message).to.equal(
      `--grow: disk b: ${path} has ${2 * NEW_BYTES} bytes, not ${NEW_BYTES}: give --grow b=${2 * NEW_BYTES}`,
    );
    expect(sizesOf(await recorded())).to.deep.equal([OLD_BYTES, OLD_BYTES]);
    expect(await start([{ name: "b", sizeBytes: 2 * NEW_BYTES }])).to.deep.equal([OLD_BYTES, 2 * NEW_BYTES]);
  });

  it("stays noticed if somebody else writes to it after a start that was refused", async () => {
    const before = await recorded();
    // What no file system takes.
    const refusal = await failureOf(start([{ name: "b", sizeBytes: Number.MAX_SAFE_INTEGER }]));
    expect(refusal).to.be.instanceOf(ConfigError).with.property("code", "disk-not-grown");
    expect(await fileSizes()).to.deep.equal([OLD_BYTES, OLD_BYTES]);
    expect(await recorded()).to.deep.equal(before);
  });

  it("and has become larger stays noticed, too, where the start is refused for another disk", async () => {
    const [first, second] = paths;
    if (first === undefined || second === undefined) throw new Error("two disks are needed");
    await truncate(second.path, 2 * NEW_BYTES);
    const both = ["a", "b"].map((name) => ({ name, sizeBytes: NEW_BYTES }));
    expect(await failureOf(start(both)))
      .to.be.instanceOf(ConfigError)
      .with.property("code", "disk-size");
    const { size, mtimeNs } = await stat(first.path, { bigint: true });
    expect(Number(size)).to.equal(NEW_BYTES);
    const [a] = await recorded();
    expect([a?.sizeBytes, a?.modifiedNs]).to.deep.equal([OLD_BYTES, String(mtimeNs)]);
  });

  for (const [when, failing] of [
    ["when the file was about to be made larger", 1],
    ["when it had been", 2],
  ] as const) {
    for (const isDone of [false, true]) {
      const how = isDone ? "on record all the same" : "not on record";
      it(`whose start was cut off ${when}, ${how}: the same start goes on, and takes it for nobody else's`, async () => {
        let writes = 0;
        directory.intercept = ({ kind }) => {
          if (kind !== "replace" || ++writes < failing) return undefined;
          return Promise.reject(new StorageFault("EIO", "power failed"));
        };
        directory.isDone = () => isDone;
        expect(await failureOf(start(GROWTH))).to.be.instanceOf(StorageFault);
        directory.intercept = () => undefined;
        directory.crash();
        expect(await start(GROWTH, expectOwn)).to.deep.equal([OLD_BYTES, NEW_BYTES]);
        expect(sizesOf(await recorded())).to.deep.equal([OLD_BYTES, NEW_BYTES]);
      });
    }
  }
});
