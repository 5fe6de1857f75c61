/** The tools that people use against an NBD server, run against ours: libnbd's, QEMU's and fio. */
import { expect } from "chai";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, open, readFile, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

import type { Address } from "../../src/net/address.js";
import { TlsAcceptor } from "../../src/net/tls/acceptor.js";
import { formatNbdUri } from "../../src/nbd/uri.js";
import { useAuthorities } from "../tools/certificates.js";
import { FailingDevice } from "../tools/failing-device.js";
import { MemoryDevice } from "../tools/memory-device.js";
import type { NbdServerHarness } from "../tools/nbd-server-harness.js";
import { startNbdServer } from "../tools/nbd-server-harness.js";
import { TestProcess, run as outcomeOf } from "../tools/process.js";
import { Random, SEED } from "../tools/seed.js";
import { waitFor } from "../tools/wait-for.js";

const MEBIBYTE = 1024 * 1024;
const SIZE = 16 * MEBIBYTE;

const execute = promisify(execFile);
/** Runs a tool and returns what it prints; a failing one rejects with its standard error in the message. */
const run = async (tool: string, ...args: string[]): Promise<string> => {
  const { stdout } = await execute(tool, args, { timeout: 60_000, maxBuffer: MEBIBYTE });
  return stdout;
};

/** Twenty pieces of data between holes. */
function scattered(random: Random): Buffer {
  const content = Buffer.alloc(SIZE);
  for (let i = 0; i < 20; i++) random.bytes(100_000).copy(content, random.below(SIZE - 100_000));
  return content;
}

