/** The contract on the layers of the two nodes, and on layers seen through an NBD server and client. */
import { systemClock } from "../../src/clock.js";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "chai";

import { checked } from "../../src/block/checked.js";
import type { BlockDevice } from "../../src/block/device.js";
import { openFileDevice } from "../../src/block/file/file-device.js";
import { CopyBeforeWrite } from "../../src/block/filters/copy-before-write.js";
import { gated } from "../../src/block/filters/gated.js";
import { PrimaryFilter, SecondaryFilter } from "../../src/block/filters/replication.js";
import { Gate } from "../../src/block/gate.js";
import { MemoryBudget } from "../../src/block/memory-budget.js";
import { Mirror } from "../../src/block/mirror.js";
import { ActiveOverlay } from "../../src/block/overlay/active.js";
import { CommitDevice } from "../../src/block/overlay/commit.js";
import { HiddenOverlay } from "../../src/block/overlay/hidden.js";
import { OverlayLog } from "../../src/meta/overlay-log.js";
import { openStateDirectory, type StateDirectory } from "../../src/meta/state-directory.js";
import { connectNbd } from "../../src/nbd/client/connect.js";
import type { AckMode } from "../../src/status.js";
import { openDirtyMap } from "../tools/dirty-map.js";
import { FailingDevice } from "../tools/failing-device.js";
import { MemoryDevice, type MemoryDeviceOptions } from "../tools/memory-device.js";
import { MemoryStateDirectory } from "../tools/memory-state-directory.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { Random, SEED } from "../tools/seed.js";
import type { ContractSubject } from "./device-contract.js";
import { describeBlockDevice } from "./device-contract.js";
import { expectSame, readRange } from "./device-model.js";

const SIZE_BYTES = 512 * 1024 - 1234;
const NOTHING = { trim: "none", zero: "none", fua: "none", extents: "none" } as const;
const CHECKED = { checked: true };

/** A disk whose content is random, with holes. */
function memoryDisk(options: MemoryDeviceOptions = {}): MemoryDevice {
  const disk = new MemoryDevice(SIZE_BYTES, options);
  const random = new Random(SEED + 1);
  for (let at = 0; at < SIZE_BYTES; at += 16384) {
    const lengthBytes = Math.min(random.below(16384) + 1, SIZE_BYTES - at);
    if (random.below(3) > 0) disk.fill(at, random.bytes(lengthBytes));
  }
  return disk;
}

/** Requests overtake each other below it. */
function reordering(device: BlockDevice): FailingDevice {
  const failing = new FailingDevice(device);
  failing.reorder({}, new Random(SEED + 2));
  return failing;
}

/** As reordering(), but reads of the second half of the disk are answered at once. */
function halfReordering(device: BlockDevice): FailingDevice {
  const failing = new FailingDevice(device);
  const random = new Random(SEED + 2);
  failing.reorder({ operation: ["write", "zero", "trim", "flush", "extents"] }, random);
  failing.reorder({ operation: "read", offset: 0, lengthBytes: SIZE_BYTES / 2 }, random);
  return failing;
}

async function stateDirectory(): Promise<{ directory: StateDirectory; remove: () => Promise<void> }> {
  const path = await mkdtemp(join(tmpdir(), "contract-state-"));
  return { directory: await openStateDirectory(path), remove: () => rm(path, { recursive: true }) };
}

function log(directory: StateDirectory, name: string): Promise<OverlayLog> {
  return OverlayLog.create(directory, name, { epoch: 1, sync: false });
}

function activeOver(backing: BlockDevice, directory: StateDirectory): ActiveOverlay {
  return new ActiveOverlay(
    backing,
    {
      open: async () => ({ file: await directory.create("data"), log: await log(directory, "active") }),
      extend: (_lengthBytes, change) => change(),
      lost: () => undefined,
    },
    0,
  );
}

async function activeOverlay(disk: MemoryDevice): Promise<ContractSubject> {
  const { directory, remove } = await stateDirectory();
  const before = disk.contents();
  const device = checked(activeOver(disk, directory));
  return {
    device,
    close: async () => {
      await device.close();
      await remove();
      expectSame(disk.contents(), before, 0, "disk under the overlay");
    },
  };
}

