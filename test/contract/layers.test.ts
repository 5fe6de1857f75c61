/** The contract on every layer. Add yours: one describeBlockDevice() each. */
import { expect } from "chai";
import { existsSync } from "node:fs";
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";

import { checked } from "../../src/block/checked.js";
import { openFileDevice } from "../../src/block/file/file-device.js";
import { FailingDevice } from "../tools/failing-device.js";
import { attachLoopDevice, canMakeLoopDevices, detachLoopDevice } from "../tools/loop-device.js";
import type { MemoryDeviceOptions } from "../tools/memory-device.js";
import { MemoryDevice } from "../tools/memory-device.js";
import { Random, SEED } from "../tools/seed.js";
import { unsafeCache } from "../../src/block/filters/unsafe-cache.js";
import type { ContractSubject } from "./device-contract.js";
import { describeBlockDevice } from "./device-contract.js";

const SIZE_BYTES = 1024 * 1024;
const ODD_SIZE_BYTES = SIZE_BYTES - 1234;

function inMemory(sizeBytes: number, options: MemoryDeviceOptions = {}): ContractSubject {
  const device = new MemoryDevice(sizeBytes, options);
  return { device, close: () => device.close() };
}

function checkedMemory(sizeBytes: number, options: MemoryDeviceOptions = {}): ContractSubject {
  const device = checked(inMemory(sizeBytes, options).device);
  return { device, close: () => device.close() };
}

/** Requests overtake each other below checked(), as on a real disk. */
function checkedReordering(options: MemoryDeviceOptions): ContractSubject {
  const reordering = new FailingDevice(new MemoryDevice(ODD_SIZE_BYTES, options));
  reordering.reorder({}, new Random(SEED));
  const device = checked(reordering);
  return { device, close: () => device.close() };
}

async function inFile(
  parent: string,
  sizeBytes: number,
  options: { system?: null; checked?: boolean } = {},
): Promise<ContractSubject> {
  const directory = await mkdtemp(join(parent, "contract-"));
  const file = await openFileDevice(join(directory, "disk.img"), {
    ...options,
    writable: true,
    createSizeBytes: sizeBytes,
  });
  const device = options.checked === true ? checked(file) : file;
  return {
    device,
    async close(): Promise<void> {
      await device.close();
      await rm(directory, { recursive: true });
    },
  };
}

async function onLoopDevice(sectorBytes: number, rotational?: boolean): Promise<ContractSubject> {
  const directory = await mkdtemp(join(tmpdir(), "contract-"));
  const image = join(directory, "disk.img");
  await writeFile(image, "");
  await truncate(image, SIZE_BYTES);
  const path = await attachLoopDevice(image, sectorBytes);
  if (rotational !== undefined) {
    await writeFile(`/sys/block/${basename(path)}/queue/rotational`, rotational ? "1" : "0");
  }
  const device = await openFileDevice(path, { writable: true });
  return {
    device,
    async close(): Promise<void> {
      await device.close();
      await detachLoopDevice(path);
      await rm(directory, { recursive: true });
    },
  };
}

const NOTHING = { trim: "none", zero: "none", fua: "none", extents: "none" } as const;
const CHECKED = { checked: true };

describeBlockDevice("memory", () => Promise.resolve(inMemory(ODD_SIZE_BYTES)));
describeBlockDevice("an unsafe cache", () => {
  const device = checked(unsafeCache(new MemoryDevice(ODD_SIZE_BYTES)));
  return Promise.resolve({ device, close: () => device.close() });
});
describeBlockDevice("memory with blocks of 512", () =>
  Promise.resolve(inMemory(ODD_SIZE_BYTES, { minimumBytes: 512 })),
);
describeBlockDevice("memory without anything", () => Promise.resolve(inMemory(SIZE_BYTES, NOTHING)));

describeBlockDevice("a file", () => inFile(tmpdir(), SIZE_BYTES));
describeBlockDevice("a file of odd size", () => inFile(tmpdir(), ODD_SIZE_BYTES));
describeBlockDevice("a file without koffi", () => inFile(tmpdir(), ODD_SIZE_BYTES, { system: null }));

// A tmpfs has no ZERO_RANGE and answers no RWF_NOWAIT.
const TMPFS = "/dev/shm";
if (existsSync(TMPFS)) describeBlockDevice("a file on a tmpfs", () => inFile(TMPFS, ODD_SIZE_BYTES));

if (canMakeLoopDevices()) {
  describeBlockDevice("a block device with sectors of 512", () => onLoopDevice(512));
  describeBlockDevice("a block device with sectors of 4096", () => onLoopDevice(4096));

  for (const rotational of [true, false]) {
    it(`tells of a block device that it ${rotational ? "turns" : "does not turn"}, as the kernel does`, async () => {
      const disk = await onLoopDevice(512, rotational);
      expect(disk.device.info.rotational).to.equal(rotational);
      await disk.close();
    });
  }
}

describeBlockDevice("checked memory", () => Promise.resolve(checkedMemory(ODD_SIZE_BYTES)), CHECKED);
describeBlockDevice(
  "checked memory with blocks of 512, short payloads and nothing else",
  () => Promise.resolve(checkedMemory(ODD_SIZE_BYTES, { ...NOTHING, minimumBytes: 512, maximumBytes: 8192 })),
  CHECKED,
);
describeBlockDevice(
  "checked memory with blocks of 4096 and requests that overtake each other",
  () => Promise.resolve(checkedReordering({ minimumBytes: 4096 })),
  CHECKED,
);
describeBlockDevice(
  "checked memory with blocks of 512, no zeroes, and requests that overtake each other",
  () => Promise.resolve(checkedReordering({ minimumBytes: 512, zero: "none", fua: "none" })),
  CHECKED,
);
describeBlockDevice("a checked file", () => inFile(tmpdir(), ODD_SIZE_BYTES, CHECKED), CHECKED);
describeBlockDevice(
  "a checked file without koffi",
  () => inFile(tmpdir(), ODD_SIZE_BYTES, { system: null, checked: true }),
  CHECKED,
);
