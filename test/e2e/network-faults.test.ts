/**
 * The network fails in each of its ways at each step of the protocol: the guest's writes complete, the pair gets in
 * step again by itself once the network is well, and a checkpoint that was reported is there.
 */
import { expect } from "chai";
import { setTimeout as sleep } from "node:timers/promises";

import { connectNbd } from "../../src/nbd/client/connect.js";
import { parseNbdUri } from "../../src/nbd/uri.js";
import { expectSameContent } from "../tools/disk-files.js";
import { LinkProxy } from "../tools/link-proxy.js";
import { NumberedGuest } from "../tools/numbered-guest.js";
import { isSettled } from "../tools/outcome.js";
import { MEBIBYTE, type Pair, startPair } from "../tools/pair.js";
import { Random, SEED } from "../tools/seed.js";
import { waitFor } from "../tools/wait-for.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 8 * MEBIBYTE;
/** The guest writes here, with so many requests in flight. */
const PLACE_BYTES = MEBIBYTE;
const DEPTH = 4;
/** Writes that have to be acknowledged while the network is ill: more than can have been under way. */
const WRITES_MEANWHILE = 5 * DEPTH;
/** Where numbers tell which checkpoint is which. */
const MARKER_OFFSET = 4 * MEBIBYTE;
const MARKER_BYTES = 512;
/** An NBD write request without flags. */
const WRITE_REQUEST = Buffer.from("256095130000" + "0001", "hex");

interface Links {
  readonly data: LinkProxy;
  readonly control: LinkProxy;
}

const FAULTS = {
  "is cut": (link: LinkProxy) => {
    link.cut();
  },
  stalls: (link: LinkProxy) => {
    link.stall();
  },
  "swallows everything": (link: LinkProxy) => {
    link.blackHole();
  },
  "is slow": (link: LinkProxy) => {
    link.delay();
  },
  trickles: (link: LinkProxy) => {
    link.trickle();
  },
  "is half open, the secondary gone": (link: LinkProxy) => {
    link.halfOpen("far");
  },
  "is half open, the primary gone": (link: LinkProxy) => {
    link.halfOpen("near");
  },
} as const;

type Fail = () => void;

/** What brings the pair to a moment; resolves when it has come. */
interface Moment {
  readonly arm: (links: Links, fail: Fail) => Promise<unknown>;
  readonly provoke: "reconnect" | "checkpoint" | "nothing";
}

const MOMENTS: Readonly<Record<string, Moment>> = {
  "NBD handshake": {
    arm: ({ data }, fail) => data.when(fail, ["near", "NBDMAGIC"]),
    provoke: "reconnect",
  },
  "x-repl-handshake": {
    arm: ({ control }, fail) => control.when(fail, ["far", '"x-repl-handshake"']),
    provoke: "reconnect",
  },
  resync: {
    arm: ({ data }, fail) => data.when(fail, ["near", "NBDMAGIC"], ["far", WRITE_REQUEST]),
    provoke: "reconnect",
  },
  "steady writes": {
    arm: ({ data }, fail) => data.when(fail, ["far", WRITE_REQUEST]),
    provoke: "nothing",
  },
  "checkpoint request": {
    arm: ({ control }, fail) => control.when(fail, ["far", '"x-repl-checkpoint"']),
    provoke: "checkpoint",
  },
  "checkpoint answer": {
    arm: ({ control }, fail) => control.when(fail, ["far", '"x-repl-checkpoint"'], ["near", '"return"']),
    provoke: "checkpoint",
  },
  "checkpoint event": {
    arm: ({ control }, fail) => control.when(fail, ["near", '"X_REPL_CHECKPOINT"']),
    provoke: "checkpoint",
  },
};

