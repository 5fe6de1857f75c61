import { expect } from "chai";
import { closeSync, openSync, readdirSync, readlinkSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, stat, symlink, truncate, writeFile } from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import workerThreads from "node:worker_threads";

import type { BlockDevice } from "../../../src/block/device.js";
import { Flag } from "../../../src/block/device.js";
import { openFileDevice } from "../../../src/block/file/file-device.js";
import { fileError } from "../../../src/block/file/file-errors.js";
import { ConfigError, DeviceError, errnoOf } from "../../../src/errors.js";
import type { Libc } from "../../../src/os/libc.js";
import { FallocateMode, libc, SystemCallError } from "../../../src/os/libc.js";
import { LANE_MAXIMUM_BYTES } from "../../../src/block/file/write-lane-ring.js";
import { deviceErrorOf } from "../../tools/outcome.js";
import { succeed } from "../../tools/process.js";
import { waitFor } from "../../tools/wait-for.js";
import { useWorkspace } from "../../tools/workspace.js";

const SIZE_BYTES = 1024 * 1024 + 100;
const BLOCK_BYTES = 512;

/** How many bytes the file takes on its file system. */
async function allocatedBytes(path: string): Promise<number> {
  return (await stat(path)).blocks * BLOCK_BYTES;
}

async function configError(opening: Promise<BlockDevice>): Promise<string> {
  try {
    await (await opening).close();
  } catch (error) {
    expect(error).to.be.instanceOf(ConfigError);
    const { message } = error as ConfigError;
    expect(message).to.not.include("\n");
    return message;
  }
  throw new Error("it was opened");
}

function openDescriptorsOf(path: string): number[] {
  return readdirSync("/proc/self/fd").flatMap((name) => {
    try {
      return readlinkSync(`/proc/self/fd/${name}`) === path ? [Number(name)] : [];
    } catch (error) {
      // The descriptor that lists the directory is gone by now.
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
      throw error;
    }
  });
}

function errno(request: Promise<unknown>): Promise<string> {
  return request.then(
    () => "done",
    (error: unknown) => errnoOf(error),
  );
}

/** The machine's libc, refusing some modes of fallocate() as other file systems do. */
function systemRefusing(refused: (mode: number) => number | null): Libc {
  const real = libc();
  if (real === null) throw new Error("koffi does not load on this machine: npm install");
  const proxy = Object.create(real) as Libc;
  return Object.assign(proxy, {
    seek: real.seek.bind(real),
    setModified: real.setModified.bind(real),
    readCached: real.readCached.bind(real),
    lockByteShared: real.lockByteShared.bind(real),
    foreignLock: real.foreignLock.bind(real),
    fallocate(fd: number, mode: number, offset: number, lengthBytes: number): Promise<void> {
      const code = refused(mode);
      if (code !== null) return Promise.reject(new SystemCallError("fallocate", code));
      return real.fallocate(fd, mode, offset, lengthBytes);
    },
  });
}

