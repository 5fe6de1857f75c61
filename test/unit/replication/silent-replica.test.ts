/** A replica that lets a primary connect and takes no content: what guests wait for, in virtual time. */
import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { Deferred } from "../../../src/deferred.js";
import { LinkError } from "../../../src/errors.js";
import { QmpError } from "../../../src/qmp/errors.js";
import { isSettled, turns } from "../../tools/outcome.js";
import { commandsOf, LonePrimary, MEBIBYTE } from "./lone-primary.js";

const BLOCK = Buffer.alloc(4096, 0x22);

describe("a replica that fell silent", () => {
  let lone: LonePrimary;

  beforeEach(async () => {
    lone = await LonePrimary.open();
  });

  const expectTheSame = async (): Promise<void> => {
    const { time, primary, medium, copy } = lone;
    await lone.replicates();
    expect(copy.contents().equals(medium.contents())).to.equal(true);
    await time.until(primary.close());
  };

  it("is not waited for again before it has taken a block, and then gets all that it lacks", async () => {
    const { time, primary, guest, theirs } = lone;
    const held = theirs.hold({ operation: "write" });
    await time.until(guest.write(7 * MEBIBYTE, BLOCK, Flag.None));
    expect(primary.link?.lastError?.message).to.equal("the replica has not answered for 5000 ms");
    for (let connection = 1; connection <= 3; connection++) {
      // One that is behind those of the connections before, which nobody waits for any more.
      await time.until(held.arrived(1 + connection));
      const write = guest.write(6 * MEBIBYTE, BLOCK, Flag.None);
      await turns(20);
      expect(await isSettled(write), `connection ${connection}`).to.equal(true);
      await turns(20);
      expect(held.requests.length).to.equal(1 + connection);
    }
    held.release();
    await expectTheSame();
  });

  it("and has lost its memory before a try that fails gets what it had there, though it has kept its memory since", async () => {
    const { time, guest, theirs, copy } = lone;
    const [flushes, writes] = [
      theirs.hold({ operation: "flush" }),
      theirs.hold({ operation: "write", skip: 1 }),
    ];
    await time.until(guest.write(7 * MEBIBYTE, BLOCK, Flag.None));
    await time.until(guest.write(0, BLOCK, Flag.None));
    // It was started anew, without what it had not flushed.
    lone.memory = "second";
    copy.fill(7 * MEBIBYTE, Buffer.alloc(BLOCK.length, 0x11));
    await time.until(writes.arrived(3));
    flushes.release();
    writes.release();
    await expectTheSame();
  });

  it("when it was asked for digests: is not waited for again, nor asked, before it has all that it lacks", async () => {
    const { time, primary, guest, theirs } = lone;
    const unanswered: Deferred<never>[] = [];
    const asked = new Deferred<undefined>();
    lone.commands = commandsOf(() => {
      const answer = new Deferred<never>();
      unanswered.push(answer);
      asked.resolve(undefined);
      return answer.promise;
    });
    primary.link?.giveUp(new LinkError("connection-lost", "for a moment"));
    await turns(20);
    await time.until(guest.write(7 * MEBIBYTE, BLOCK, Flag.None));
    await time.until(asked.promise);
    const held = theirs.hold({ operation: "write" });
    const write = guest.write(7 * MEBIBYTE, BLOCK, Flag.None);
    await turns(20);
    expect(await isSettled(write), "it waits for the answer").to.equal(false);
    const once = unanswered.length;
    for (const answer of unanswered) answer.reject(new LinkError("timeout", "no answer"));
    await turns(20);
    expect(await isSettled(write)).to.equal(true);
    expect(primary.link?.lastError?.message).to.equal("the replica has told no digests for 5000 ms");
    await time.until(held.arrived(1));
    held.release();
    await lone.replicates();
    expect(unanswered.length).to.equal(once);
    lone.commands = commandsOf(() => {
      unanswered.push(new Deferred());
      return Promise.reject(new QmpError("GenericError", "x", "it tells no digests"));
    });
    primary.link?.giveUp(new LinkError("connection-lost", "for a moment"));
    await turns(20);
    await time.until(guest.write(7 * MEBIBYTE, BLOCK, Flag.None));
    await expectTheSame();
    expect(unanswered.length, "it has had all, and is asked again").to.equal(once + 1);
  });

  it("is not sent the old content of a block of which it has a change that is still under way here", async () => {
    const { time, guest, ours, theirs, copy } = lone;
    const slow = ours.hold({ operation: "write", offset: 0, lengthBytes: BLOCK.length });
    const change = guest.write(0, BLOCK, Flag.None);
    await turns(20);
    expect(copy.contents(0, BLOCK.length).equals(BLOCK), "it has the change").to.equal(true);
    const held = theirs.hold({ operation: "write", offset: 7 * MEBIBYTE, lengthBytes: BLOCK.length });
    await time.until(guest.write(7 * MEBIBYTE, BLOCK, Flag.None));
    await time.until(time.sleep(20_000));
    expect(copy.contents(0, BLOCK.length).equals(BLOCK), "it still has it").to.equal(true);
    slow.release();
    held.release();
    await time.until(change);
    await expectTheSame();
  });
});
