/** A replica that lets a primary connect and takes no content: what guests wait for, in virtual time. */
import { expect } from "chai";
import { pino } from "pino";

import { checked } from "../../../src/block/checked.js";
import { type BlockDevice, Flag } from "../../../src/block/device.js";
import { Deferred } from "../../../src/deferred.js";
import { Primary } from "../../../src/replication/primary.js";
import type { ReplicaDisk } from "../../../src/replication/replica-network.js";
import { LifeClock, VirtualTime } from "../../simulation/virtual-time.js";
import { FailingDevice } from "../../tools/failing-device.js";
import { MemoryDevice } from "../../tools/memory-device.js";
import { MemoryStateDirectory } from "../../tools/memory-state-directory.js";
import { isSettled, turns } from "../../tools/outcome.js";

const MEBIBYTE = 1024 * 1024;
const SIZE_BYTES = 8 * MEBIBYTE;
const BLOCK = Buffer.alloc(4096, 0x22);

/** One connection to the replica's disk: what is on its way fails when it is destroyed. */
function connectionTo(disk: BlockDevice, nowMs: () => number): ReplicaDisk {
  const ended = new Deferred<Error | null>();
  const pending = new Set<{ readonly sentAtMs: number }>();
  const ask = async <T>(answer: Promise<T>): Promise<T> => {
    const request = { sentAtMs: nowMs() };
    pending.add(request);
    const lost = ended.promise.then((reason) => Promise.reject(reason ?? new Error("closed")));
    return Promise.race([answer, lost]).finally(() => pending.delete(request));
  };
  return {
    info: disk.info,
    ended: ended.promise,
    get inFlight() {
      return pending.size;
    },
    get oldestPending() {
      const [oldest] = pending;
      return oldest ?? null;
    },
    destroy: (reason) => {
      ended.resolve(reason);
    },
    read: (offset, into) => ask(disk.read(offset, into)),
    // The content is the caller's again when the request has failed, though it is still on its way here.
    write: (offset, from, flags) => ask(disk.write(offset, Buffer.from(from), flags)),
    zero: (offset, lengthBytes, flags) => ask(disk.zero(offset, lengthBytes, flags)),
    trim: (offset, lengthBytes, flags) => ask(disk.trim(offset, lengthBytes, flags)),
    flush: () => ask(disk.flush()),
    extents: (offset, lengthBytes, maxExtents) => ask(disk.extents(offset, lengthBytes, maxExtents)),
    close: () => {
      ended.resolve(null);
      return Promise.resolve();
    },
  };
}

describe("a replica that fell silent", () => {
  it("is not waited for again before it has taken a block, and then gets all that it lacks", async () => {
    const time = new VirtualTime();
    const clock = new LifeClock(time);
    const [medium, copy] = [new MemoryDevice(SIZE_BYTES), new MemoryDevice(SIZE_BYTES)];
    const theirs = new FailingDevice(copy);
    let replicating = new Deferred<undefined>();
    const primary = await Primary.open({
      directory: new MemoryStateDirectory(),
      disks: [{ name: "disk0", path: "memory:0", device: checked(medium) }],
      ackMode: "memsync",
      onCongestion: "block",
      onReplicaError: "continue",
      replicaTimeoutMs: 5000,
      resyncBytesPerSecond: 0,
      checkpointIntervalMs: 0,
      log: pino({ level: "silent" }),
      clock,
      network: {
        control: () => Promise.reject(new Error("no control was given")),
        disk: () => Promise.resolve(connectionTo(theirs, () => clock.nowMs())),
      },
      events: {
        stateChanged: () => {
          if (primary.link?.state === "replicating") replicating.resolve(undefined);
        },
        jobEnded: () => undefined,
        verifyEnded: () => undefined,
      },
    });
    const guest = primary.disks[0]?.guestExport;
    if (guest === undefined) throw new Error("there is no disk");
    await time.until(guest.write(0, Buffer.alloc(SIZE_BYTES, 0x11), Flag.None));
    const address = { kind: "unix", path: "nowhere" } as const;
    await time.until(primary.attach({ address, control: null, uri: "in this process" }));
    await time.until(replicating.promise);

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

    replicating = new Deferred<undefined>();
    held.release();
    await time.until(replicating.promise);
    expect(copy.contents().equals(medium.contents())).to.equal(true);
    await time.until(primary.close());
  });
});
