import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { expect } from "chai";
import { pino } from "pino";

import { openDisks } from "../../../src/app/disks.js";
import { Lifecycle } from "../../../src/app/lifecycle.js";
import { CACHE_MODES } from "../../../src/status.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";

const LENGTH_BYTES = 64 * 1024;

describe("the disks of a node", () => {
  for (const cache of CACHE_MODES) {
    // Copy-before-write of short writes is a third cheaper for it, and nothing else would tell that it is gone.
    it(`are read at once where their content is in memory, with --cache ${cache}`, async () => {
      const directory = await mkdtemp(join(tmpdir(), "disks-"));
      const lifecycle = new Lifecycle();
      try {
        const path = join(directory, "disk.img");
        const content = Buffer.alloc(LENGTH_BYTES, "content of the disk");
        await writeFile(path, content);
        const log = pino({ level: "silent" });
        const options = { createSizeBytes: null, growth: [], cache, directory: new MemoryStateDirectory() };
        const [disk] = await openDisks([{ name: "disk0", path }], options, log, lifecycle);
        const into = Buffer.alloc(4096);
        expect(disk?.device.tryRead?.(8192, into)).to.equal(true);
        expect(into).to.deep.equal(content.subarray(8192, 8192 + 4096));
      } finally {
        await lifecycle.close();
        await rm(directory, { recursive: true });
      }
    });
  }
});
