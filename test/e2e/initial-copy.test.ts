/** The first copy of a disk that has content: what it copies, and how it is seen while it runs. */
import { expect } from "chai";
import { writeFile } from "node:fs/promises";

import { expectPattern, qemuIo, writePattern } from "../tools/clients.js";
import { failureOf } from "../tools/outcome.js";
import { allocatedBytes, expectSameContent } from "../tools/disk-files.js";
import { MEBIBYTE, Pair, startPair } from "../tools/pair.js";
import { run, succeed } from "../tools/process.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 256 * MEBIBYTE;
/** What prepare() writes, in three places. */
const CONTENT_BYTES = 9 * MEBIBYTE;
/** File systems round up, and keep extents and sums beside. */
const ALLOCATION_SLACK_BYTES = MEBIBYTE;

describe("initial copy", () => {
  const workspace = useWorkspace();

  const prepare = async (path: string): Promise<void> => {
    await succeed("truncate", ["--size", String(SIZE_BYTES), path]);
    await qemuIo(path, "write -P 0x41 0 4M", "write -P 0x42 100M 4M", "write -P 0x43 255M 1M");
  };

  it("copies the content and skips the holes: the replica is as sparse as the disk", async () => {
    await prepare(workspace.path("primary-disk0.img"));
    const pair = await startPair(workspace, { sizeBytes: SIZE_BYTES });
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
    const allocated = await allocatedBytes(pair.secondaryFile());
    expect(allocated).to.be.within(CONTENT_BYTES, CONTENT_BYTES + ALLOCATION_SLACK_BYTES);
    await expectPattern(pair.viewUri(), [0x41, "0", "4M"], [0, "4M", "96M"], [0x42, "100M", "4M"]);
  });

  it("makes holes of what the replica has and the disk has not", async () => {
    await prepare(workspace.path("primary-disk0.img"));
    await succeed("truncate", ["--size", String(SIZE_BYTES), workspace.path("secondary-disk0.img")]);
    await qemuIo(workspace.path("secondary-disk0.img"), "write -P 0xee 2M 64M");
    const pair = await startPair(workspace, { sizeBytes: SIZE_BYTES });
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
    const allocated = await allocatedBytes(pair.secondaryFile());
    expect(allocated).to.be.within(CONTENT_BYTES, CONTENT_BYTES + ALLOCATION_SLACK_BYTES);
  });

  it("is a block job: query-block-jobs and status show it, block-job-set-speed lets it go on", async () => {
    await prepare(workspace.path("primary-disk0.img"));
    const pair = new Pair(workspace, { sizeBytes: SIZE_BYTES, primary: ["--resync-rate", "256K"] });
    await pair.startSecondary();
    await pair.startPrimary();
    await pair.primary.withQmp(async (client) => {
      const jobs = (await client.execute("query-block-jobs")) as Record<string, unknown>[];
      expect(jobs).to.have.length(1);
      expect(jobs[0]).to.deep.include({
        device: "mirror-disk0",
        type: "mirror",
        len: SIZE_BYTES,
        speed: 256 * 1024,
        busy: true,
        paused: false,
        ready: false,
        "io-status": "ok",
        status: "running",
      });
      const status = await pair.primary.succeed("status");
      expect(status).to.match(/^primary: running, resyncing, epoch 0, no checkpoint yet\n/);
      expect(status).to.match(
        /job mirror-disk0 +mirror of disk0 \[#*-*\] \d+% of 256 MiB, (.* left, )?at most 256 KiB\/s\n/,
      );
      expect(status).to.match(/! a checkpoint would be refused: the replica is resyncing: .* not replicated/);

      const early = await pair.primary.verb("checkpoint");
      expect(early.code).to.equal(3);
      expect(early.stderr).to.match(
        /^repl-primary: checkpoint refused: the replica is resyncing: .* (is|are) not replicated\n$/,
      );

      // The guest doesn't wait for the copy, nor is its write lost to it.
      await writePattern(pair.primaryUri(), 0x99, "254M", "2M");

      const completed = client.waitForEvent("BLOCK_JOB_COMPLETED", { timeoutMs: 60_000 });
      await client.execute("block-job-set-speed", { device: "mirror-disk0", speed: 0 });
      expect((await completed).data).to.deep.equal({
        device: "mirror-disk0",
        type: "mirror",
        len: SIZE_BYTES,
        offset: SIZE_BYTES,
        speed: 0,
      });
    });
    await pair.synchronised();
    expect(await pair.primary.withQmp((client) => client.execute("query-block-jobs"))).to.deep.equal([]);
    await expectPattern(pair.viewUri(), [0x42, "100M", "4M"], [0, "104M", "150M"], [0x99, "254M", "2M"]);
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });

  it("shows nothing in the view before it is done", async () => {
    await writeFile(workspace.path("primary-disk0.img"), Buffer.alloc(8 * MEBIBYTE, 0x41));
    const pair = new Pair(workspace, { sizeBytes: 8 * MEBIBYTE, primary: ["--resync-rate", "64K"] });
    await pair.startSecondary();
    await pair.startPrimary();
    const { code, stdout } = await run("qemu-io", ["-f", "raw", "-c", "read 0 4k", pair.viewUri()]);
    expect(code).to.equal(1);
    expect(stdout).to.include("read failed: Input/output error");
  });

  it("is made a checkpoint of by no manager before it is done", async () => {
    await writeFile(workspace.path("primary-disk0.img"), Buffer.alloc(8 * MEBIBYTE, 0x41));
    const pair = new Pair(workspace, { sizeBytes: 8 * MEBIBYTE, primary: ["--resync-rate", "64K"] });
    await pair.startSecondary();
    await pair.startPrimary();
    await pair.primary.waitForStatus("copying", ({ jobs }) => (jobs[0]?.offset ?? 0) > 0);
    await pair.secondary.withQmp(async (client) => {
      const refused = client.execute("xen-set-replication", { enable: true, primary: false });
      expect(await failureOf(refused)).to.have.property(
        "message",
        "a primary's copy is not finished: the primary starts replication itself when it is; to give that up, stop replication first (enable: false)",
      );
    });
    expect((await pair.secondary.status()).stage).to.equal("none");
    await pair.primary.withQmp((client) =>
      client.execute("block-job-set-speed", { device: "mirror-disk0", speed: 0 }),
    );
    await pair.synchronised();
    expect((await pair.secondary.status()).stage).to.equal("running");
    await expectPattern(pair.viewUri(), [0x41, "0", "8M"]);
  });
});
