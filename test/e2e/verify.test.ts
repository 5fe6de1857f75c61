/** Online verify as its operator has it: the command line, block jobs, and a guest that goes on writing. */
import { expect } from "chai";
import { open } from "node:fs/promises";

import { fioResult, startFio, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { MEBIBYTE, startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

describe("repl-primary verify", () => {
  const workspace = useWorkspace();

  const flipByte = async (path: string, offset: number): Promise<void> => {
    const file = await open(path, "r+");
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, offset);
    byte.writeUInt8(byte.readUInt8(0) ^ 0xff, 0);
    await file.write(byte, 0, 1, offset);
    await file.close();
  };

  it("finds what was changed behind the secondary's back while fio writes, and repairs it", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "32M", "32M");
    // What the secondary has in memory alone would overwrite the flipped bytes.
    await pair.checkpoint();
    const fio = await startFio(workspace, pair.primaryUri(), {
      size: "32m",
      iodepth: 16,
      bsrange: "512-64k",
    });
    await flipByte(pair.secondaryFile(), 40 * MEBIBYTE + 5);
    await flipByte(pair.secondaryFile(), 40 * MEBIBYTE + 4096);
    await flipByte(pair.secondaryFile(), 64 * MEBIBYTE - 1);

    const found = await pair.primary.verb("verify", "--disk", "disk0", "--rate", "64M");
    expect(found.stdout).to.equal(
      [
        "disk0: verify completed: 64 MiB compared, 12 KiB differ",
        `  ${40 * MEBIBYTE}+8192`,
        `  ${64 * MEBIBYTE - 4096}+4096`,
        "",
      ].join("\n"),
    );
    expect(found.stderr).to.equal("repl-primary: the replica of disk0 differs\n");
    expect(found.code).to.equal(1);
    expect(await pair.primary.succeed("status")).to.match(
      /^! the replica of disk0 differs in 12 KiB: repl-primary verify --repair sends them again$/m,
    );
    const told = await pair.primary.logged("the replica differs", ({ msg }) => msg === "the replica differs");
    expect(told).to.deep.include({ disk: "disk0", differingBytes: 12288 });

    expect(await pair.primary.succeed("verify", "--repair")).to.match(
      /^disk0: .* 12 KiB differ, 12 KiB sent again\n/,
    );
    expect((await fioResult(fio)).error).to.equal(0);
    expect(await pair.primary.succeed("verify")).to.equal(
      "disk0: verify completed: 64 MiB compared, no difference\n",
    );
    expect(await pair.primary.succeed("status")).not.to.match(/^!/m);
    await pair.checkpoint();
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  });

  it("is a block job that a manager slows down, speeds up, cancels and sees the end of", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "64M");
    await pair.primary.withQmp(async (client) => {
      const job = { device: "verify-disk0", type: "verify", len: 64 * MEBIBYTE, speed: 1024 };
      await client.execute("x-repl-verify", { speed: 1024 });
      const [running] = (await client.execute("query-block-jobs")) as object[];
      expect(running).to.deep.include({ ...job, status: "running" });
      const cancelled = client.waitForEvent("BLOCK_JOB_CANCELLED");
      await client.execute("block-job-cancel", { device: "verify-disk0" });
      expect((await cancelled).data).to.deep.include(job);

      await client.execute("x-repl-verify", { speed: 1024 });
      const completed = client.waitForEvent("BLOCK_JOB_COMPLETED", { timeoutMs: 60_000 });
      await client.execute("block-job-set-speed", { device: "verify-disk0", speed: 0 });
      expect((await completed).data).to.deep.equal({ ...job, offset: 64 * MEBIBYTE, speed: 0 });
    });
    const { disks } = await pair.primary.status();
    expect(disks[0]?.primary?.lastVerify).to.deep.include({ outcome: "completed", differingBytes: 0 });
  });
});
