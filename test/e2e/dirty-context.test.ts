/** The metadata context that tells what the replica lacks, as clients of QEMU's bitmaps read it. */
import { expect } from "chai";

import { writePattern } from "../tools/clients.js";
import { LinkProxy } from "../tools/link-proxy.js";
import { MEBIBYTE, startPair } from "../tools/pair.js";
import { succeed } from "../tools/process.js";
import { useWorkspace } from "../tools/workspace.js";

interface MapEntry {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
}

describe("dirty context of a primary's export", () => {
  const workspace = useWorkspace();

  const dirtyRanges = async (uri: string): Promise<[offset: number, lengthBytes: number][]> => {
    const text = await succeed("nbdinfo", ["--map=qemu:dirty-bitmap:replica", "--json", uri]);
    const entries = JSON.parse(text) as MapEntry[];
    return entries.filter(({ type }) => type === 1).map(({ offset, length }) => [offset, length]);
  };

  it("names the blocks written while the replica was away, to nbdinfo and qemu-img, and none when it is back", async () => {
    const links: LinkProxy[] = [];
    const through = async (address: string): Promise<string> => {
      const link = await LinkProxy.start(workspace, address);
      links.push(link);
      return link.address;
    };
    const pair = await startPair(workspace, {
      primary: ["--replica-timeout", "1s"],
      route: async ({ replication, qmp }) => ({
        replication: await through(replication),
        qmp: await through(qmp),
      }),
    });
    await pair.synchronised();
    const uri = pair.primaryUri();
    await writePattern(uri, 0x11, "0", "1M");
    await pair.checkpoint();
    expect(await dirtyRanges(uri)).to.deep.equal([]);

    for (const link of links) link.cut();
    await writePattern(uri, 0x22, "2M", "128k");
    await writePattern(uri, 0x33, "5M", "64k");
    const lacking = [
      [2 * MEBIBYTE, 128 * 1024],
      [5 * MEBIBYTE, 64 * 1024],
    ];
    expect(await dirtyRanges(uri)).to.deep.equal(lacking);

    const socket = workspace.path("guest.sock");
    const image = {
      driver: "nbd",
      server: { type: "unix", path: socket },
      export: "disk0",
      "x-dirty-bitmap": "qemu:dirty-bitmap:replica",
    };
    const map = await succeed("qemu-img", ["map", "--output=json", `json:${JSON.stringify(image)}`]);
    // With x-dirty-bitmap, QEMU shows dirty blocks as those without data.
    const shown = (JSON.parse(map) as { start: number; length: number; data: boolean }[])
      .filter(({ data }) => !data)
      .map(({ start, length }) => [start, length]);
    expect(shown).to.deep.equal(lacking);

    for (const link of links) link.heal();
    await pair.synchronised();
    expect(await dirtyRanges(uri)).to.deep.equal([]);
  });
});
