/** A guest whose NBD client waits for its disk outlives the node that serves it. */
import { expect } from "chai";
import { rename, symlink } from "node:fs/promises";

import { useGuests } from "../tools/guest/guest.js";
import { virtioDisk } from "../tools/guest/guest-disk.js";
import { startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

const RECORDS = 20;

describe("a whole guest that waits for its disk (reconnect-delay)", () => {
  const workspace = useWorkspace();
  const guests = useGuests(workspace);

  it("goes on through a crash and restart of the primary, then through a failover to latest when its address moves", async () => {
    const pair = await startPair(workspace);
    const address = workspace.path("disk.sock");
    // As an address that moves from host to host.
    const pointTo = async (socket: string): Promise<void> => {
      await symlink(socket, `${address}.new`);
      await rename(`${address}.new`, address);
    };
    await pointTo(workspace.path("guest.sock"));
    const disk = virtioDisk(
      `nbd+unix:///disk0?socket=${address}`,
      "host",
      "file.reconnect-delay=60",
      "werror=stop,rerror=stop",
    );
    const first = await guests.start({ name: "first", job: "append", disk });
    await first.goesOn(RECORDS);

    await pair.primary.process.kill();
    await pair.startPrimary();
    await first.goesOn(RECORDS);
    await pair.synchronised();

    await pair.primary.process.kill();
    await pair.failOver("--to", "latest");
    await pointTo(workspace.path("secondary/view.sock"));
    await first.goesOn(RECORDS);
    await first.kill();

    const second = await guests.start({ name: "second", job: "recover", disk: virtioDisk(pair.viewUri()) });
    const records = await second.recovered();
    expect(records.length).to.be.within(first.lastAcknowledged, first.lastAcknowledged + 1);
  });
});
