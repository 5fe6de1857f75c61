/**
 * Hosts that lose their power under load: real nodes on real file systems whose disks lose any part of what was not flushed, and the
 * page cache with it.
 */
import { expect } from "chai";
import { readFile, truncate, writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

import { connectNbd } from "../../src/nbd/client/connect.js";
import type { NbdDevice } from "../../src/nbd/client/device.js";
import { parseNbdUri } from "../../src/nbd/uri.js";
import { expectSameContent } from "../tools/disk-files.js";
import { ForgetfulFileSystem } from "../tools/forgetful-file-system.js";
import { freezeProcess } from "../tools/freeze-process.js";
import { NumberedGuest } from "../tools/numbered-guest.js";
import { MEBIBYTE, type Pair, startPair } from "../tools/pair.js";
import { Random, SEED } from "../tools/seed.js";
import { useWorkspace } from "../tools/workspace.js";

const SIZE_BYTES = 8 * MEBIBYTE;
const ROUNDS = 3;

type Role = "primary" | "secondary";

describe("hosts that lose their power under load", function () {
  this.timeout(120_000);
  // Before the file systems go away.
  afterEach(async () => {
    for (const role of [pair.primary, pair.secondary]) await role.process.kill();
  });
  const workspace = useWorkspace();
  let random: Random;
  let hosts: Readonly<Record<Role, ForgetfulFileSystem>>;
  let files: Readonly<Record<Role, string>>;
  let pair: Pair;
  let guest: NumberedGuest;

  async function start(...options: readonly string[]): Promise<void> {
    random = new Random(SEED);
    guest = new NumberedGuest(random, [0, 6 * MEBIBYTE], 2 * MEBIBYTE);
    // A file system of its own for all that a host has: its disk lies in the state directory.
    hosts = {
      primary: await ForgetfulFileSystem.make(workspace, "primary"),
      secondary: await ForgetfulFileSystem.make(workspace, "secondary"),
    };
    files = {
      primary: workspace.path("primary/disk0.img"),
      secondary: workspace.path("secondary/disk0.img"),
    };
    for (const file of Object.values(files)) {
      await writeFile(file, "");
      await truncate(file, SIZE_BYTES);
    }
    pair = await startPair(workspace, { diskPath: (role) => files[role], primary: options });
  }

  async function losePower(role: Role): Promise<void> {
    const { process } = role === "primary" ? pair.primary : pair.secondary;
    await hosts[role].losePower(random, () => process.kill());
  }

  /**
   * The guest is at work, and flushes now and then, until `during` has resolved or its server is gone.
   * @returns the errors that it was told
   */
  async function underLoad(during: () => Promise<void>): Promise<unknown[]> {
    const device = await connectNbd(parseNbdUri(pair.primaryUri()));
    const state = { isOver: false };
    const isOver = (): boolean => state.isOver;
    const written = guest.write(device, 16, isOver);
    const flushed = flushAgainAndAgain(device, isOver);
    const enough = guest.acknowledgements + 500 + random.below(2000);
    for (let turns = 0; turns < 2000 && guest.acknowledgements < enough; turns++) await sleep(5);
    await during();
    state.isOver = true;
    const errors = [...(await written), ...(await flushed)];
    device.destroy(new Error("the round is over"));
    return errors;
  }

  /** @returns as underLoad() */
  async function flushAgainAndAgain(device: NbdDevice, isOver: () => boolean): Promise<unknown[]> {
    const errors: unknown[] = [];
    while (!isOver()) {
      await sleep(random.below(50));
      await guest.flush(device).catch((error: unknown) => errors.push(error));
    }
    return errors;
  }

  /** Of a checkpoint that is taken while nobody writes. */
  async function checkpointContent(): Promise<Buffer> {
    await pair.checkpoint();
    return contentOf(pair.primaryUri());
  }

  async function contentOf(uri: string): Promise<Buffer> {
    const device = await connectNbd(parseNbdUri(uri));
    const content = Buffer.alloc(SIZE_BYTES);
    await device.read(0, content);
    await device.close();
    return content;
  }

  async function expectView(expected: Buffer, round: number): Promise<void> {
    const view = await contentOf(pair.viewUri());
    expect(view.equals(expected), `seed ${SEED}, round ${round}: the view shows the checkpoint`).to.equal(
      true,
    );
  }

  async function expectTheSameAtRest(): Promise<void> {
    await pair.synchronised();
    await pair.primary.succeed("stop");
    await pair.secondary.succeed("stop");
    await guest.check(files.primary);
    await expectSameContent(files.primary, files.secondary);
  }

  it("the primary's: what its guest flushed is there, and the replica gets what differs", async () => {
    await start();
    for (let round = 0; round < ROUNDS; round++) {
      await underLoad(() => losePower("primary"));
      await guest.checkFlushed(files.primary);
      await guest.adopt(files.primary);
      await pair.startPrimary();
      await pair.synchronised();
    }
    await expectTheSameAtRest();
  });

  it("the secondary's: it shows the last checkpoint, and gets what it lost, and what it missed", async () => {
    await start();
    for (let round = 0; round < ROUNDS; round++) {
      const checkpoint = await checkpointContent();
      expect(await underLoad(() => losePower("secondary"))).to.deep.equal([]);
      // A resync ends with a checkpoint: it waits until the view was looked at.
      await freezeProcess(pair.primary.process.pid);
      await pair.startSecondary();
      await expectView(checkpoint, round);
      pair.primary.process.signal("SIGCONT");
      await pair.synchronised();
    }
    await expectTheSameAtRest();
  });

  it("both: in ack mode sync what was flushed is on either, and the replica shows the last checkpoint", async () => {
    await start("--ack-mode", "sync");
    for (let round = 0; round < ROUNDS; round++) {
      const checkpoint = await checkpointContent();
      const order =
        random.below(2) === 0 ? (["primary", "secondary"] as const) : (["secondary", "primary"] as const);
      await underLoad(async () => {
        for (const role of order) await losePower(role);
      });
      if (order[0] === "primary") await guest.checkFlushed(files.secondary);
      await guest.checkFlushed(files.primary);
      await guest.adopt(files.primary);
      await pair.startSecondary();
      await expectView(checkpoint, round);
      await pair.startPrimary();
      await pair.synchronised();
    }
    await expectTheSameAtRest();
  });

  it("the secondary's, while it fails over: it goes on to the checkpoint, and nothing else", async () => {
    await start();
    const checkpoint = await checkpointContent();
    await underLoad(async () => {
      await pair.primary.process.kill();
    });
    await pair.secondary.withQmp((client) => client.execute("x-repl-failover"));
    for (let round = 0; round < ROUNDS; round++) {
      await losePower("secondary");
      await pair.startSecondary();
      await expectView(checkpoint, round);
    }
    await pair.secondary.waitForStatus("failover done", ({ stage }) => stage === "done");
    await pair.secondary.succeed("stop");
    expect((await readFile(files.secondary)).equals(checkpoint)).to.equal(true);
  });
});
