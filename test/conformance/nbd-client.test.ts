/** Our client against the servers that people run: content to the last byte, refusals, failures, silence. */
import { expect } from "chai";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { Flag } from "../../src/block/device.js";
import { DeviceError, LinkError, NegotiationError, ProtocolError } from "../../src/errors.js";
import type { NbdClientOptions } from "../../src/nbd/client/connect.js";
import { connectNbd } from "../../src/nbd/client/connect.js";
import type { Address } from "../../src/net/address.js";
import type { NbdDevice } from "../../src/nbd/client/device.js";
import { openNbd } from "../../src/nbd/client/open.js";
import { listExports } from "../../src/nbd/client/query.js";
import type { MetadataContext } from "../../src/nbd/server/exports.js";
import { FailingDevice } from "../tools/failing-device.js";
import { MemoryDevice } from "../tools/memory-device.js";
import { NbdPeer, patiently, startNbdkit, startQemuNbd, startReferenceServer } from "../tools/nbd-peers.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { deviceErrorOf, failureOf } from "../tools/outcome.js";
import { succeed } from "../tools/process.js";
import { createImage, imageContent } from "../tools/qemu-image.js";
import { Random, SEED } from "../tools/seed.js";

const MEBIBYTE = 1024 * 1024;
const GIBIBYTE = 1024 * MEBIBYTE;

function addressOf(peer: NbdPeer | null): Address {
  if (peer === null) throw new Error("no server was started");
  return peer.address;
}