interface CopySubject extends ContractSubject {
  readonly copyBeforeWrite: CopyBeforeWrite;
}

/** On close(), the overlay must show what the disk held at first, and the disk what the device shows. */
async function copyBeforeWrite(disk: MemoryDevice, hasOverlay: boolean): Promise<CopySubject> {
  const { directory, remove } = await stateDirectory();
  const before = disk.contents();
  const copying = new CopyBeforeWrite(halfReordering(disk), {
    clock: systemClock,
    memory: new MemoryBudget(64 * 1024),
    onImageError: ({ error }) => Promise.reject(error),
    onError: ({ error }) => {
      if (!("errno" in error) || error.errno !== "ENOTSUP") throw error;
    },
  });
  const hiddenLog = await log(directory, "hidden");
  const hidden = new HiddenOverlay(checked(disk), hiddenLog, 0);
  if (hasOverlay) copying.setOverlay(hidden);
  return {
    copyBeforeWrite: copying,
    device: checked(copying),
    close: async () => {
      expectSame(await readRange(copying, 0, SIZE_BYTES), disk.contents(), 0, "disk after drain");
      await copying.drain();
      if (hasOverlay) expectSame(await readRange(hidden, 0, SIZE_BYTES), before, 0, "before-images");
      expect(copying.pendingBytes).to.equal(0);
      await hiddenLog.close();
      await remove();
    },
  };
}

async function mirror(ackMode: AckMode, options: MemoryDeviceOptions = {}): Promise<ContractSubject> {
  const local = memoryDisk(options);
  const remote = new MemoryDevice(SIZE_BYTES);
  remote.fill(0, local.contents());
  const dirty = await openDirtyMap(SIZE_BYTES);
  const device = new Mirror(checked(local), {
    ackMode,
    dirty,
    memory: new MemoryBudget(128 * 1024),
    isReachable: () => true,
    onAlone: () => Promise.resolve(),
    onCongested: () => undefined,
  });
  const filter = new PrimaryFilter(device.info, ({ error }) => {
    throw error;
  });
  filter.setReplica(reordering(remote));
  filter.setStarted(true);
  device.setReplica(filter);
  return {
    device,
    close: async () => {
      await device.drain();
      expectSame(remote.contents(), local.contents(), 0, "replica");
      expect(dirty.missedBytes).to.equal(0);
      await device.close();
    },
  };
}

/** An overlay stack with content in every layer, about to be committed. */
async function commitDevice(
  when: "before" | "during" | "after",
  options: MemoryDeviceOptions = {},
): Promise<ContractSubject> {
  const directory = new MemoryStateDirectory();
  const disk = memoryDisk(options);
  const slow = new FailingDevice(checked(disk));
  const hidden = new HiddenOverlay(slow, await log(directory, "hidden"), 0);
  const active = activeOver(hidden, directory);
  const random = new Random(SEED + 3);
  for (let offset = 0; offset + 8192 <= SIZE_BYTES; offset += 12288) {
    const data = random.bytes(4096);
    const image = { offset, lengthBytes: 4096, data: random.below(4) === 0 ? null : data };
    if (random.below(2) === 0) await hidden.keep([image]);
    if (random.below(3) === 0) await active.write(offset + 4096, data, 0);
  }
  const commit = new CommitDevice(slow, hidden, active);
  if (when === "during") slow.delay({ operation: ["write", "zero"] }, 1);
  const run = when === "before" ? Promise.resolve() : commit.run(() => undefined);
  if (when === "after") await run;
  const device = checked(commit);
  return {
    device,
    close: async () => {
      await run;
      await commit.run(() => undefined);
      expectSame(disk.contents(), await readRange(device, 0, SIZE_BYTES), 0, "disk after the commit");
      await device.close();
    },
  };
}

