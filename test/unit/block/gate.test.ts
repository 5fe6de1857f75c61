import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { gated } from "../../../src/block/filters/gated.js";
import { Gate } from "../../../src/block/gate.js";
import { FailingDevice } from "../../tools/failing-device.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { isSettled, outcome } from "../../tools/outcome.js";

describe("Gate", () => {
  it("is shut when the last one inside has left", async () => {
    const gate = new Gate();
    gate.tryEnter();
    await gate.enter();
    const shut = gate.shut();
    gate.leave();
    expect([await isSettled(shut), gate.inside, gate.isShut]).to.deep.equal([false, 1, true]);
    gate.leave();
    await shut;
    expect(gate.inside).to.equal(0);
  });

  it("admits nobody while shut, and then all who waited, in their order", async () => {
    const gate = new Gate();
    await gate.shut();
    expect(gate.tryEnter()).to.equal(false);
    const order: number[] = [];
    const waiting = [0, 1, 2].map((index) => gate.enter().then(() => order.push(index)));
    expect(await isSettled(Promise.race(waiting))).to.equal(false);
    gate.reopen();
    expect(gate.inside, "counted at once, so that a new shut() waits for them").to.equal(3);
    const shut = gate.shut();
    await Promise.all(waiting);
    expect(order).to.deep.equal([0, 1, 2]);
    waiting.forEach(() => {
      gate.leave();
    });
    await shut;
  });

  it("refuses to be shut twice", async () => {
    const gate = new Gate();
    await gate.shut();
    expect(() => gate.shut()).to.throw("gate is shut already");
    gate.reopen();
    await gate.shut();
  });
});

describe("gated device", () => {
  const into = Buffer.alloc(10);

  for (const requests of ["writes", "all"] as const) {
    it(`holds back ${requests} while the gate is shut, and never a flush`, async () => {
      const gate = new Gate();
      const disk = new FailingDevice(new MemoryDevice(8192));
      const device = gated(disk, gate, requests);
      await gate.shut();
      const held = [
        device.write(0, into, Flag.None),
        device.zero(0, 10, Flag.None),
        device.trim(0, 10, Flag.None),
        device.read(0, into),
        device.extents(0, 10, 1),
      ];
      await device.flush();
      const isRead = requests === "writes";
      expect(await Promise.all(held.map(isSettled))).to.deep.equal([false, false, false, isRead, isRead]);
      gate.reopen();
      await Promise.all(held);
      expect(gate.inside).to.equal(0);
    });
  }

  it("counts a request as inside until it has ended, failed or not", async () => {
    const gate = new Gate();
    const disk = new FailingDevice(new MemoryDevice(8192));
    const device = gated(disk, gate, "writes");
    const held = disk.hold({ operation: "write" });
    const write = outcome(device.write(0, into, Flag.None));
    await held.arrived(1);
    const shut = gate.shut();
    expect(await isSettled(shut)).to.equal(false);
    held.failOne("EIO");
    expect(await write).to.equal("EIO");
    await shut;
  });
});
