/** Whole guests: what a guest was told is on its disk, a guest that boots on the other host finds there. */
import { expect } from "chai";

import { useGuests } from "../tools/guest/guest.js";
import { type GuestDisk, kernelNbdDisk, virtioDisk } from "../tools/guest/guest-disk.js";
import { type Pair, startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

/** Enough for several transactions of the journal. */
const RECORDS = 30;

interface Attachment {
  readonly name: string;
  readonly guestDisk: (pair: Pair) => Promise<GuestDisk>;
  readonly viewDisk: (pair: Pair) => Promise<GuestDisk>;
}

const ATTACHMENTS: readonly Attachment[] = [
  {
    name: "virtio-blk on QEMU's NBD client",
    guestDisk: (pair) => Promise.resolve(virtioDisk(pair.primaryUri())),
    viewDisk: (pair) => Promise.resolve(virtioDisk(pair.viewUri())),
  },
  {
    name: "the guest kernel's own nbd-client",
    guestDisk: async (pair) => kernelNbdDisk(await pair.primary.tcpAddress("guest")),
    viewDisk: async (pair) => kernelNbdDisk(await pair.secondary.tcpAddress("view")),
  },
];

describe("a whole guest whose primary is killed", () => {
  const workspace = useWorkspace();
  const guests = useGuests(workspace);

  for (const { name, guestDisk, viewDisk } of ATTACHMENTS) {
    for (const to of ["checkpoint", "latest"] as const) {
      it(`${name}: after a failover to ${to} the journal is replayed, the file system clean, the records there`, async () => {
        const pair = await startPair(workspace, {
          primary: ["--listen", "127.0.0.1:0"],
          secondary: ["--view", `unix:${workspace.path("secondary/view.sock")}`, "--view", "127.0.0.1:0"],
        });
        const first = await guests.start({ name: "first", job: "append", disk: await guestDisk(pair) });
        await first.goesOn(RECORDS);
        const before = first.lastAcknowledged;
        await pair.checkpoint();
        const after = first.lastAcknowledged;
        await first.goesOn(RECORDS);
        await pair.primary.process.kill();
        expect(await first.failure(), "the guest's error").to.match(/^record \d+: /);
        const { lastAcknowledged } = first;
        await pair.failOver("--to", to);

        const second = await guests.start({ name: "second", job: "recover", disk: await viewDisk(pair) });
        const records = await second.recovered();
        // What the guest says may be read late, but not by half of what it went on to write.
        const [least, most] =
          to === "latest" ? [lastAcknowledged, lastAcknowledged + 1] : [before, after + RECORDS / 2];
        expect(records.length).to.be.within(least, most);
      });
    }
  }
});