describe("openFileDevice", () => {
  let directory: string;
  let path: string;

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "file-device-"));
    path = join(directory, "disk.img");
  });

  afterEach(async () => {
    expect(openDescriptorsOf(path), "descriptors left open").to.deep.equal([]);
    await rm(directory, { recursive: true });
  });

  it("creates a missing disk, sparse, and opens it again with or without the size", async () => {
    const sizeBytes = 3 * 1024 ** 4 + 7;
    const created = await openFileDevice(path, { writable: true, createSizeBytes: sizeBytes });
    expect(created.info.sizeBytes).to.equal(sizeBytes);
    expect(await allocatedBytes(path)).to.be.lessThan(64 * 1024);
    await created.close();
    for (const options of [
      { writable: true },
      { writable: true, createSizeBytes: sizeBytes },
      { writable: false },
    ]) {
      const device = await openFileDevice(path, options);
      expect(device.info).to.deep.include({ sizeBytes, writable: options.writable });
      await device.close();
    }
  });

  it("names what is wrong with the path, and the remedy", async () => {
    const writable = true;
    const empty = join(directory, "empty");
    await writeFile(empty, "");
    await writeFile(path, "12345");
    const missing = join(directory, "missing");
    const link = join(directory, "link");
    await symlink(missing, link);
    const toNothing = `disk ${link} is a symbolic link to a file that does not exist: mount what that is on, or name another file`;
    const messages: [() => Promise<BlockDevice>, string][] = [
      [
        () => openFileDevice(missing, { writable }),
        `disk ${missing} does not exist: give --size to create it`,
      ],
      [() => openFileDevice(link, { writable }), toNothing],
      [() => openFileDevice(link, { writable, createSizeBytes: 5 }), toNothing],
      [
        () => openFileDevice(directory, { writable }),
        `${directory} is a directory: name a raw image file or a block device`,
      ],
      [
        () => openFileDevice("/dev/null", { writable }),
        "/dev/null is no disk: name a raw image file or a block device",
      ],
      [
        () => openFileDevice(empty, { writable }),
        `disk ${empty} has no bytes: remove it and give --size to create it`,
      ],
      [
        () => openFileDevice(path, { writable, createSizeBytes: 6 }),
        `disk ${path} has 5 bytes, not the 6 of --size: leave --size out to use it`,
      ],
    ];
    for (const [opening, message] of messages) expect(await configError(opening())).to.equal(message);
    const inMissing = configError(openFileDevice(join(missing, "disk"), { writable, createSizeBytes: 5 }));
    expect(await inMissing)
      .to.include(join(missing, "disk"))
      .and.include("can't be created");
    const insideFile = configError(openFileDevice(join(path, "disk"), { writable, createSizeBytes: 5 }));
    expect(await insideFile).to.include(join(path, "disk"));
  });

  it("names a file that it may not write", async () => {
    // The kernel gives this one to nobody, not even to root, for writing.
    const readOnly = "/sys/kernel/uevent_seqnum";
    const message = await configError(openFileDevice(readOnly, { writable: true }));
    expect(message).to.equal(`disk ${readOnly} is not readable and writable: make it so for this user`);
  });

  it("removes what a failed creation made", async () => {
    const opening = openFileDevice(path, { writable: true, createSizeBytes: Number.MAX_SAFE_INTEGER });
    expect(await configError(opening)).to.include(path);
    expect(await readdir(directory)).to.deep.equal([]);
    expect(await configError(openFileDevice(path, { writable: true, createSizeBytes: -5 }))).to.include("-5");
  });

  it("says so where the machine has no image locks", async () => {
    const warnings: string[] = [];
    const options = {
      writable: true,
      createSizeBytes: 5,
      system: null,
      warn: (line: string) => warnings.push(line),
    };
    const first = await openFileDevice(path, options);
    const second = await openFileDevice(path, options);
    await first.close();
    await second.close();
    expect(warnings).to.have.length(2);
    expect(warnings[0]).to.include(path);
  });

  it("after a crash: says so where the kernel can't be made to forget what a failed flush has left in memory", async () => {
    await writeFile(path, Buffer.alloc(SIZE_BYTES, 7));
    const failing = Object.assign(
      systemRefusing(() => null),
      { dropCached: () => Promise.reject(new SystemCallError("posix_fadvise", constants.errno.EINVAL)) },
    );
    const warningsOf = async (system: Libc | null, afterCrash: boolean): Promise<string[]> => {
      const warnings: string[] = [];
      const warn = (line: string) => warnings.push(line);
      const device = await openFileDevice(path, { writable: true, afterCrash, system, warn });
      const content = Buffer.alloc(SIZE_BYTES);
      await device.read(0, content);
      await device.close();
      expect(content.equals(Buffer.alloc(SIZE_BYTES, 7))).to.equal(true);
      return warnings.filter((line) => !line.includes("locked"));
    };
    expect(await warningsOf(libc(), true)).to.deep.equal([]);
    expect(await warningsOf(failing, false)).to.deep.equal([]);
    for (const [system, reason] of [
      [failing, "EINVAL: posix_fadvise"],
      [null, "there is no koffi"],
    ] as const) {
      expect(await warningsOf(system, true)).to.deep.equal([
        `disk ${path} may be shown with what a failed flush did not save (${reason}): if one has failed, start this host anew`,
      ]);
    }
  });

  it("keeps its content for whoever opens the file next", async () => {
    const device = await openFileDevice(path, { writable: true, createSizeBytes: SIZE_BYTES });
    await device.write(SIZE_BYTES - 3, Buffer.from("end"), Flag.Fua);
    await device.flush();
    await device.close();
    expect((await readFile(path)).toString("latin1", SIZE_BYTES - 4)).to.equal("\0end");
  });
});

