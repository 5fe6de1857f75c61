/**
 * Nodes killed at random under load, again and again: what a guest was told is there, the disks are the same, and
 * only what was written to lately travels again.
 */
import { expect } from "chai";

import { connectNbd } from "../../src/nbd/client/connect.js";
import { parseNbdUri } from "../../src/nbd/uri.js";
import { expectSameContent } from "../tools/disk-files.js";
import { NumberedGuest } from "../tools/numbered-guest.js";
import { MEBIBYTE, type Pair, startPair } from "../tools/pair.js";
import { Random, SEED } from "../tools/seed.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 512 * MEBIBYTE;
/** Where the guest writes to: two places of the disk. */
const PLACES = [16 * MEBIBYTE, 400 * MEBIBYTE];
const PLACE_BYTES = 8 * MEBIBYTE;
const ROUNDS = 4;
/** Extents of 4 MiB that the guest writes to. */
const HOT_BYTES = PLACES.length * PLACE_BYTES;

describe("nodes that are killed at random under load", () => {
  const workspace = useWorkspace();

  async function resyncedBytes(pair: Pair): Promise<number> {
    const { disks } = await pair.primary.status();
    return disks[0]?.primary?.bytesResynced ?? Number.NaN;
  }

  for (const ackMode of ["async", "memsync", "sync"] as const) {
    it(`ack mode ${ackMode}: nothing that was acknowledged is lost, the disks are the same, only hot extents are copied`, async () => {
      const random = new Random(SEED);
      const guest = new NumberedGuest(random, PLACES, PLACE_BYTES);
      const pair = await startPair(workspace, {
        sizeBytes: SIZE_BYTES,
        primary: ["--ack-mode", ackMode, "--checkpoint-interval", "50ms"],
      });
      let copied = 0;
      for (let round = 0; round < ROUNDS; round++) {
        const device = await connectNbd(parseNbdUri(pair.primaryUri()));
        const state = { isOver: false };
        const written = guest.write(device, 16, () => state.isOver);
        const enough = guest.acknowledgedBlocks + 100 + random.below(400);
        for (let turns = 0; turns < 2000 && guest.acknowledgedBlocks < enough; turns++) {
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
        const victim = random.oneOf(["primary", "secondary", "both"] as const);
        const before = victim === "secondary" ? await resyncedBytes(pair) : 0;
        if (victim !== "secondary") await pair.primary.process.kill();
        if (victim !== "primary") await pair.secondary.process.kill();
        state.isOver = true;
        await written;
        device.destroy(new Error("the round is over"));
        await guest.check(pair.primaryFile());
        if (victim !== "primary") await pair.startSecondary();
        if (victim !== "secondary") await pair.startPrimary();
        await pair.synchronised();
        const sent = (await resyncedBytes(pair)) - before;
        expect(sent, `seed ${SEED}, round ${round}: ${victim}`).to.be.at.most(HOT_BYTES);
        copied += sent;
      }
      expect(copied, "something was lost and copied again").to.be.greaterThan(0);
      await pair.primary.succeed("stop");
      await pair.secondary.succeed("stop");
      await guest.check(pair.primaryFile());
      await expectSameContent(pair.primaryFile(), pair.secondaryFile());
    });
  }
});
