import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import { errnoOf } from "../../../src/errors.js";
import { FailingDevice } from "../../tools/failing-device.js";
import { MemoryDevice } from "../../tools/memory-device.js";

const SIZE_BYTES = 16384;

function make(): { memory: MemoryDevice; device: FailingDevice } {
  const memory = new MemoryDevice(SIZE_BYTES);
  return { memory, device: new FailingDevice(memory) };
}

function outcome(request: Promise<unknown>): Promise<string> {
  return request.then(
    () => "done",
    (error: unknown) => errnoOf(error),
  );
}

describe("FailingDevice", () => {
  it("passes everything through and logs it while there is no rule", async () => {
    const { memory, device } = make();
    await device.write(100, Buffer.alloc(50, 7), Flag.Fua);
    await device.flush();
    expect(memory.contents(100, 50)).to.deep.equal(Buffer.alloc(50, 7));
    expect(device.log).to.deep.equal([
      { operation: "write", offset: 100, lengthBytes: 50, flags: Flag.Fua },
      { operation: "flush", offset: 0, lengthBytes: 0, flags: Flag.None },
    ]);
  });

  it("fails the chosen operation in the chosen range, the chosen number of times", async () => {
    const { memory, device } = make();
    const rule = device.fail(
      { operation: "write", offset: 4096, lengthBytes: 10, skip: 1, count: 1 },
      "ENOSPC",
    );
    const write = (offset: number): Promise<string> =>
      outcome(device.write(offset, Buffer.alloc(10, 1), Flag.None));
    expect(await write(4086)).to.equal("done");
    expect(await write(4087)).to.equal("done");
    expect(await write(4105)).to.equal("ENOSPC");
    expect(await write(4105)).to.equal("done");
    expect(await outcome(device.flush())).to.equal("done");
    expect(rule.taken).to.equal(1);
    expect(memory.counts.write).to.equal(3);
  });

  it("fails after the device below has done it, where asked to", async () => {
    const { memory, device } = make();
    device.fail({ when: "after" });
    expect(await outcome(device.write(0, Buffer.from([1, 2]), Flag.None))).to.equal("EIO");
    expect(memory.contents(0, 2)).to.deep.equal(Buffer.from([1, 2]));
  });

  it("holds requests until they are released or failed, in any order", async () => {
    const { memory, device } = make();
    const held = device.hold({ operation: "write" });
    const first = outcome(device.write(0, Buffer.from([1]), Flag.None));
    const second = outcome(device.write(1, Buffer.from([2]), Flag.None));
    const third = outcome(device.write(2, Buffer.from([3]), Flag.None));
    await held.arrived(3);
    expect(memory.counts.write).to.equal(0);
    held.releaseOne(1);
    expect(await second).to.equal("done");
    held.failOne("ENOMEM");
    expect(await first).to.equal("ENOMEM");
    expect(held.requests.map(({ offset }) => offset)).to.deep.equal([2]);
    held.release();
    expect(await third).to.equal("done");
    expect(await outcome(device.write(0, Buffer.from([9]), Flag.None))).to.equal("done");
    expect(memory.contents(0, 3)).to.deep.equal(Buffer.from([9, 2, 3]));
  });

  it("forgets its rules when cleared", async () => {
    const { device } = make();
    device.fail({});
    device.clear();
    expect(await outcome(device.flush())).to.equal("done");
  });
});
