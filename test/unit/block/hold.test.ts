import { expect } from "chai";

import { held } from "../../../src/block/filters/held.js";
import { Flag } from "../../../src/block/device.js";
import { Hold } from "../../../src/block/hold.js";
import { Deferred } from "../../../src/deferred.js";
import { FailingDevice } from "../../tools/failing-device.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { isSettled, outcome } from "../../tools/outcome.js";

describe("block/hold", () => {
  let hold: Hold;
  let said: string[];

  beforeEach(() => {
    said = [];
    hold = new Hold({
      waiting: () => said.push("waiting"),
      goOn: (changes) => said.push(`${changes} go on`),
    });
  });

  /** A change that is under way until told to end. */
  function underWay(): { change: Promise<void>; end: Deferred<undefined> } {
    const end = new Deferred<undefined>();
    return { change: hold.change(() => end.promise), end };
  }

  it("shut: changes and zeroes and trims wait, reads, extents and flushes pass", async () => {
    const disk = new FailingDevice(new MemoryDevice(4096));
    const device = held(disk, hold);
    hold.shut();
    const changes = [
      device.write(0, Buffer.alloc(512, 1), Flag.None),
      device.zero(512, 512, Flag.None),
      device.trim(1024, 512, Flag.None),
    ];
    await device.read(0, Buffer.alloc(512));
    await device.extents(0, 512, 1);
    await device.flush();
    expect(await Promise.all(changes.map(isSettled))).to.deep.equal([false, false, false]);
    expect(hold.waiting).to.equal(3);
    hold.open();
    await Promise.all(changes);
    expect(disk.log.map(({ operation }) => operation)).to.deep.equal([
      "read",
      "extents",
      "flush",
      "write",
      "zero",
      "trim",
    ]);
    expect(said).to.deep.equal(["waiting", "3 go on"]);
  });

  it("those that waited begin before any that comes later", async () => {
    const begun: number[] = [];
    const begin = (number: number): Promise<void> => {
      begun.push(number);
      return Promise.resolve();
    };
    hold.shut();
    const waiting = [1, 2].map((number) => hold.change(() => begin(number)));
    hold.open();
    await hold.change(() => begin(3));
    await Promise.all(waiting);
    expect(begun).to.deep.equal([1, 2, 3]);
  });

  it("a change during which the replica failed ends when it is whole, one that began later at once", async () => {
    const first = underWay();
    hold.failed();
    first.end.resolve(undefined);
    hold.open();
    await hold.change(() => Promise.resolve());
    expect(await isSettled(first.change)).to.equal(false);
    expect(hold.waiting).to.equal(1);
    hold.whole(hold.failures);
    await first.change;
    expect(said).to.deep.equal(["waiting", "1 go on"]);
  });

  it("a change that ends only when its failure is mended does not wait", async () => {
    const late = underWay();
    hold.failed();
    hold.whole(hold.failures);
    late.end.resolve(undefined);
    await late.change;
    expect(said).to.deep.equal([]);
  });

  it("a failure while the replica was mended: it is not whole", async () => {
    const { change, end } = underWay();
    hold.failed();
    end.resolve(undefined);
    const { failures } = hold;
    hold.failed();
    hold.whole(failures);
    expect(await isSettled(change)).to.equal(false);
    expect(await isSettled(hold.change(() => Promise.resolve()))).to.equal(false);
    hold.release();
    await change;
  });

  it("a change during which the replica failed is refused if it ends after the end of the node", async () => {
    const { change, end } = underWay();
    hold.failed();
    hold.end();
    end.resolve(undefined);
    expect(await outcome(change)).to.equal("ESHUTDOWN");
  });

  it("an error of the primary disk does not wait", async () => {
    const { change, end } = underWay();
    hold.failed();
    end.reject(new Error("EIO"));
    expect(await change.catch((error: unknown) => String(error))).to.equal("Error: EIO");
  });

  it("at the end what waits is refused, and what would have to wait; what need not goes on", async () => {
    const ending = underWay();
    hold.failed();
    ending.end.resolve(undefined);
    const beginning = hold.change(() => expect.fail("it began"));
    await isSettled(ending.change);
    hold.end();
    expect(await outcome(ending.change)).to.equal("ESHUTDOWN");
    expect(await outcome(beginning)).to.equal("ESHUTDOWN");
    expect(await outcome(underWay().change)).to.equal("ESHUTDOWN");
    hold.release();
    expect(await outcome(hold.change(() => Promise.resolve()))).to.equal("done");
  });
});
