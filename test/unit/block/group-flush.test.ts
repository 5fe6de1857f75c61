import { expect } from "chai";

import { GroupFlush } from "../../../src/block/group-flush.js";

/** Flushes that end when told to. */
class Disk {
  readonly running: { readonly resolve: () => void; readonly reject: (error: Error) => void }[] = [];
  started = 0;

  readonly sync = (): Promise<void> => {
    this.started++;
    return new Promise((resolve, reject) => {
      this.running.push({ resolve, reject });
    });
  };

  end(error?: Error): void {
    const oldest = this.running.shift();
    if (oldest === undefined) throw new Error("no flush is running");
    if (error === undefined) oldest.resolve();
    else oldest.reject(error);
  }
}

function settled(promises: Promise<void>[]): Promise<string[]> {
  return Promise.all(
    promises.map((promise) =>
      promise.then(
        () => "durable",
        (error: unknown) => String(error),
      ),
    ),
  );
}

describe("GroupFlush", () => {
  it("serves all who come while one runs with one flush that starts afterwards", async () => {
    const disk = new Disk();
    const group = new GroupFlush(disk.sync);
    const first = group.flush();
    const later = [group.flush(), group.flush(), group.flush()];
    expect(disk.started).to.equal(1);
    disk.end();
    await first;
    await Promise.resolve();
    expect(disk.started).to.equal(2);
    disk.end();
    expect(await settled(later)).to.deep.equal(["durable", "durable", "durable"]);
    expect(disk.started).to.equal(2);
  });

  it("never runs two at once, whenever the next caller comes", async () => {
    let running = 0;
    let runs = 0;
    const group = new GroupFlush(async () => {
      running++;
      runs++;
      expect(running).to.equal(1);
      await Promise.resolve();
      running--;
    });
    const callers = Array.from({ length: 50 }, async (_, index) => {
      for (let turn = 0; turn < 20; turn++) {
        for (let wait = 0; wait < index % 5; wait++) await Promise.resolve();
        await group.flush();
      }
    });
    await Promise.all(callers);
    expect(running).to.equal(0);
    expect(runs).to.be.lessThan(50 * 20);
  });

  it("covers what was written before the call, not only before the flush that runs", async () => {
    let written = 0;
    let durable = 0;
    const group = new GroupFlush(async () => {
      const reached = written;
      await new Promise((resolve) => setImmediate(resolve));
      durable = reached;
    });
    await Promise.all(
      Array.from({ length: 30 }, async (_, index) => {
        for (let wait = 0; wait < index; wait++) await new Promise((resolve) => setImmediate(resolve));
        const mine = ++written;
        await group.flush();
        expect(durable).to.be.at.least(mine);
      }),
    );
  });

  it("fails for ever after one failure, those already waiting included", async () => {
    const disk = new Disk();
    const group = new GroupFlush(disk.sync);
    const waiting = [group.flush(), group.flush()];
    disk.end(new Error("lost"));
    expect(await settled(waiting)).to.deep.equal(["Error: lost", "Error: lost"]);
    expect(await settled([group.flush()])).to.deep.equal(["Error: lost"]);
    expect(disk.started).to.equal(1);
  });
});
