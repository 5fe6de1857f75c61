/** Our client asking the servers that people run, and our own, what they have. */
import { expect } from "chai";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";

import { NegotiationError } from "../../src/errors.js";
import { describeExport, listExports, listMetaContexts } from "../../src/nbd/client/query.js";
import type { MetadataContext } from "../../src/nbd/server/exports.js";
import { FailingDevice } from "../tools/failing-device.js";
import { MemoryDevice } from "../tools/memory-device.js";
import { NbdPeer, patiently, startNbdkit, startQemuNbd, startReferenceServer } from "../tools/nbd-peers.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { failureOf } from "../tools/outcome.js";
import { succeed } from "../tools/process.js";
import { createImage } from "../tools/qemu-image.js";

const MEBIBYTE = 1024 * 1024;

describe("NBD client, asking real servers what they have", () => {
  let peer: NbdPeer | null = null;

  afterEach(async () => {
    await peer?.stop();
    peer = null;
  });

  it("learns of our own server's exports without entering one", async () => {
    const harness = await startNbdServer();
    const entered: string[] = [];
    const contexts = ["qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b", "qemu:allocation-depth"].map(
      (name): MetadataContext => ({
        name,
        describe: (_, lengthBytes) => Promise.resolve([{ lengthBytes, status: 0 }]),
      }),
    );
    const connected = (): Record<string, never> => {
      entered.push("disk");
      return {};
    };
    const device = new FailingDevice(new MemoryDevice(MEBIBYTE));
    harness.add("disk", device, { contexts, description: "the \u20ac disk", isDefault: true, connected });
    harness.add("other", new MemoryDevice(512), { readOnly: true });
    const { address } = harness;

    expect(await listExports(`nbd+unix://?socket=${harness.path}`)).to.deep.equal([
      { name: "disk", description: "the \u20ac disk" },
      { name: "other", description: "" },
    ]);
    const disk = await describeExport({ address, exportName: "" });
    expect(disk).to.deep.include({
      name: "disk",
      description: "the \u20ac disk",
      canMultiConn: true,
      canFastZero: true,
      isRotational: false,
      hasExtendedHeaders: true,
      metaContexts: [
        "base:allocation",
        "qemu:dirty-bitmap:a",
        "qemu:dirty-bitmap:b",
        "qemu:allocation-depth",
      ],
    });
    expect(disk.info).to.deep.equal({
      sizeBytes: MEBIBYTE,
      blockSize: { minimumBytes: 1, preferredBytes: 4096, maximumBytes: 32 * MEBIBYTE },
      writable: true,
      trim: "native",
      zero: "native",
      fua: "native",
      extents: "native",
    });
    const compact = await describeExport({ address, exportName: "other", extendedHeaders: false });
    expect(compact.hasExtendedHeaders).to.equal(false);
    expect(compact.info).to.deep.include({ sizeBytes: 512, writable: false, trim: "none", zero: "none" });

    const query = { address, exportName: "disk" };
    expect(await listMetaContexts(query)).to.have.length(4);
    expect(await listMetaContexts(query, ["base:"])).to.deep.equal(["base:allocation"]);
    expect(await listMetaContexts(query, ["qemu:dirty-bitmap:", "x-no:"])).to.deep.equal([
      "qemu:dirty-bitmap:a",
      "qemu:dirty-bitmap:b",
    ]);
    expect(await listMetaContexts(query, ["qemu:"])).to.have.length(3);
    expect(await listMetaContexts(query, ["x-no:thing"])).to.deep.equal([]);
    const unknown = await failureOf(describeExport({ address, exportName: "nix" }));
    expect(unknown).to.be.instanceOf(NegotiationError).with.property("code", "export-unknown");

    expect(entered).to.deep.equal([]);
    expect(device.log).to.deep.equal([]);
    await harness.close();
  });

  it("learns of an export of qemu-nbd, its bitmap included", async () => {
    const directory = await NbdPeer.makeDirectory();
    const image = join(directory, "image");
    await createImage(image, "qcow2", 4 * MEBIBYTE);
    await succeed("qemu-img", ["bitmap", "--add", "-f", "qcow2", image, "b0"]);
    peer = await startQemuNbd(directory, image, "qcow2", "-B", "b0", "-D", "a disk", "-r");
    const query = { address: peer.address, exportName: "disk" };
    const described = await describeExport(query);
    expect(described).to.deep.include({
      name: "disk",
      description: "a disk",
      canMultiConn: true,
      hasExtendedHeaders: false,
      metaContexts: ["base:allocation", "qemu:dirty-bitmap:b0"],
    });
    expect(described.info).to.deep.include({ sizeBytes: 4 * MEBIBYTE, writable: false, extents: "native" });
    expect(await listMetaContexts(query, ["qemu:"])).to.deep.equal(["qemu:dirty-bitmap:b0"]);
    expect(await listMetaContexts(query, ["base:"])).to.deep.equal(["base:allocation"]);
    expect(await listExports({ address: peer.address })).to.deep.equal([
      { name: "disk", description: "a disk" },
    ]);
  });

  it("learns of an export of nbdkit, by its canonical name", async () => {
    const scripts = [
      "list_exports=echo NAMES+DESCRIPTIONS; echo main; echo 'of an eval'",
      "default_export=echo main",
      "export_description=echo 'of an eval'",
      "get_size=echo 1M",
      "block_size=echo 512 4K 1M",
      "can_multi_conn=exit 3",
      "is_rotational=exit 0",
    ];
    peer = await startNbdkit("eval", ...scripts);
    const described = await describeExport({ address: peer.address, exportName: "" });
    expect(described).to.deep.include({
      name: "main",
      description: "of an eval",
      canMultiConn: false,
      isRotational: true,
      metaContexts: ["base:allocation"],
    });
    expect(described.info.blockSize).to.deep.equal({
      minimumBytes: 512,
      preferredBytes: 4096,
      maximumBytes: MEBIBYTE,
    });
    expect(await listExports({ address: peer.address })).to.deep.equal([
      { name: "main", description: "of an eval" },
    ]);
  });

  it("learns of an export of the NBD project's own server, which has no contexts and tells its size to users only", async () => {
    const directory = await NbdPeer.makeDirectory();
    const image = join(directory, "image");
    await writeFile(image, Buffer.alloc(MEBIBYTE));
    const { address } = (peer = await startReferenceServer(directory, image));
    const described = await patiently(() => describeExport({ address, exportName: "disk" }));
    expect(described).to.deep.include({ name: "disk", hasExtendedHeaders: false, metaContexts: [] });
    expect(described.info).to.deep.include({ sizeBytes: 0, fua: "native", extents: "none" });
  });
});