describe("a link that fails at any step of the protocol", () => {
  const workspace = useWorkspace();

  async function startRoutedPair(): Promise<{ pair: Pair; links: Links }> {
    const links: LinkProxy[] = [];
    const through = async (address: string): Promise<string> => {
      const link = await LinkProxy.start(workspace, address);
      links.push(link);
      return link.address;
    };
    const pair = await startPair(workspace, {
      sizeBytes: SIZE_BYTES,
      primary: ["--replica-timeout", "500ms"],
      route: async ({ replication, qmp }) => ({
        replication: await through(replication),
        qmp: await through(qmp),
      }),
    });
    const [data, control] = links;
    if (data === undefined || control === undefined) throw new Error("the pair was not routed");
    return { pair, links: { data, control } };
  }

  async function readMarker(uri: string): Promise<number> {
    const device = await connectNbd(parseNbdUri(uri));
    const content = Buffer.alloc(MARKER_BYTES);
    await device.read(MARKER_OFFSET, content);
    await device.close();
    return content.readUInt32LE(0);
  }

  async function writeMarker(uri: string, marker: number): Promise<void> {
    const device = await connectNbd(parseNbdUri(uri));
    const content = Buffer.alloc(MARKER_BYTES);
    content.writeUInt32LE(marker, 0);
    await device.write(MARKER_OFFSET, content, 0);
    await device.close();
  }

  for (const [name, fail] of Object.entries(FAULTS)) {
    it(`${name}: writes complete, the pair gets in step, reported checkpoints and switch-overs hold (seed ${SEED})`, async () => {
      const { pair, links } = await startRoutedPair();
      const both = [links.data, links.control];
      const failBoth = (): void => {
        both.forEach(fail);
      };
      const healBoth = (): void => {
        for (const link of both) link.heal();
      };
      const guest = new NumberedGuest(new Random(SEED), [0], PLACE_BYTES);
      const device = await connectNbd(parseNbdUri(pair.primaryUri()));
      const state = { isOver: false };
      const isOver = (): boolean => state.isOver;

      let marker = 0;
      for (const [moment, { arm, provoke }] of Object.entries(MOMENTS)) {
        workspace.note(`moment: ${moment}`);
        state.isOver = false;
        const written = guest.write(device, DEPTH, isOver, () => sleep(1));
        await writeMarker(pair.primaryUri(), ++marker);
        const hasCome = arm(links, failBoth);
        let checkpoint: Promise<boolean> = Promise.resolve(false);
        if (provoke === "reconnect") for (const link of both) link.reset();
        if (provoke === "checkpoint") {
          checkpoint = pair.checkpoint().then(
            () => true,
            () => false,
          );
        }
        await hasCome;
        const enough = guest.acknowledgements + WRITES_MEANWHILE;
        await waitFor(
          `writes of the guest after the fault (${moment})`,
          () => guest.acknowledgements,
          (acknowledged) => acknowledged >= enough,
        );
        healBoth();
        if (await checkpoint) expect(await readMarker(pair.viewUri()), moment).to.be.at.least(marker);
        await pair.synchronised();
        state.isOver = true;
        expect(await written, moment).to.deep.equal([]);
        await pair.checkpoint();
        await expectSameContent(pair.primaryFile(), pair.secondaryFile());
        await guest.check(pair.secondaryFile());
        expect(await readMarker(pair.viewUri()), moment).to.equal(marker);
      }

      workspace.note("moment: take-over");
      state.isOver = false;
      const written = guest.write(device, DEPTH, isOver, () => sleep(1));
      const hasCome = links.control.when(failBoth, ["far", '"x-repl-take-over"']);
      const switchedOver = pair.primary.verb("switch-over");
      await hasCome;
      // Longer than an answer is waited for, unless it comes in time.
      for (let turn = 0; turn < 12 && !(await isSettled(switchedOver)); turn++) await sleep(50);
      healBoth();
      const { code, stderr } = await switchedOver;
      expect(code, stderr).to.equal(0);
      expect((await pair.primary.process.ended()).code).to.equal(0);
      state.isOver = true;
      await written;
      device.destroy(new Error("the test is over"));
      expect(await readMarker(pair.viewUri())).to.equal(marker);
      await pair.secondary.succeed("stop");
      await guest.check(pair.secondaryFile());
      await expectSameContent(pair.primaryFile(), pair.secondaryFile());
    });
  }
});
