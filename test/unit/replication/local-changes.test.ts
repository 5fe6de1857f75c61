/** What a node that was a primary knows to have changed by itself; e2e/failback.test.ts has what becomes of it. */
import { expect } from "chai";
import { pino } from "pino";

import { checked } from "../../../src/block/checked.js";
import { DIRTY_BLOCK_BYTES as BLOCK } from "../../../src/block/dirty-blocks.js";
import { openDirtyMaps } from "../../../src/replication/primary/keeper.js";
import { LocalChanges } from "../../../src/replication/secondary/local-changes.js";
import type { NamedDisk } from "../../../src/replication/named-disk.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";

const QUIET = pino({ level: "silent" });
const SIZE_BYTES = 5 * BLOCK + 1234;
const LARGER_BYTES = 9 * BLOCK + 99;

function disksOf(sizeBytes: number): NamedDisk[] {
  return [{ name: "disk0", path: "memory:0", device: checked(new MemoryDevice(sizeBytes)) }];
}

describe("local changes", () => {
  it("are not what is new of a disk that has been made larger, which is told to a new primary, and missed as a primary", async () => {
    const directory = new MemoryStateDirectory();
    const [map] = await openDirtyMaps(directory, disksOf(SIZE_BYTES), QUIET);
    map?.missed(2 * BLOCK, 1);
    await map?.close();
    // Once more, for it has to be known after a restart as well.
    for (let start = 0; start < 2; start++) {
      const changes = await LocalChanges.open(directory, disksOf(LARGER_BYTES), QUIET);
      expect(changes.summary()).to.deep.equal({
        bytes: BLOCK,
        first: [{ disk: "disk0", offset: 2 * BLOCK, lengthBytes: BLOCK }],
      });
      expect(changes.bytes).to.equal(BLOCK);
      const ranges = [
        [2 * BLOCK, BLOCK],
        [5 * BLOCK, LARGER_BYTES - 5 * BLOCK],
      ];
      expect(changes.ranges()).to.deep.equal({ disk0: ranges });
      await changes.close();
    }
    const [grown] = await openDirtyMaps(directory, disksOf(LARGER_BYTES), QUIET);
    expect(grown?.missedBytes).to.equal(BLOCK + LARGER_BYTES - 5 * BLOCK);
    await grown?.close();
  });
});
