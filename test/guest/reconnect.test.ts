/** A guest whose NBD client waits for its disk outlives the node that serves it. */
import { expect } from "chai";
import { rename, symlink } from "node:fs/promises";

import { type Guest, useGuests } from "../tools/guest/guest.js";
import { virtioDisk } from "../tools/guest/guest-disk.js";
import { Host } from "../tools/host.js";
import { MEBIBYTE, startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

const RECORDS = 20;
const SWITCH_OVERS = 2;

describe("a whole guest that waits for its disk (reconnect-delay)", () => {
  const workspace = useWorkspace();
  const guests = useGuests(workspace);

  /** As an address that moves from host to host. */
  const pointTo = async (socket: string): Promise<void> => {
    const address = workspace.path("disk.sock");
    await symlink(workspace.path(socket), `${address}.new`);
    await rename(`${address}.new`, address);
  };

  const startGuest = async (): Promise<Guest> => {
    const uri = `nbd+unix:///disk0?socket=${workspace.path("disk.sock")}`;
    const disk = virtioDisk(uri, "host", "file.reconnect-delay=60", "werror=stop,rerror=stop");
    const guest = await guests.start({ name: "first", job: "append", disk });
    await guest.goesOn(RECORDS);
    return guest;
  };

  const expectRecordsOf = async (first: Guest, uri: string): Promise<void> => {
    await first.kill();
    const second = await guests.start({ name: "second", job: "recover", disk: virtioDisk(uri) });
    const records = await second.recovered();
    expect(records.length).to.be.within(first.lastAcknowledged, first.lastAcknowledged + 1);
  };

  it("goes on through a crash and restart of the primary, then through a failover to latest when its address moves", async () => {
    const pair = await startPair(workspace);
    await pointTo("guest.sock");
    const first = await startGuest();

    await pair.primary.process.kill();
    await pair.startPrimary();
    await first.goesOn(RECORDS);
    await pair.synchronised();

    await pair.primary.process.kill();
    await pair.failOver("--to", "latest");
    await pointTo("secondary/view.sock");
    await first.goesOn(RECORDS);
    await expectRecordsOf(first, pair.viewUri());
  });

  it("goes on through switch-overs there and back, when its address moves", async () => {
    const a = new Host(workspace, "a", 64 * MEBIBYTE);
    const b = new Host(workspace, "b", 64 * MEBIBYTE);
    await b.startSecondary();
    await a.startPrimary(b);
    await a.synchronised();
    await pointTo("a.sock");
    const first = await startGuest();

    let [active, other] = [a, b];
    for (let count = 0; count < SWITCH_OVERS; count++) {
      await active.switchOver();
      [active, other] = [other, active];
      await pointTo(`${active.name}.sock`);
      await other.startSecondary();
      await active.attach(other);
      await first.goesOn(RECORDS);
    }
    await expectRecordsOf(first, active.uri);
  });
});