describe("NBD client with real servers", () => {
  let peer: NbdPeer | null = null;
  const devices: NbdDevice[] = [];

  afterEach(async () => {
    for (const device of devices.splice(0)) device.destroy(new Error("the test is over"));
    await peer?.stop();
    peer = null;
  });

  async function connect(to: NbdPeer, options: Partial<NbdClientOptions> = {}): Promise<NbdDevice> {
    peer = to;
    const device = await connectNbd({ address: to.address, exportName: "disk", ...options });
    devices.push(device);
    return device;
  }

  for (const format of ["raw", "qcow2"] as const) {
    it(`leaves in a ${format} image of qemu-nbd exactly what was written, at any depth`, async () => {
      const directory = await NbdPeer.makeDirectory();
      const image = join(directory, "image");
      await createImage(image, format, 8 * MEBIBYTE);
      const device = await connect(await startQemuNbd(directory, image, format), { maxInFlight: 16 });
      expect(device.info).to.deep.include({ sizeBytes: 8 * MEBIBYTE, writable: true, extents: "native" });

      const random = new Random(SEED);
      const expected = Buffer.alloc(8 * MEBIBYTE);
      // Disjoint ranges, so that the order of arrival doesn't matter.
      const requests: Promise<void>[] = [];
      for (let at = 0; at < expected.length;) {
        const lengthBytes = Math.min(512 * (1 + random.below(500)), expected.length - at);
        if (random.below(3) > 0) {
          random.bytes(lengthBytes).copy(expected, at);
          const flags = random.oneOf([Flag.None, Flag.Fua]);
          requests.push(device.write(at, expected.subarray(at, at + lengthBytes), flags));
        }
        at += lengthBytes;
      }
      await Promise.all(requests);
      const zeroed = 512 * random.below(4000);
      await device.zero(zeroed, MEBIBYTE, random.oneOf([Flag.None, Flag.NoHole]));
      expected.fill(0, zeroed, zeroed + MEBIBYTE);
      await device.flush();

      const back = Buffer.alloc(expected.length);
      const pieces = Array.from({ length: 64 }, (_, i) => back.subarray(i * 131072, (i + 1) * 131072));
      await Promise.all(pieces.map((piece, i) => device.read(i * 131072, piece)));
      expect(back.equals(expected)).to.equal(true);

      await device.close();
      // Its lock would keep qemu-img away.
      peer?.signal("SIGTERM");
      await peer?.ended();
      expect((await imageContent(image, format)).equals(expected)).to.equal(true);
    });
  }

  describe("finds its way with", () => {
    it("several exports and one that isn't there", async () => {
      peer = await startNbdkit(
        "eval",
        "list_exports=echo NAMES; echo a; echo b",
        "get_size=echo 1M",
        'open=case "$3" in a|b) ;; *) exit 1;; esac',
      );
      expect(await listExports({ address: peer.address })).to.deep.equal([
        { name: "a", description: "" },
        { name: "b", description: "" },
      ]);
      const error = await failureOf(connectNbd({ address: peer.address, exportName: "c" }));
      expect(error).to.be.instanceOf(NegotiationError);
      expect(error.message).to.include('"c"');
    });

    it("an unknown export of qemu-nbd", async () => {
      const directory = await NbdPeer.makeDirectory();
      const image = join(directory, "image");
      await createImage(image, "raw", MEBIBYTE);
      peer = await startQemuNbd(directory, image, "raw");
      expect(await listExports({ address: peer.address })).to.deep.equal([{ name: "disk", description: "" }]);
      const error = await failureOf(connectNbd({ address: peer.address, exportName: "nix" }));
      expect(error).to.be.instanceOf(NegotiationError).with.property("code", "export-unknown");
      expect(error.message).to.include("export 'nix' not present");
    });

    it("the NBD project's own server", async () => {
      const directory = await NbdPeer.makeDirectory();
      const image = join(directory, "image");
      await writeFile(image, Buffer.alloc(MEBIBYTE, 7));
      const { address } = (peer = await startReferenceServer(directory, image));
      const device = await patiently(() => connectNbd({ address, exportName: "disk" }));
      expect(device.info).to.deep.include({ sizeBytes: MEBIBYTE, fua: "native", extents: "none" });
      const into = Buffer.alloc(MEBIBYTE);
      await device.read(0, into);
      expect(into.equals(Buffer.alloc(MEBIBYTE, 7))).to.equal(true);
      await device.write(512, Buffer.alloc(1024, 9), Flag.Fua);
      await device.close();
      const expected = Buffer.alloc(MEBIBYTE, 7).fill(9, 512, 1536);
      expect((await readFile(image)).equals(expected)).to.equal(true);
    });

    it("an unknown export of the NBD project's own server", async () => {
      const directory = await NbdPeer.makeDirectory();
      const image = join(directory, "image");
      await writeFile(image, Buffer.alloc(MEBIBYTE));
      const { address } = (peer = await startReferenceServer(directory, image));
      const error = await failureOf(patiently(() => connectNbd({ address, exportName: "nix" })));
      expect(error).to.be.instanceOf(NegotiationError).with.property("code", "export-unknown");
    });

    it("the list of the NBD project's own server", async () => {
      const directory = await NbdPeer.makeDirectory();
      const image = join(directory, "image");
      await writeFile(image, Buffer.alloc(MEBIBYTE));
      const { address } = (peer = await startReferenceServer(directory, image));
      expect(await patiently(() => listExports({ address }))).to.deep.equal([
        { name: "disk", description: "" },
      ]);
    });

    it("a read-only export", async () => {
      const device = await connect(await startNbdkit("-r", "memory", "size=1M"));
      expect(device.info.writable).to.equal(false);
      const error = await failureOf(device.write(0, Buffer.alloc(512), Flag.None));
      expect(error).to.be.instanceOf(DeviceError).with.property("errno", "EPERM");
      await device.read(0, Buffer.alloc(512));
    });

    it("block sizes of its own", async () => {
      const sizes = ["blocksize-minimum=4K", "blocksize-preferred=64K", "blocksize-maximum=1M"];
      const policy = [
        "--filter=blocksize-policy",
        "memory",
        "size=1M",
        ...sizes,
        "blocksize-error-policy=error",
      ];
      const device = await connect(await startNbdkit(...policy));
      expect(device.info.blockSize).to.deep.equal({
        minimumBytes: 4096,
        preferredBytes: 65536,
        maximumBytes: MEBIBYTE,
      });
      const error = await failureOf(device.read(512, Buffer.alloc(512)));
      expect(error).to.be.instanceOf(DeviceError).with.property("errno", "EINVAL");
    });

    it("no zeroes, no extents, no parallel connections", async () => {
      const lacking = ["--filter=nozero", "--filter=noextents", "--filter=multi-conn", "memory", "size=1M"];
      const device = await connect(await startNbdkit(...lacking, "zeromode=none", "multi-conn-mode=disable"));
      expect(device.info.zero).to.equal("none");
      expect(device.canFastZero).to.equal(false);
      expect(device.canMultiConn).to.equal(false);
    });

    it("plain newstyle, which knows EXPORT_NAME only", async () => {
      const device = await connect(await startNbdkit("--mask-handshake=0", "memory", "size=1M"));
      expect(device.info).to.deep.include({ sizeBytes: MEBIBYTE, extents: "none" });
      const content = Buffer.alloc(70_000, 0x5a);
      await device.write(1234, content, Flag.Fua);
      const into = Buffer.alloc(70_000);
      await device.read(1234, into);
      expect(into.equals(content)).to.equal(true);
    });

    it("the old style, by refusing it", async () => {
      peer = await startNbdkit("-o", "memory", "size=1M");
      const error = await failureOf(connectNbd({ address: peer.address, exportName: "" }));
      expect(error).to.be.instanceOf(ProtocolError).with.property("code", "oldstyle-server");
    });

    it("TLS required, by saying so", async () => {
      const directory = await NbdPeer.makeDirectory();
      const [keys, path] = [join(directory, "keys.psk"), join(directory, "sock")];
      await writeFile(keys, `alice:${"0f".repeat(32)}\n`);
      const tls = ["--tls=require", `--tls-psk=${keys}`];
      peer = await NbdPeer.start(directory, { kind: "unix", path }, [
        "nbdkit",
        "-f",
        "-U",
        path,
        ...tls,
        "memory",
        "1M",
      ]);
      const error = await failureOf(connectNbd({ address: peer.address, exportName: "" }));
      expect(error).to.be.instanceOf(NegotiationError).with.property("code", "tls-required");
    });
  });

  it("tells holes, zeroes and data apart, and finds their borders", async () => {
    const device = await connect(await startNbdkit("memory", "size=8M"));
    await device.write(MEBIBYTE, Buffer.alloc(MEBIBYTE, 1), Flag.None);
    await device.write(4 * MEBIBYTE, Buffer.alloc(65536, 2), Flag.None);
    const hole = (lengthBytes: number): unknown => ({ lengthBytes, hole: true, zero: true });
    const data = (lengthBytes: number): unknown => ({ lengthBytes, hole: false, zero: false });
    expect(await device.extents(0, 8 * MEBIBYTE, 100)).to.deep.equal([
      hole(MEBIBYTE),
      data(MEBIBYTE),
      hole(2 * MEBIBYTE),
      data(65536),
      hole(4 * MEBIBYTE - 65536),
    ]);
    expect(await device.extents(0, 8 * MEBIBYTE, 1)).to.deep.equal([hole(MEBIBYTE)]);
    expect(await device.extents(MEBIBYTE + 512, MEBIBYTE, 100)).to.deep.equal([
      data(MEBIBYTE - 512),
      hole(512),
    ]);
  });

  it("tells what is in a bitmap of qemu-nbd, when it was asked for, beside the allocation", async () => {
    const directory = await NbdPeer.makeDirectory();
    const image = join(directory, "image");
    await createImage(image, "qcow2", 4 * MEBIBYTE);
    await succeed("qemu-io", ["-f", "qcow2", "-c", "write 0 1M", image]);
    await succeed("qemu-img", ["bitmap", "--add", "-g", "64k", "-f", "qcow2", image, "b0"]);
    await succeed("qemu-io", ["-f", "qcow2", "-c", "write 128k 64k", "-c", "write 2M 1M", image]);
    const bitmap = "qemu:dirty-bitmap:b0";
    const options = { metaContexts: [bitmap, "qemu:dirty-bitmap:another"] };
    const device = await connect(await startQemuNbd(directory, image, "qcow2", "-B", "b0"), options);
    expect(device.metaContexts).to.have.members(["base:allocation", bitmap]);
    expect(await device.blockStatus(bitmap, 0, 4 * MEBIBYTE, 100)).to.deep.equal([
      { lengthBytes: 131_072, status: 0 },
      { lengthBytes: 65_536, status: 1 },
      { lengthBytes: 2 * MEBIBYTE - 196_608, status: 0 },
      { lengthBytes: MEBIBYTE, status: 1 },
      { lengthBytes: MEBIBYTE, status: 0 },
    ]);
    const [first] = await device.extents(0, 4 * MEBIBYTE, 100);
    expect(first).to.deep.equal({ lengthBytes: MEBIBYTE, hole: false, zero: false });
    const unknown = await deviceErrorOf(device.blockStatus("qemu:dirty-bitmap:another", 0, 512, 1));
    expect(unknown.errno).to.equal("ENOTSUP");
  });

  for (const extendedHeaders of [false, true]) {
    it(`tells what our own server's contexts do, extended headers: ${String(extendedHeaders)}`, async () => {
      const harness = await startNbdServer();
      const context: MetadataContext = {
        name: "qemu:dirty-bitmap:replica",
        describe: (offset, lengthBytes) => Promise.resolve([{ lengthBytes, status: offset === 0 ? 1 : 0 }]),
      };
      harness.add("disk", new MemoryDevice(MEBIBYTE), { contexts: [context] });
      const uri = `nbd+unix:///disk?socket=${harness.path}`;
      const device = await openNbd(uri, { connections: 2, extendedHeaders, metaContexts: [context.name] });
      expect(device.metaContexts).to.have.members(["base:allocation", context.name]);
      for (const [offset, status] of [
        [0, 1],
        [4096, 0],
      ] as const) {
        const [descriptor, ...rest] = await device.blockStatus(context.name, offset, 8192, 10);
        expect([descriptor, ...rest]).to.deep.equal([{ lengthBytes: 8192, status }]);
        expect(await device.extents(offset, 8192, 10)).to.deep.equal([
          { lengthBytes: 8192, hole: true, zero: true },
        ]);
      }
      await device.close();
      await harness.close();
    });
  }

  for (const extendedHeaders of [false, true]) {
    it(`tells what several contexts of our own server do, by one request, extended headers: ${String(extendedHeaders)}`, async () => {
      const harness = await startNbdServer();
      const asked: [context: string, offset: number, lengthBytes: number][] = [];
      const contexts = ["x-test:a", "x-test:b"].map((name, index): MetadataContext => ({
        name,
        describe: (offset, lengthBytes) => {
          asked.push([name, offset, lengthBytes]);
          const firstBytes = lengthBytes / 2 ** (index + 1);
          return Promise.resolve([
            { lengthBytes: firstBytes, status: index },
            { lengthBytes: lengthBytes - firstBytes, status: 0xffff_ffff },
          ]);
        },
      }));
      harness.add("disk", new MemoryDevice(64 * GIBIBYTE), { contexts });
      const uri = `nbd+unix:///disk?socket=${harness.path}`;
      const device = await openNbd(uri, { extendedHeaders, metaContexts: ["x-test:a", "x-test:b"] });
      expect(device.hasExtendedHeaders).to.equal(extendedHeaders);
      // A compact header tells 32 bits: the rest is for the caller to ask again.
      const toldBytes = extendedHeaders ? 48 * GIBIBYTE : GIBIBYTE;
      expect([
        ...(await device.blockStatuses(["x-test:b", "base:allocation"], 4096, 48 * GIBIBYTE, 100)),
      ]).to.deep.equal([
        [
          "x-test:b",
          [
            { lengthBytes: toldBytes / 4, status: 1 },
            { lengthBytes: (toldBytes / 4) * 3, status: 0xffff_ffff },
          ],
        ],
        ["base:allocation", [{ lengthBytes: toldBytes, status: 3 }]],
      ]);
      // With extended headers the request names the contexts, and the server doesn't look at others.
      const expected = extendedHeaders ? ["x-test:b"] : ["x-test:a", "x-test:b"];
      expect(asked).to.deep.equal(expected.map((name) => [name, 4096, toldBytes]));
      const one = await device.blockStatuses(["x-test:a", "x-test:b"], 0, 8192, 1);
      expect([...one]).to.deep.equal([
        ["x-test:a", [{ lengthBytes: 4096, status: 0 }]],
        ["x-test:b", [{ lengthBytes: 2048, status: 1 }]],
      ]);
      await device.close();
      await harness.close();
    });
  }

  it("has our own server read ahead, in as many requests as it takes", async () => {
    const harness = await startNbdServer();
    const device = new FailingDevice(new MemoryDevice(48 * MEBIBYTE));
    harness.add("disk", device);
    const client = await connectNbd({ address: harness.address, exportName: "disk" });
    await client.cache(4096, 40 * MEBIBYTE);
    const readBytes = device.log.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
    expect(readBytes).to.equal(40 * MEBIBYTE);
    await client.close();
    await harness.close();
  });

  for (const extendedHeaders of [true, false]) {
    it(`reads content and holes of our own server in one piece, with ${extendedHeaders ? "extended" : "compact"} headers`, async () => {
      const harness = await startNbdServer();
      harness.add("disk", new MemoryDevice(MEBIBYTE));
      const client = await connectNbd({ address: harness.address, exportName: "disk", extendedHeaders });
      const expected = new Random(SEED).bytes(MEBIBYTE);
      expected.fill(0, 128 * 1024, 512 * 1024);
      await client.write(0, expected.subarray(0, 128 * 1024), Flag.None);
      await client.write(512 * 1024, expected.subarray(512 * 1024), Flag.None);
      const content = Buffer.alloc(MEBIBYTE);
      await client.readWhole(0, content);
      expect(content.equals(expected)).to.equal(true);
      await client.close();
      await harness.close();
    });
  }

  it("reads of qemu-nbd in one piece what it has in one, 64 KiB at least", async () => {
    const directory = await NbdPeer.makeDirectory();
    const image = join(directory, "image");
    await createImage(image, "raw", MEBIBYTE);
    const device = await connect(await startQemuNbd(directory, image, "raw"));
    const expected = new Random(SEED).bytes(64 * 1024);
    await device.write(4096, expected, Flag.None);
    const content = Buffer.alloc(64 * 1024);
    await device.readWhole(4096, content);
    expect(content.equals(expected)).to.equal(true);
  });

  it("asks qemu-nbd to read ahead in requests that it takes, though the range is longer", async () => {
    const directory = await NbdPeer.makeDirectory();
    const image = join(directory, "image");
    await createImage(image, "raw", 48 * MEBIBYTE);
    const device = await connect(await startQemuNbd(directory, image, "raw"));
    await device.cache(0, 40 * MEBIBYTE);
  });

  it("asks nothing, and reports no error, where the server does not read ahead", async () => {
    const device = await connect(await startNbdkit("--filter=nocache", "memory", "size=1M"));
    await device.cache(0, 512);
  });

  it("zeroes and trims more than 4 GiB without a gap or an overlap", async () => {
    const directory = await NbdPeer.makeDirectory();
    const [path, log] = [join(directory, "sock"), join(directory, "log")];
    const record = (name: string): string => `${name}=echo ${name} $3 $4 >> ${log}`;
    const plugin = [
      "eval",
      "get_size=echo 20G",
      "pread=exit 1",
      "pwrite=exit 1",
      "can_zero=exit 0",
      "can_trim=exit 0",
    ];
    const args = ["-f", "-U", path, ...plugin, "can_write=exit 0", record("zero"), record("trim")];
    const device = await connect(await NbdPeer.start(directory, { kind: "unix", path }, ["nbdkit", ...args]));
    await device.zero(GIBIBYTE / 2, 9 * GIBIBYTE + 4096, Flag.None);
    await device.trim(0, 20 * GIBIBYTE, Flag.None);
    const ends = { zero: GIBIBYTE / 2, trim: 0 };
    for (const line of (await readFile(log, "utf8")).trim().split("\n")) {
      // The script gets: zero COUNT OFFSET, as $3 and $4 behind the handle.
      const [name, count, offset] = line.split(" ");
      if (name !== "zero" && name !== "trim") throw new Error(line);
      expect(Number(offset), line).to.equal(ends[name]);
      ends[name] += Number(count);
    }
    expect(ends).to.deep.equal({ zero: GIBIBYTE / 2 + 9 * GIBIBYTE + 4096, trim: 20 * GIBIBYTE });
  });

  describe("when the server has trouble", () => {
    it("maps its errors and goes on", async () => {
      const rates = [
        "error-pwrite=ENOSPC",
        "error-pwrite-rate=100%",
        "error-pread=EIO",
        "error-pread-rate=100%",
      ];
      const device = await connect(await startNbdkit("--filter=error", "memory", "size=1M", ...rates));
      const failures = await Promise.all([
        failureOf(device.write(0, Buffer.alloc(4096), Flag.None)),
        failureOf(device.read(0, Buffer.alloc(4096))),
      ]);
      expect(failures[0]).to.be.instanceOf(DeviceError).with.property("errno", "ENOSPC");
      expect(failures[1]).to.be.instanceOf(DeviceError).with.property("errno", "EIO");
      await device.flush();
    });

    it("settles each request rightly while one in four fails", async () => {
      const device = await connect(
        await startNbdkit(
          "--filter=error",
          "memory",
          "size=4M",
          "error-pwrite=ENOSPC",
          "error-pwrite-rate=25%",
        ),
      );
      const contents = Array.from({ length: 256 }, (_, i) => Buffer.alloc(16384, i));
      const written = await Promise.allSettled(
        contents.map((each, i) => device.write(i * 16384, each, Flag.None)),
      );
      const into = Buffer.alloc(16384);
      for (const [i, result] of written.entries()) {
        await device.read(i * 16384, into);
        const expected = result.status === "fulfilled" ? contents[i] : Buffer.alloc(16384);
        expect(expected !== undefined && into.equals(expected), `block ${i}: ${result.status}`).to.equal(
          true,
        );
      }
      expect(new Set(written.map(({ status }) => status))).to.deep.equal(new Set(["fulfilled", "rejected"]));
    });

    it("takes answers in the order in which they come", async () => {
      const device = await connect(
        await startNbdkit("--filter=delay", "memory", "size=1M", "delay-read=300ms"),
      );
      const order: string[] = [];
      const read = device.read(0, Buffer.alloc(512)).then(() => order.push("read"));
      const write = device.write(4096, Buffer.alloc(512), Flag.None).then(() => order.push("write"));
      await Promise.all([read, write]);
      expect(order).to.deep.equal(["write", "read"]);
    });

    it("rejects everything with LinkError when it is killed, and at once what comes later", async () => {
      const device = await connect(await startNbdkit("--filter=delay", "memory", "size=1M", "delay-read=60"));
      const pending = Array.from({ length: 200 }, () => failureOf(device.read(0, Buffer.alloc(4096))));
      // From here on they are in the socket.
      await new Promise((resolve) => setImmediate(resolve));
      peer?.signal("SIGKILL");
      for (const error of await Promise.all(pending)) {
        expect(error).to.be.instanceOf(LinkError).with.property("code", "link-lost");
      }
      expect(await device.ended).to.be.instanceOf(LinkError);
      expect(await failureOf(device.flush())).to.be.instanceOf(LinkError);
      // A dying process closes its connections before its listener, which may take one more.
      await peer?.ended();
      const again = await failureOf(connectNbd({ address: addressOf(peer), exportName: "" }));
      expect(again).to.be.instanceOf(LinkError).with.property("code", "connect-failed");
    });

    it("notices a server that has stopped answering, and can be torn away from it", async () => {
      const device = await connect(await startNbdkit("memory", "size=1M"));
      await peer?.freeze();
      const pending = failureOf(device.read(0, Buffer.alloc(4096)));
      const issuedMs = performance.now();
      expect(device.oldestPendingMs(issuedMs + 60_000)).to.be.at.least(60_000);
      const silent = await failureOf(
        connectNbd({ address: addressOf(peer), exportName: "", connectTimeoutMs: 50 }),
      );
      expect(silent).to.be.instanceOf(LinkError).with.property("code", "connect-timeout");
      const reason = new Error("silent for too long");
      device.destroy(reason);
      expect(await pending)
        .to.be.instanceOf(LinkError)
        .with.property("cause", reason);
    });
  });
});
