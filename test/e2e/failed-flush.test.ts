/** A disk that fails to keep what the kernel took for it: a flush fails, and the page cache goes on showing what is lost. */
import { expect } from "chai";
import { truncate, writeFile } from "node:fs/promises";

import { Flag } from "../../src/block/device.js";
import { connectNbd } from "../../src/nbd/client/connect.js";
import { parseNbdUri } from "../../src/nbd/uri.js";
import { expectPattern, qemuIo, tryQemuIo, writePattern } from "../tools/clients.js";
import { CrampedFileSystem } from "../tools/cramped-file-system.js";
import { expectSameContent } from "../tools/disk-files.js";
import type { NodeProcess } from "../tools/node-process.js";
import { MEBIBYTE, type Pair, startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 8 * MEBIBYTE;

interface Cramped {
  readonly fileSystem: CrampedFileSystem;
  readonly files: { readonly primary: string; readonly secondary: string };
  readonly pair: Pair;
}

describe("a disk whose flush failed, of a node that is started anew on the same host", () => {
  const workspace = useWorkspace();

  const makeDisk = async (path: string): Promise<void> => {
    await writeFile(path, "");
    await truncate(path, SIZE_BYTES);
  };

  /** A pair of which one disk lies where writing back may fail. */
  const startOnCramped = async (cramped: "primary" | "secondary"): Promise<Cramped> => {
    const fileSystem = await CrampedFileSystem.make(workspace);
    const pathOf = (role: "primary" | "secondary"): string =>
      role === cramped ? fileSystem.path("disk0.img") : workspace.path(`${role}-disk0.img`);
    const files = { primary: pathOf("primary"), secondary: pathOf("secondary") };
    for (const file of Object.values(files)) await makeDisk(file);
    return { fileSystem, files, pair: await startPair(workspace, { diskPath: (role) => files[role] }) };
  };

  const kill = async (node: NodeProcess): Promise<void> => {
    node.process.signal("SIGKILL");
    await node.process.ended();
  };

  it("secondary: what it lost is sent again, and is there after a power loss", async () => {
    const { fileSystem, files, pair } = await startOnCramped("secondary");
    await writePattern(pair.primaryUri(), 0x11, "0", "64k");
    await pair.checkpoint();

    await fileSystem.fill();
    await writePattern(pair.primaryUri(), 0x22, "4M", "64k");
    await pair.primary.waitForStatus("flush failed", ({ primary }) => primary?.link.lastError !== null);
    await fileSystem.makeRoom();
    await kill(pair.secondary);

    await pair.startSecondary();
    await pair.synchronised();
    await pair.checkpoint();
    await kill(pair.secondary);
    await fileSystem.remount();
    await expectSameContent(files.primary, files.secondary);
  });

  it("primary: the guest sees what the disk has, and not what a power loss will cost", async () => {
    const { fileSystem, files, pair } = await startOnCramped("primary");
    await writePattern(pair.primaryUri(), 0x11, "0", "64k");

    await fileSystem.fill();
    const { code, stdout } = await tryQemuIo(pair.primaryUri(), "write -P 0x22 4M 64k", "flush");
    expect(code === 0 && !stdout.includes("failed"), "the flush fails").to.equal(false);
    expect((await pair.primary.status()).brokenPromise).to.match(/^disk disk0 may lack what was written/);
    expect(await pair.primary.succeed("metrics")).to.include(
      'nbd_replication_promise_broken{role="primary"} 1\n',
    );
    await fileSystem.makeRoom();
    await kill(pair.primary);

    await pair.startPrimary();
    await expectPattern(pair.primaryUri(), [0x11, "0", "64k"], [0, "4M", "64k"]);
    await pair.synchronised();
    await pair.checkpoint();
    await kill(pair.primary);
    await fileSystem.remount();
    await expectSameContent(files.primary, files.secondary);
  });

  it("primary: a guest that outlives it hears, when it flushes, that what it was told may be lost", async () => {
    const { fileSystem, files, pair } = await startOnCramped("primary");
    await fileSystem.fill();
    const guest = await connectNbd(parseNbdUri(pair.primaryUri()));
    await guest.write(4 * MEBIBYTE, Buffer.alloc(65536, 0x22), Flag.None);
    // The kernel writes back, in vain, before anybody flushes.
    await fileSystem.writeBack();
    await fileSystem.makeRoom();
    await kill(pair.primary);

    await pair.startPrimary();
    const { code, stdout } = await tryQemuIo(pair.primaryUri(), "flush");
    expect(code === 0 && !stdout.includes("failed"), "the first flush fails").to.equal(false);
    await kill(pair.primary);
    await pair.startPrimary();
    await qemuIo(pair.primaryUri(), "read -P 0 4M 64k", "write -P 0x33 4M 4k", "flush");
    await pair.synchronised();
    await pair.checkpoint();
    await expectSameContent(files.primary, files.secondary);
  });
});
