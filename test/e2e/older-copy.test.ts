/** Either half of a pair, restored from a copy of its host that was taken while the link held: its dirty map has the right name. */
import { cp, readFile, rm, writeFile } from "node:fs/promises";
import { basename } from "node:path";
import { expect } from "chai";

import { expectPattern, writePattern } from "../tools/clients.js";
import { expectSameContent } from "../tools/disk-files.js";
import { freezeProcess } from "../tools/freeze-process.js";
import type { NodeProcess } from "../tools/node-process.js";
import { type Pair, startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

/** Far from what was written before the copy, so that no extent that was hot then has it. */
const LATER = "48M";

describe("an older copy of a host", () => {
  const workspace = useWorkspace();

  it("as the primary: everything is copied, for its map lacks what the replica got later", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "64k");
    const restore = await copyOf(pair.primary, pair.primaryFile());
    await writePattern(pair.primaryUri(), 0x22, LATER, "64k");
    await pair.checkpoint();
    await pair.primary.process.kill();
    await restore();
    await pair.startPrimary();
    await pair.synchronised();
    await expectPattern(pair.viewUri(), [0x11, "0", "64k"], [0, LATER, "64k"]);
    await pair.secondary.logged("an older copy", ({ msg }) => msg.includes("an older copy of itself"));
    await expectSame(pair);
  });

  it("as the secondary: everything is copied, for it lacks what it had acknowledged later", async () => {
    const pair = await startPair(workspace);
    await writePattern(pair.primaryUri(), 0x11, "0", "64k");
    const restore = await copyOf(pair.secondary, pair.secondaryFile());
    await writePattern(pair.primaryUri(), 0x22, LATER, "64k");
    await pair.checkpoint();
    await pair.secondary.process.kill();
    await restore();
    await pair.startSecondary();
    await pair.synchronised();
    await expectPattern(pair.viewUri(), [0x11, "0", "64k"], [0x22, LATER, "64k"]);
    await pair.primary.logged("an older copy", ({ msg }) => msg.includes("an older copy of itself"));
    await expectSame(pair);
  });

  async function expectSame(pair: Pair): Promise<void> {
    expect(await pair.primary.succeed("verify")).to.include("no difference");
    await pair.primary.succeed("stop");
    await pair.secondary.succeed("stop");
    await expectSameContent(pair.primaryFile(), pair.secondaryFile());
  }
});

/** As a snapshot of its host has it. @returns puts it back, into the same disk file, once the node has ended */
async function copyOf(node: NodeProcess, disk: string): Promise<() => Promise<void>> {
  const { stateDirectory } = node;
  const copy = `${stateDirectory}.copy`;
  await freezeProcess(node.process.pid);
  const isState = (path: string): boolean => !path.endsWith(".sock") && basename(path) !== "lock";
  await cp(stateDirectory, copy, { recursive: true, filter: isState });
  const content = await readFile(disk);
  node.process.signal("SIGCONT");
  return async () => {
    await rm(stateDirectory, { recursive: true });
    await cp(copy, stateDirectory, { recursive: true });
    await writeFile(disk, content, { flag: "r+" });
  };
}