describe("NBD server, driven by real tools", () => {
  const certs = useAuthorities();
  let harness: NbdServerHarness;
  /** The same disk, over TLS only. */
  let secured: NbdServerHarness;
  let disk: MemoryDevice;
  let tcp: Address;
  let uri: string;
  let tcpUri: string;
  let tlsUri: string;

  beforeEach(async () => {
    harness = await startNbdServer();
    disk = new MemoryDevice(SIZE);
    harness.add("disk0", disk, { description: "first disk", isDefault: true });
    harness.add("image", new MemoryDevice(5 * MEBIBYTE + 512), { readOnly: true });
    tcp = await harness.server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
    uri = `nbd+unix:///disk0?socket=${harness.path}`;
    tcpUri = tcp.kind === "tcp" ? `nbd://127.0.0.1:${tcp.port}/disk0` : "";
    const credentials = { kind: "certificates", directory: certs.pki } as const;
    const acceptor = new TlsAcceptor({ credentials, verifyPeer: false, allowedNames: [] });
    secured = await startNbdServer({ tls: { mode: "require", acceptor } });
    secured.add("disk0", disk);
    const address = await secured.server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
    // nbdfuse and fio read no file that a URI names, so they can't know this CA.
    const tlsParameters = { verifyPeer: false };
    tlsUri = formatNbdUri({ address, exportName: "disk0", tls: true, tlsParameters });
  });

  afterEach(async () => {
    await harness.close();
    await secured.close();
  });

  const uriOf = (transport: "unix" | "tcp" | "TLS"): string =>
    ({ unix: uri, tcp: tcpUri, TLS: tlsUri })[transport];

  it("is described by nbdinfo --json", async () => {
    const described = JSON.parse(await run("nbdinfo", "--json", uri)) as {
      exports: Record<string, unknown>[];
    };
    expect(described).to.deep.include({ protocol: "newstyle-fixed", TLS: false, structured: true });
    expect(described.exports[0]).to.deep.include({
      "export-name": "disk0",
      description: "first disk",
      "export-size": SIZE,
      contexts: ["base:allocation"],
      is_read_only: false,
      can_cache: true,
      can_df: true,
      can_fast_zero: true,
      can_flush: true,
      can_fua: true,
      can_multi_conn: true,
      can_trim: true,
      can_zero: true,
      block_size_minimum: 1,
      block_size_preferred: 4096,
      block_size_maximum: 32 * MEBIBYTE,
    });
  });

  it("lists its exports to nbdinfo --list, over TCP and for the default name", async () => {
    const listed = JSON.parse(await run("nbdinfo", "--list", "--json", tcpUri)) as {
      exports: { "export-name": string; "export-size": number; is_read_only: boolean }[];
    };
    const short = listed.exports.map((e) => [e["export-name"], e["export-size"], e.is_read_only]);
    expect(short).to.deep.equal([
      ["disk0", SIZE, false],
      ["image", 5 * MEBIBYTE + 512, true],
    ]);
    expect(await run("nbdinfo", "--size", `nbd+unix://?socket=${harness.path}`)).to.equal(`${SIZE}\n`);
  });

  it("maps its holes for nbdinfo --map and qemu-img map", async () => {
    disk.fill(MEBIBYTE, Buffer.alloc(2 * MEBIBYTE, 1));
    const mapped = JSON.parse(await run("nbdinfo", "--map", "--json", uri)) as object[];
    expect(mapped).to.deep.equal([
      { offset: 0, length: MEBIBYTE, type: 3, description: "hole,zero" },
      { offset: MEBIBYTE, length: 2 * MEBIBYTE, type: 0, description: "data" },
      { offset: 3 * MEBIBYTE, length: 13 * MEBIBYTE, type: 3, description: "hole,zero" },
    ]);
    const qemu = JSON.parse(await run("qemu-img", "map", "--output=json", "-f", "raw", uri)) as {
      start: number;
      length: number;
      data: boolean;
      zero: boolean;
    }[];
    expect(qemu.map(({ start, length, data, zero }) => [start, length, data, zero])).to.deep.equal([
      [0, MEBIBYTE, false, true],
      [MEBIBYTE, 2 * MEBIBYTE, true, false],
      [3 * MEBIBYTE, 13 * MEBIBYTE, false, true],
    ]);
  });

  it("tells qemu-img info its size", async () => {
    const info = JSON.parse(await run("qemu-img", "info", "--output=json", "-f", "raw", tcpUri)) as object;
    expect(info).to.include({ "virtual-size": SIZE, format: "raw" });
  });

  it(`is copied in and out by nbdcopy and qemu-img convert, holes kept, seed ${SEED}`, async () => {
    const random = new Random(SEED);
    const source = join(harness.directory, "source.img");
    const copied = join(harness.directory, "copied.img");
    const content = Buffer.alloc(SIZE);
    for (let i = 0; i < 20; i++) random.bytes(100_000).copy(content, random.below(SIZE - 100_000));
    await writeFile(source, content);
    await run("nbdcopy", source, uri);
    expect(disk.contents().equals(content)).to.be.true;
    await run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, tcpUri);
    await run("nbdcopy", tcpUri, copied);
    expect((await readFile(copied)).equals(content)).to.be.true;
    await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri);
    expect(disk.contents().equals(content)).to.be.true;
    expect(disk.allocatedBytes).to.be.below(SIZE / 2);
    await truncate(copied, 0);
    await run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, copied);
    expect((await readFile(copied)).equals(content)).to.be.true;
  });

  it("reads, writes, zeroes and discards for qemu-io", async () => {
    const commands = [
      "write -P 0x5a 1000 70000",
      "read -P 0x5a 1000 70000",
      "write -z 4096 8192",
      "read -P 0 4096 8192",
      "write -z -u 65536 4096",
      "read -P 0 65536 4096",
      "discard 0 64k",
      "write -f -P 0x77 0 512",
      "flush",
      "read -P 0x77 0 512",
    ].flatMap((command) => ["-c", command]);
    const output = await run("qemu-io", "-f", "raw", ...commands, uri);
    expect(output).to.not.contain("failed").and.not.contain("error");
    expect(disk.contents(0, 512).equals(Buffer.alloc(512, 0x77))).to.be.true;
    expect(disk.counts.flush).to.be.above(0);
  });

  it("tells qemu-io of an error and where it was, and serves it after that", async () => {
    const failing = new FailingDevice(disk);
    failing.fail({ offset: 2 * MEBIBYTE, lengthBytes: 512 }, "EIO", 2 * MEBIBYTE);
    harness.add("failing", failing);
    const commands = ["read 1M 2M", "write 1M 2M", "write -z 1M 2M", "discard 1M 2M", "write -P 7 4M 64k"];
    const args = ["-f", "raw", ...commands.flatMap((command) => ["-c", command])];
    const failed = await outcomeOf("qemu-io", [...args, `nbd+unix:///failing?socket=${harness.path}`]);
    expect(failed.stdout.match(/failed: Input\/output error/g)).to.have.length(4);
    expect(failed.stdout).to.include("wrote 65536/65536 bytes at offset 4194304");
    expect(disk.contents(4 * MEBIBYTE, 65_536).equals(Buffer.alloc(65_536, 7))).to.be.true;
    expect(harness.log.filter((line) => line.level >= 40)).to.have.length(1);
  });

  it("refuses writes of qemu-io to a read-only export", async () => {
    const image = `nbd+unix:///image?socket=${harness.path}`;
    const failed = await run("qemu-io", "-f", "raw", "-c", "write 0 512", image).catch(
      (error: unknown) => error,
    );
    expect(String(failed)).to.match(/permission denied|read-only/i);
    expect(await run("qemu-io", "-r", "-f", "raw", "-c", "read -P 0 5m 512", image)).to.contain(
      "read 512/512",
    );
  });

  for (const transport of ["unix", "tcp", "TLS"] as const) {
    const address = (): string => uriOf(transport);

    it(`is copied both ways by nbdcopy over four connections, on ${transport}, seed ${SEED}`, async () => {
      const source = join(harness.directory, "source.img");
      const copied = join(harness.directory, "copied.img");
      const content = scattered(new Random(SEED));
      await writeFile(source, content);
      await run("nbdcopy", "--connections=4", "--threads=4", source, address());
      expect(disk.contents().equals(content)).to.be.true;
      const { summaries } = transport === "TLS" ? secured : harness;
      const used = summaries.length;
      await run("nbdcopy", "--connections=4", "--threads=4", address(), copied);
      expect((await readFile(copied)).equals(content)).to.be.true;
      await waitFor(
        "four connections to have been used",
        () => summaries.length - used,
        (count) => count >= 4,
        10_000,
      );
    });

    it(`is a file under nbdfuse, on ${transport}`, async () => {
      const mountPoint = join(harness.directory, "mount");
      await mkdir(mountPoint);
      const fuse = await TestProcess.start("nbdfuse", [mountPoint, address()]);
      const file = join(mountPoint, "nbd");
      try {
        await waitFor(
          "nbdfuse to mount",
          () => existsSync(file) || !fuse.isRunning,
          (isSettled) => isSettled,
        );
        expect(fuse.isRunning, fuse.stderr).to.equal(true);
        expect((await stat(file)).size).to.equal(SIZE);
        const content = Buffer.alloc(300_001, 0x42);
        const handle = await open(file, "r+");
        await handle.write(content, 0, content.length, 12_345);
        await handle.sync();
        const back = Buffer.alloc(content.length);
        await handle.read(back, 0, back.length, 12_345);
        await handle.close();
        expect(back.equals(content)).to.be.true;
        expect(disk.contents(12_345, content.length).equals(content)).to.be.true;
        expect(disk.counts.flush).to.be.above(0);
      } finally {
        // On this signal it unmounts.
        await fuse.terminate();
      }
    });
  }

  // QEMU's take no parameters of TLS in a URI; over that they are in e2e/tls.
  for (const transport of ["unix", "tcp"] as const) {
    const address = (): string => uriOf(transport);

    it(`is converted, compared and mapped by qemu-img, on ${transport}, seed ${SEED}`, async () => {
      const source = join(harness.directory, "source.img");
      const content = scattered(new Random(SEED));
      await writeFile(source, content);
      await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, address());
      expect(disk.contents().equals(content)).to.be.true;
      await run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, address());
      disk.fill(0, Buffer.of((content[0] ?? 0) ^ 1));
      const differs = await run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, address()).catch(
        (error: unknown) => error,
      );
      expect(differs).to.be.instanceOf(Error).with.property("code", 1);
      const map = await run("qemu-img", "map", "--output=json", "-f", "raw", address());
      const extents = JSON.parse(map) as { start: number; length: number; zero: boolean }[];
      expect(extents.reduce((sum, { length }) => sum + length, 0)).to.equal(SIZE);
      for (const { start, length, zero } of extents) {
        if (zero) expect(disk.contents(start, length).equals(Buffer.alloc(length))).to.be.true;
      }
    });

    it(`is read and written by qemu-io, on ${transport}`, async () => {
      const commands = ["write -P 0x31 777 70001", "flush", "read -P 0x31 777 70001", "read -P 0 0 777"];
      const args = commands.flatMap((command) => ["-c", command]);
      expect(await run("qemu-io", "-f", "raw", ...args, address())).to.not.contain("failed");
      expect(disk.contents(777, 70_001).equals(Buffer.alloc(70_001, 0x31))).to.be.true;
    });
  }

  for (const transport of ["unix", "tcp", "TLS"] as const) {
    it(`keeps what fio writes, verified by checksum, over ${transport}`, async () => {
      const report = join(harness.directory, "fio.json");
      await run(
        "fio",
        "--name=verify",
        "--ioengine=nbd",
        `--uri=${uriOf(transport)}`,
        "--rw=randwrite",
        "--bsrange=512-64k",
        "--blockalign=512",
        "--iodepth=32",
        `--size=${SIZE}`,
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        `--randseed=${SEED}`,
        `--aux-path=${harness.directory}`,
        "--output-format=json",
        `--output=${report}`,
      );
      const { jobs } = JSON.parse(await readFile(report, "utf8")) as {
        jobs: { error: number; write: { io_bytes: number } }[];
      };
      expect(jobs.map((job) => job.error)).to.deep.equal([0]);
      expect(jobs[0]?.write.io_bytes).to.be.above(0);
      for (const { log } of [harness, secured])
        expect(log.filter((line) => line.level > 30)).to.deep.equal([]);
    });
  }
});
