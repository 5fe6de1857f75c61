import { expect } from "chai";

import { Flag } from "../../../src/block/device.js";
import type { RequestFailure } from "../../../src/block/failure.js";
import { WatchedDevice } from "../../../src/block/filters/watched-device.js";
import { FailingDevice } from "../../tools/failing-device.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { outcome } from "../../tools/outcome.js";

const PAGE = 4096;

describe("WatchedDevice", () => {
  let disk: FailingDevice;
  let watched: WatchedDevice;
  let failures: RequestFailure[];
  let failedFlushes: Error[];

  beforeEach(() => {
    disk = new FailingDevice(new MemoryDevice(16 * PAGE));
    failures = [];
    failedFlushes = [];
    watched = new WatchedDevice(disk, {
      failed: (failure) => failures.push(failure),
      flushFailed: (error) => failedFlushes.push(error),
    });
  });

  const told = (): unknown[] =>
    failures.map(({ operation, offset, lengthBytes, error }) => [
      operation,
      offset,
      lengthBytes,
      error.message,
    ]);

  it("tells of each request that failed, which fails all the same", async () => {
    const page = Buffer.alloc(PAGE);
    const requests: Record<string, () => Promise<unknown>> = {
      read: () => watched.read(PAGE, page),
      write: () => watched.write(PAGE, page, Flag.None),
      zero: () => watched.zero(PAGE, PAGE, Flag.None),
      trim: () => watched.trim(PAGE, PAGE, Flag.None),
      flush: () => watched.flush(),
      extents: () => watched.extents(PAGE, PAGE, 1),
    };
    for (const request of Object.values(requests)) expect(await outcome(request())).to.equal("done");
    expect(failures).to.deep.equal([]);
    disk.fail({}, "ENOSPC");
    for (const request of Object.values(requests)) expect(await outcome(request())).to.equal("ENOSPC");
    expect(told()).to.deep.equal([
      ["read", PAGE, PAGE, "injected ENOSPC: read at 4096, 4096 bytes"],
      ["write", PAGE, PAGE, "injected ENOSPC: write at 4096, 4096 bytes"],
      ["zero", PAGE, PAGE, "injected ENOSPC: zero at 4096, 4096 bytes"],
      ["trim", PAGE, PAGE, "injected ENOSPC: trim at 4096, 4096 bytes"],
      ["flush", 0, 0, "injected ENOSPC: flush at 0, 0 bytes"],
      ["extents", PAGE, PAGE, "injected ENOSPC: extents at 4096, 4096 bytes"],
    ]);
  });

  it("does not take for a failure what the disk refuses because it can't do it", async () => {
    disk.fail({ operation: "zero" }, "ENOTSUP");
    expect(await outcome(watched.zero(0, PAGE, Flag.FastZero))).to.equal("ENOTSUP");
    expect(failures).to.deep.equal([]);
  });

  it("remembers the first flush that failed, for good", async () => {
    expect(watched.failure).to.equal(null);
    disk.fail({ operation: "flush", count: 2 });
    for (const expected of ["EIO", "EIO", "done"]) expect(await outcome(watched.flush())).to.equal(expected);
    expect(watched.failure).to.equal(failures[0]?.error);
    expect(failedFlushes).to.deep.equal([failures[0]?.error]);
    expect(failures).to.have.length(2);
  });
});