describe("a file device of a process that may have no more threads", () => {
  const workspace = useWorkspace();
  const { Worker } = workerThreads;

  function NoWorker(): never {
    throw Object.assign(new Error("EAGAIN"), { code: "ERR_WORKER_INIT_FAILED" });
  }

  beforeEach(() => {
    Object.assign(workerThreads, { Worker: NoWorker });
    syncBuiltinESMExports();
  });

  afterEach(() => {
    Object.assign(workerThreads, { Worker });
    syncBuiltinESMExports();
  });

  it("writes without a thread of its own", async () => {
    const path = workspace.path("disk.img");
    const device = await openFileDevice(path, { writable: true, createSizeBytes: SIZE_BYTES });
    await device.write(5, Buffer.from("first"), Flag.None);
    await device.write(10, Buffer.from("second"), Flag.Fua);
    await device.close();
    expect((await readFile(path)).toString("latin1", 5, 16)).to.equal("firstsecond");
  });
});

describe("a file device", () => {
  let directory: string;
  let path: string;
  let device: BlockDevice;

  async function open(system?: Libc): Promise<BlockDevice> {
    device = await openFileDevice(path, { writable: true, ...(system === undefined ? {} : { system }) });
    return device;
  }

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "file-device-"));
    path = join(directory, "disk.img");
    await writeFile(path, Buffer.alloc(SIZE_BYTES, 7));
  });

  afterEach(async () => {
    await device.close();
    await rm(directory, { recursive: true });
  });

  it("gives space back when it is trimmed or zeroed, unless it must stay allocated", async () => {
    await open();
    const full = await allocatedBytes(path);
    await device.zero(0, SIZE_BYTES, Flag.NoHole);
    await device.flush();
    expect(await allocatedBytes(path)).to.be.at.least(full);
    await device.trim(0, SIZE_BYTES / 2 - 50, Flag.None);
    const half = await allocatedBytes(path);
    expect(half).to.be.lessThan(full);
    await device.zero(0, SIZE_BYTES, Flag.FastZero);
    expect(await allocatedBytes(path)).to.be.lessThan(half);
    expect((await readFile(path)).equals(Buffer.alloc(SIZE_BYTES))).to.equal(true);
  });

  it("tells holes from data", async () => {
    await open();
    await device.zero(65536, 131072, Flag.None);
    expect(await device.extents(4096, SIZE_BYTES - 4096, 10)).to.deep.equal([
      { lengthBytes: 61440, hole: false, zero: false },
      { lengthBytes: 131072, hole: true, zero: true },
      { lengthBytes: SIZE_BYTES - 65536 - 131072, hole: false, zero: false },
    ]);
    expect(await device.extents(100000, 10, 10)).to.deep.equal([{ lengthBytes: 10, hole: true, zero: true }]);
    expect(await device.extents(0, SIZE_BYTES, 2)).to.have.length(2);
  });

  it("writes zeroes where the file system can't punch holes, but never as fast zeroes", async () => {
    await open(systemRefusing(() => constants.errno.EOPNOTSUPP));
    expect(device.info).to.deep.include({ zero: "emulated", trim: "none" });
    expect(await errno(device.trim(0, 10, Flag.None))).to.equal("ENOTSUP");
    for (const flags of [Flag.FastZero, Flag.FastZero | Flag.NoHole]) {
      expect(await errno(device.zero(10, 100, flags))).to.equal("ENOTSUP");
    }
    expect((await readFile(path)).equals(Buffer.alloc(SIZE_BYTES, 7))).to.equal(true);
    await device.zero(10, 500_000, Flag.None);
    await device.zero(600_000, 10, Flag.NoHole);
    const expected = Buffer.alloc(SIZE_BYTES, 7).fill(0, 10, 500_010).fill(0, 600_000, 600_010);
    expect((await readFile(path)).equals(expected)).to.equal(true);
  });

  it("allocates by punching and filling where there is no ZERO_RANGE", async () => {
    await open(
      systemRefusing((mode) => (mode === FallocateMode.ZeroRange ? constants.errno.EOPNOTSUPP : null)),
    );
    const full = await allocatedBytes(path);
    await device.zero(0, SIZE_BYTES, Flag.NoHole | Flag.FastZero);
    expect(await allocatedBytes(path)).to.be.at.least(full);
    expect((await readFile(path)).equals(Buffer.alloc(SIZE_BYTES))).to.equal(true);
  });

  it("reports errors with file, request and errno", async () => {
    await open(systemRefusing((mode) => (mode === FallocateMode.ZeroRange ? constants.errno.ENOSPC : null)));
    const error: unknown = await device.zero(4096, 100, Flag.NoHole).catch((reason: unknown) => reason);
    expect(error).to.be.instanceOf(DeviceError).and.have.property("errno", "ENOSPC");
    expect((error as DeviceError).message).to.equal(
      `${path}: zero of 100 bytes at 4096 failed: ENOSPC: fallocate`,
    );
  });

  it("fails reads behind the end of a file that was cut while in use", async () => {
    await open();
    await truncate(path, 1000);
    for (const lengthBytes of [200, 200_000]) {
      const error = await deviceErrorOf(device.read(900, Buffer.alloc(lengthBytes)));
      expect(error).to.include({ errno: "EIO", offset: 1000 });
    }
    await device.read(0, Buffer.alloc(1000));
  });

  for (const [by, lengthBytes] of [
    ["the thread of the disk", 8192],
    ["libuv's pool", 200_000],
  ] as const) {
    it(`tells where a write failed that ${by} has done in part`, async () => {
      await open();
      // The thread is there from the first write on, and takes what comes once it runs.
      await device.write(0, Buffer.of(1), Flag.None);
      const limitBytes = 1000 * 1024;
      const setLimit = (bytes: string): Promise<string> =>
        succeed("prlimit", ["--pid", String(process.pid), `--fsize=${bytes}`]);
      await waitFor(
        "the limit on the size of files to bite",
        async () => {
          await setLimit(`${limitBytes}:`);
          const writing = device.write(limitBytes - 4096, Buffer.alloc(lengthBytes), Flag.None);
          return deviceErrorOf(writing).finally(() => setLimit("unlimited:"));
        },
        (error) => {
          expect(error).to.include({ errno: "ENOSPC", offset: limitBytes });
          return lengthBytes > LANE_MAXIMUM_BYTES || error.message.includes("pwrite");
        },
      );
    });
  }

  it("never reports success again after a failed flush", async () => {
    await open();
    const [fd] = openDescriptorsOf(path);
    if (fd === undefined) throw new Error("the device has no descriptor");
    closeSync(fd);
    expect(await errno(device.flush())).to.equal("EIO");
    // The same number, a sound file: an fdatasync would succeed now.
    const placeholder = openSync(path, "r+");
    expect(placeholder).to.equal(fd);
    expect(await errno(device.flush())).to.equal("EIO");
    expect(await errno(device.write(0, Buffer.from([1]), Flag.Fua))).to.equal("EIO");
    await device.write(0, Buffer.from([2]), Flag.None);
    expect((await readFile(path))[0]).to.equal(2);
  });

  it("maps what the kernel answers to what a device may answer", async () => {
    await open();
    const answers = ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "ENOMEM", "EIO", "EBADF"] as const;
    const mapped = answers.map(
      (name) => fileError("p", "r", new SystemCallError("s", constants.errno[name])).errno,
    );
    expect(mapped).to.deep.equal(["ENOSPC", "ENOSPC", "ENOSPC", "EPERM", "EPERM", "ENOMEM", "EIO", "EIO"]);
    expect(fileError("p", "r", new Error("else")).errno).to.equal("EIO");
  });
});
