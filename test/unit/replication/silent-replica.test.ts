/** A replica that lets a primary connect and takes no content: what guests wait for, in virtual time. */
import { expect } from "chai";
import { pino } from "pino";

import { randomUUID } from "node:crypto";

import { checked } from "../../../src/block/checked.js";
import { type BlockDevice, Flag } from "../../../src/block/device.js";
import { Deferred } from "../../../src/deferred.js";
import { Primary } from "../../../src/replication/primary/primary.js";
import type { ReplicaControl } from "../../../src/replication/primary/replica-control.js";
import { LinkError } from "../../../src/errors.js";
import { QmpError } from "../../../src/qmp/errors.js";
import type { CommandConnection, ReplicaDisk } from "../../../src/replication/primary/replica-network.js";
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

/** What is asked of a replica's control, whose memory is called `memory.name`. */
function controlOf(memory: { readonly name: string }): ReplicaControl {
  return {
    ended: new Promise(() => undefined),
    hasDigests: true,
    handshake: () =>
      Promise.resolve({
        known: true,
        tenure: randomUUID(),
        changed: {},
        memory: memory.name,
        writer: null,
        epoch: 1,
        stage: "running",
        version: "0",
      }),
    prepareCheckpoint: () => Promise.resolve(),
    checkpoint: () => Promise.resolve(),
    takeOver: () => Promise.reject(new Error("nobody hands over")),
    heartbeat: () => Promise.resolve(),
    close: () => Promise.resolve(),
  };
}

function commandsOf(execute: CommandConnection["execute"]): CommandConnection {
  return { execute, close: () => Promise.resolve() };
}

describe("a replica that fell silent", () => {
  const memory = { name: "first" };
  let time: VirtualTime;
  let medium: MemoryDevice;
  let copy: MemoryDevice;
  let ours: FailingDevice;
  let theirs: FailingDevice;
  let replicating: Deferred<undefined>;
  let primary: Primary;
  let guest: BlockDevice;
  /** Of the digests. */
  let commands: CommandConnection;

  /** Everything is on both sides, and the replica has flushed it. */
  beforeEach(async () => {
    time = new VirtualTime();
    const clock = new LifeClock(time);
    [medium, copy] = [new MemoryDevice(SIZE_BYTES), new MemoryDevice(SIZE_BYTES)];
    [ours, theirs] = [new FailingDevice(medium), new FailingDevice(copy)];
    replicating = new Deferred();
    commands = commandsOf(() => Promise.reject(new QmpError("GenericError", "x", "it tells no digests")));
    primary = await Primary.open({
      directory: new MemoryStateDirectory(),
      disks: [{ name: "disk0", path: "memory:0", device: checked(ours) }],
      ackMode: "memsync",
      onCongestion: "block",
      onReplicaError: "continue",
      replicaTimeoutMs: 5000,
      resyncBytesPerSecond: 0,
      checkpointIntervalMs: 0,
      log: pino({ level: "silent" }),
      clock,
      network: {
        control: () => Promise.resolve(controlOf(memory)),
        commands: () => Promise.resolve(commands),
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
    const [disk] = primary.disks;
    if (disk === undefined) throw new Error("there is no disk");
    guest = disk.guestExport;
    await time.until(guest.write(0, Buffer.alloc(SIZE_BYTES, 0x11), Flag.None));
    memory.name = "first";
    const [address, control] = [
      { kind: "unix", path: "disk" },
      { kind: "unix", path: "control" },
    ] as const;
    await time.until(primary.attach({ address, control, uri: "in this process" }));
    await time.until(replicating.promise);
    replicating = new Deferred();
  });

  const expectTheSame = async (): Promise<void> => {
    await time.until(replicating.promise);
    expect(copy.contents().equals(medium.contents())).to.equal(true);
    await time.until(primary.close());
  };

  it("is not waited for again before it has taken a block, and then gets all that it lacks", async () => {
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
    const [flushes, writes] = [
      theirs.hold({ operation: "flush" }),
      theirs.hold({ operation: "write", skip: 1 }),
    ];
    await time.until(guest.write(7 * MEBIBYTE, BLOCK, Flag.None));
    await time.until(guest.write(0, BLOCK, Flag.None));
    // It was started anew, without what it had not flushed.
    memory.name = "second";
    copy.fill(7 * MEBIBYTE, Buffer.alloc(BLOCK.length, 0x11));
    await time.until(writes.arrived(3));
    flushes.release();
    writes.release();
    await expectTheSame();
  });

  it("when it was asked for digests: is not waited for again, nor asked, before it has all that it lacks", async () => {
    const unanswered: Deferred<never>[] = [];
    const asked = new Deferred<undefined>();
    commands = commandsOf(() => {
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
    await expectTheSame();
    expect(unanswered.length).to.equal(once);
  });

  it("is not sent the old content of a block of which it has a change that is still under way here", async () => {
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