/** A device seen by a client of ours through a server of ours. */
async function throughNbd(subject: ContractSubject, wrap = false): Promise<ContractSubject> {
  const server = await startNbdServer();
  server.add("disk", subject.device);
  const client = await connectNbd({ address: server.address, exportName: "disk" });
  const device = wrap ? checked(client) : client;
  return {
    device,
    close: async () => {
      await device.close();
      await server.close();
      await subject.close();
    },
  };
}

function plain(device: BlockDevice): ContractSubject {
  return { device, close: () => device.close() };
}

function secondaryFilter(): ContractSubject {
  const disk = memoryDisk();
  const filter = new SecondaryFilter(disk.info);
  filter.setTarget(disk);
  return plain(filter);
}

async function fileDevice(): Promise<ContractSubject> {
  const directory = await mkdtemp(join(tmpdir(), "contract-"));
  const path = join(directory, "disk.img");
  const device = await openFileDevice(path, { writable: true, createSizeBytes: SIZE_BYTES });
  return {
    device,
    close: async () => {
      await device.close();
      await rm(directory, { recursive: true });
    },
  };
}

describeBlockDevice("an active overlay", () => activeOverlay(memoryDisk()), CHECKED);
describeBlockDevice(
  "an active overlay over a device without extents",
  () => activeOverlay(memoryDisk(NOTHING)),
  CHECKED,
);

describeBlockDevice("copy-before-write", () => copyBeforeWrite(memoryDisk(), true), CHECKED);
describeBlockDevice(
  "copy-before-write without an overlay",
  () => copyBeforeWrite(memoryDisk(), false),
  CHECKED,
);
describeBlockDevice(
  "copy-before-write over blocks of 512 and nothing else",
  () => copyBeforeWrite(memoryDisk({ ...NOTHING, minimumBytes: 512 }), true),
  CHECKED,
);

for (const ackMode of ["async", "memsync", "sync"] as const) {
  describeBlockDevice(`a mirror in ack mode ${ackMode}`, () => mirror(ackMode));
  describeBlockDevice(`a mirror in ack mode ${ackMode} whose disk only reads and writes`, () =>
    mirror(ackMode, NOTHING),
  );
}

for (const requests of ["writes", "all"] as const) {
  describeBlockDevice(`a gate for ${requests}`, () =>
    Promise.resolve(plain(gated(memoryDisk(), new Gate(), requests))),
  );
}
describeBlockDevice("the secondary's filter", () => Promise.resolve(secondaryFilter()));

for (const when of ["before", "during", "after"] as const) {
  describeBlockDevice(`a commit ${when} its run`, () => commitDevice(when), CHECKED);
  describeBlockDevice(
    `a commit ${when} its run, over a disk that only reads and writes`,
    () => commitDevice(when, NOTHING),
    CHECKED,
  );
}

const FEWER = { operations: 60 };
describeBlockDevice("memory through NBD", () => throughNbd(plain(memoryDisk())), FEWER);
describeBlockDevice(
  "memory that only reads and writes, through NBD",
  () => throughNbd(plain(memoryDisk(NOTHING))),
  FEWER,
);
describeBlockDevice("a checked file through NBD", async () => throughNbd(await fileDevice(), true), {
  ...CHECKED,
  ...FEWER,
});
describeBlockDevice(
  "checked copy-before-write through NBD",
  async () => throughNbd(await copyBeforeWrite(memoryDisk(), true), true),
  { ...CHECKED, ...FEWER },
);
describeBlockDevice(
  "copy-before-write over a disk behind NBD",
  async () => {
    const disk = await throughNbd(plain(memoryDisk()), true);
    const { directory, remove } = await stateDirectory();
    const hiddenLog = await log(directory, "hidden");
    const copying = new CopyBeforeWrite(disk.device, {
      clock: systemClock,
      memory: new MemoryBudget(64 * 1024),
      onImageError: ({ error }) => Promise.reject(error),
      onError: ({ error }) => {
        throw error;
      },
    });
    copying.setOverlay(new HiddenOverlay(disk.device, hiddenLog, 0));
    return {
      device: checked(copying),
      close: async () => {
        await copying.drain();
        await hiddenLog.close();
        await disk.close();
        await remove();
      },
    };
  },
  { ...CHECKED, ...FEWER },
);
