/**
 * COLO's case: the same guest runs on both hosts, on the primary and on the view, made the same at each checkpoint. QEMU
 * does the guests' part by migration, as COLO does; what the second one writes in between is speculation.
 */
import { expect } from "chai";

import { type Guest, useGuests } from "../tools/guest/guest.js";
import { virtioDisk } from "../tools/guest/guest-disk.js";
import { type Pair, startPair } from "../tools/pair.js";
import { useWorkspace } from "../tools/workspace.js";

const RECORDS = 10;
const CHECKPOINTS = 3;

describe("a second guest in lock-step on the view", () => {
  const workspace = useWorkspace();
  const guests = useGuests(workspace);
  let pair: Pair;
  let first: Guest;

  beforeEach(async () => {
    pair = await startPair(workspace);
    first = await guests.start({
      name: "first",
      job: "append",
      disk: virtioDisk(pair.primaryUri(), "first"),
    });
    await first.goesOn(RECORDS);
  });

  interface Twin {
    readonly guest: Guest;
    /** What was acknowledged when both guests were the same; the next record may be on the disk already. */
    readonly common: number;
  }

  /** Makes guests and disks the same on both hosts; both guests go on from there. */
  async function checkpoint(twin: Twin | null): Promise<Twin> {
    await twin?.guest.kill();
    const state = workspace.path("guest.state");
    await first.saveState(state);
    const common = first.lastAcknowledged;
    await pair.checkpoint();
    await first.goOn();
    const disk = virtioDisk(pair.viewUri(), "second");
    const guest = await guests.start({ name: "second", job: "append", disk, incoming: state });
    await guest.goOn();
    return { guest, common };
  }

  it("a checkpoint drops what it wrote, a failover keeps it, and it runs on all through the failover", async () => {
    let twin = await checkpoint(null);
    for (let count = 1; count < CHECKPOINTS; count++) {
      await Promise.all([first.goesOn(RECORDS), twin.guest.goesOn(RECORDS)]);
      twin = await checkpoint(twin);
    }
    await Promise.all([first.goesOn(RECORDS), twin.guest.goesOn(RECORDS)]);
    await pair.primary.process.kill();
    await first.kill();
    await pair.failOver();
    await twin.guest.goesOn(RECORDS);
    await twin.guest.kill();
    const { lastAcknowledged } = twin.guest;

    const third = await guests.start({ name: "third", job: "recover", disk: virtioDisk(pair.viewUri()) });
    const records = await third.recovered();
    const hosts = records.map(({ host }) => host);
    expect(records.length).to.be.within(lastAcknowledged, lastAcknowledged + 1);
    expect(new Set(hosts.slice(0, twin.common))).to.deep.equal(new Set(["first"]));
    expect(new Set(hosts.slice(twin.common + 1))).to.deep.equal(new Set(["second"]));
  });
});
