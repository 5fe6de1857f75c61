import { expect } from "chai";

import { MetadataError } from "../../../src/errors.js";
import {
  checkDisks,
  newPrimaryMetadata,
  newSecondaryMetadata,
  readMetadata,
  writeMetadata,
} from "../../../src/meta/metadata.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";

const METADATA_FILE = "metadata.json";
const DISKS = [
  { name: "disk0", sizeBytes: 4096, inode: null, modifiedNs: null },
  { name: "disk1", sizeBytes: 2 ** 50, inode: null, modifiedNs: null },
];

/** Code and text of what was thrown. */
async function refusal(request: () => unknown): Promise<string> {
  try {
    await request();
  } catch (error) {
    if (error instanceof MetadataError) return `${error.code}: ${error.message}`;
    throw error;
  }
  return "none";
}

describe("metadata", () => {
  let directory: MemoryStateDirectory;

  beforeEach(() => {
    directory = new MemoryStateDirectory();
  });

  function putJson(value: unknown): void {
    directory.put(METADATA_FILE, Buffer.from(JSON.stringify(value)));
  }

  it("is null before the first start", async () => {
    expect(await readMetadata(directory)).to.equal(null);
  });

  it("is read as it was written, for both roles", async () => {
    const secondary = {
      ...newSecondaryMetadata(DISKS),
      stage: "failover-failed",
      failoverTarget: "latest",
      checkpointAt: "2024-05-06T07:08:09.123Z",
      tenure: "0a6a4f0e-4b8c-4d63-9d38-0d5d7b4d6c11",
      discard: true,
      returning: true,
      salvage: 7,
      gap: "writes were lost",
      epoch: 2 ** 40,
      cleanShutdown: false,
    } as const;
    await writeMetadata(directory, secondary);
    expect(await readMetadata(directory)).to.deep.equal(secondary);
    const primary = newPrimaryMetadata(DISKS);
    await writeMetadata(directory, primary);
    expect(await readMetadata(directory)).to.deep.equal(primary);
  });

  it("begins in stage none of epoch 0, with identifiers of its own; a secondary's data is of no line of history", () => {
    const [one, other] = [newSecondaryMetadata(DISKS), newSecondaryMetadata(DISKS)];
    expect([one.stage, one.epoch, one.failoverTarget, one.checkpointAt]).to.deep.equal([
      "none",
      0,
      null,
      null,
    ]);
    expect([one.generation, one.ancestors, one.tenure]).to.deep.equal([null, [], null]);
    const [first, second] = [newPrimaryMetadata(DISKS), newPrimaryMetadata(DISKS)];
    const uuids = [one.uuid, other.uuid, first.uuid, first.generation, second.uuid, second.generation];
    expect(new Set(uuids).size).to.equal(6);
  });

  it("refuses a file that is not JSON, wherever it was cut off", async () => {
    await writeMetadata(directory, newSecondaryMetadata(DISKS));
    const whole = directory.contents(METADATA_FILE);
    for (let lengthBytes = 0; lengthBytes < whole.length - 2; lengthBytes++) {
      directory.put(METADATA_FILE, whole.subarray(0, lengthBytes));
      expect(await refusal(() => readMetadata(directory)), `${lengthBytes} bytes`).to.equal(
        "damaged: /state/metadata.json is not JSON: restore it, or remove the directory, which costs a full copy",
      );
    }
  });

  it("refuses JSON of something else", async () => {
    for (const foreign of [null, 1, [], {}, { format: "other", version: 1, role: "secondary" }]) {
      putJson(foreign);
      expect(await refusal(() => readMetadata(directory)), JSON.stringify(foreign)).to.equal(
        "foreign: /state/metadata.json is not a metadata file of nbd-replication: restore it, or remove the directory, which costs a full copy",
      );
    }
  });

  it("refuses a version that it does not know, whatever else is in the file", async () => {
    putJson({ ...newSecondaryMetadata(DISKS), version: 7, novelty: true });
    expect(await refusal(() => readMetadata(directory))).to.equal(
      "version: /state/metadata.json has format version 7; this program reads 6: start the one that wrote it, or remove the directory, which costs a full copy",
    );
  });

  it("refuses each field that is missing, of another type or unknown, and names it", async () => {
    const whole = newSecondaryMetadata(DISKS);
    for (const field of Object.keys(whole)) {
      if (["format", "version", "role"].includes(field)) continue;
      const isNewer = ["handedOver", "primaryEpoch"].includes(field);
      const bads = isNewer ? [{ an: "object" }] : [undefined, { an: "object" }];
      for (const bad of bads) {
        putJson({ ...whole, [field]: bad });
        const text = await refusal(() => readMetadata(directory));
        expect(text).to.match(new RegExp(`^damaged: /state/metadata.json is damaged: ${field}: `));
      }
    }
    putJson({ ...whole, epoch: -1 });
    expect(await refusal(() => readMetadata(directory))).to.include("is damaged: epoch: ");
    putJson({ ...whole, disks: [{ name: "disk0", sizeBytes: 0, inode: null, modifiedNs: null }] });
    expect(await refusal(() => readMetadata(directory))).to.include("is damaged: disks.0.sizeBytes: ");
    putJson({ ...whole, novelty: true });
    expect(await refusal(() => readMetadata(directory))).to.match(/^damaged: .*novelty/);
  });

  it("reads what an older release wrote, which does not say whether the disks were handed over, nor what its primary asked for", async () => {
    const whole = newSecondaryMetadata(DISKS);
    putJson({ ...whole, handedOver: undefined, primaryEpoch: undefined });
    expect(await readMetadata(directory)).to.deep.equal(whole);
  });

  describe("checkDisks", () => {
    const check = (given: readonly { name: string; sizeBytes: number }[]): Promise<string> =>
      refusal(() => {
        checkDisks(directory, DISKS, given);
      });

    it("takes the same disks", async () => {
      expect(await check(DISKS)).to.equal("none");
    });

    it("refuses other disks, more or fewer of them, or another order", async () => {
      const [first, second] = DISKS;
      if (first === undefined || second === undefined) throw new Error("two disks are needed");
      const third = { name: "disk2", sizeBytes: 4096, inode: null, modifiedNs: null };
      for (const given of [[first], [second, first], [first, third], [first, second, third], []]) {
        const names = given.map(({ name }) => name).join(", ");
        expect(await check(given)).to.equal(
          `other-disks: /state/metadata.json belongs to the disks disk0, disk1, in this order, not to ${names}: give those, or another --state-dir`,
        );
      }
    });

    it("refuses a disk of another size, and names both", async () => {
      expect(
        await check([{ name: "disk0", sizeBytes: 4097, inode: null, modifiedNs: null }, ...DISKS.slice(1)]),
      ).to.equal(
        "other-size: disk disk0 has 4097 bytes, but /state/metadata.json knows it with 4096: give --grow disk0=4097 if it has been made larger, else the same disk, or another --state-dir",
      );
      expect(
        await check([{ name: "disk0", sizeBytes: 4095, inode: null, modifiedNs: null }, ...DISKS.slice(1)]),
      ).to.equal(
        "other-size: disk disk0 has 4095 bytes, but /state/metadata.json knows it with 4096: give the same disk, or another --state-dir",
      );
    });
  });
});
