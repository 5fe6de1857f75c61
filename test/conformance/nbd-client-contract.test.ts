/** The contract of a block device, kept over the wire: our client with each server that we can get hold of. */
import { expect } from "chai";
import { truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { Flag } from "../../src/block/device.js";
import { connectNbd } from "../../src/nbd/client/connect.js";
import { openNbd } from "../../src/nbd/client/open.js";
import type { ContractSubject } from "../contract/device-contract.js";
import { describeBlockDevice } from "../contract/device-contract.js";
import type { Operation } from "../tools/failing-device.js";
import { FailingDevice } from "../tools/failing-device.js";
import { MemoryDevice } from "../tools/memory-device.js";
import {
  NbdPeer,
  patiently,
  startNbdkit,
  startNbdkitOnTcp,
  startQemuNbd,
  startReferenceServer,
} from "../tools/nbd-peers.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { deviceErrorOf } from "../tools/outcome.js";
import { createImage } from "../tools/qemu-image.js";

const SIZE_BYTES = 1024 * 1024;
const ODD_SIZE_BYTES = SIZE_BYTES - 1234;
/** QEMU counts in sectors. */
const SECTOR_SIZE_BYTES = SIZE_BYTES - 1536;

async function connected(peer: NbdPeer, exportName = "disk"): Promise<ContractSubject> {
  const device = await patiently(() => connectNbd({ address: peer.address, exportName })).catch(
    async (error: unknown) => {
      await peer.stop();
      throw error;
    },
  );
  return {
    device,
    async close(): Promise<void> {
      await device.close();
      await peer.stop();
    },
  };
}

async function overQemuNbd(format: "raw" | "qcow2"): Promise<ContractSubject> {
  const directory = await NbdPeer.makeDirectory();
  const image = join(directory, "image");
  await createImage(image, format, SECTOR_SIZE_BYTES);
  return connected(await startQemuNbd(directory, image, format));
}

/** Four connections, which qemu-nbd and nbdkit allow as our own server does. */
async function inParallel(peer: NbdPeer): Promise<ContractSubject> {
  const uri = { address: peer.address, exportName: "disk", tls: false, tlsParameters: {} };
  const device = await openNbd(uri, { connections: 4 });
  expect(device.connections).to.equal(4);
  return {
    device,
    async close(): Promise<void> {
      await device.close();
      await peer.stop();
    },
  };
}

async function overQemuNbdInParallel(): Promise<ContractSubject> {
  const directory = await NbdPeer.makeDirectory();
  const image = join(directory, "image");
  await createImage(image, "raw", SECTOR_SIZE_BYTES);
  return inParallel(await startQemuNbd(directory, image, "raw"));
}

async function overOursInParallel(): Promise<ContractSubject> {
  const harness = await startNbdServer();
  harness.add("disk", new MemoryDevice(ODD_SIZE_BYTES));
  const device = await openNbd(`nbd+unix:///disk?socket=${harness.path}`, { connections: 3 });
  expect(device.connections).to.equal(3);
  return {
    device,
    async close(): Promise<void> {
      await device.close();
      await harness.close();
    },
  };
}

async function overReferenceServer(): Promise<ContractSubject> {
  const directory = await NbdPeer.makeDirectory();
  const image = join(directory, "image");
  await writeFile(image, "");
  await truncate(image, SIZE_BYTES);
  return connected(await startReferenceServer(directory, image));
}

async function overOurs(extendedHeaders: boolean): Promise<ContractSubject> {
  const harness = await startNbdServer();
  harness.add("disk", new MemoryDevice(ODD_SIZE_BYTES));
  const device = await connectNbd({ address: harness.address, exportName: "disk", extendedHeaders });
  expect(device.hasExtendedHeaders).to.equal(extendedHeaders);
  return {
    device,
    async close(): Promise<void> {
      await device.close();
      await harness.close();
    },
  };
}

const FEWER = { operations: 60 };
const MEMORY = ["memory", `size=${ODD_SIZE_BYTES}`];

describeBlockDevice("qemu-nbd with a raw file, through our client,", () => overQemuNbd("raw"), FEWER);
describeBlockDevice("qemu-nbd with a qcow2 image, through our client,", () => overQemuNbd("qcow2"), FEWER);
describeBlockDevice(
  "nbdkit, through our client,",
  async () => connected(await startNbdkit(...MEMORY)),
  FEWER,
);
describeBlockDevice(
  "nbdkit over TCP, through our client,",
  async () => connected(await startNbdkitOnTcp(...MEMORY)),
  FEWER,
);
describeBlockDevice(
  "nbdkit without structured replies, through our client,",
  async () => connected(await startNbdkit("--no-sr", ...MEMORY)),
  FEWER,
);
describeBlockDevice("the NBD project's own server, through our client,", overReferenceServer, FEWER);
describeBlockDevice("our own server, through our client,", () => overOurs(false), FEWER);
describeBlockDevice("our own server, through our client with extended headers,", () => overOurs(true), FEWER);
describeBlockDevice("our own server, over three connections,", overOursInParallel, FEWER);
describeBlockDevice("qemu-nbd, over four connections of our client,", overQemuNbdInParallel, FEWER);
describeBlockDevice(
  "nbdkit, over four connections of our client,",
  async () => inParallel(await startNbdkit(...MEMORY)),
  FEWER,
);

describe("our own server over our client", () => {
  for (const extendedHeaders of [false, true]) {
    it(`passes on where a device failed, extended headers: ${String(extendedHeaders)}`, async () => {
      const [origin, relay] = [await startNbdServer(), await startNbdServer()];
      const failing = new FailingDevice(new MemoryDevice(SIZE_BYTES));
      origin.add("disk", failing);
      const inner = await connectNbd({ address: origin.address, exportName: "disk", extendedHeaders });
      relay.add("disk", inner);
      const device = await connectNbd({ address: relay.address, exportName: "disk", extendedHeaders });
      const requests: readonly [Operation, () => Promise<unknown>][] = [
        ["read", () => device.read(4096, Buffer.alloc(8192))],
        ["write", () => device.write(4096, Buffer.alloc(8192), Flag.None)],
        ["zero", () => device.zero(4096, 8192, Flag.None)],
        ["trim", () => device.trim(4096, 8192, Flag.None)],
        ["extents", () => device.extents(4096, 8192, 10)],
      ];
      for (const [operation, request] of requests) {
        failing.fail({ operation, count: 1 }, "EIO", 5000);
        expect(await deviceErrorOf(request()), operation).to.include({ errno: "EIO", offset: 5000 });
      }
      await device.close();
      await inner.close();
      await relay.close();
      await origin.close();
    });
  }
});
