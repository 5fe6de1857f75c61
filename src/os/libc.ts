/**
 * The system calls that Node has no binding for, through koffi; the only importer of it.
 *
 * Where koffi or a 64-bit Linux is missing, `libc()` is null and the project runs without: no hole
 * punching, no allocation map, no image locks. Environment REPL_NO_KOFFI=1 makes it so, for tests.
 *
 * Calls that may wait for the disk run on libuv's thread pool, where Node's own file calls run too.
 * Measured on Node 20, 2 cores: lseek 1 µs in place, 20-190 µs on the pool, just what fs.read costs there;
 * punching a hole 3 µs in place when nothing waits, without limit when the journal does. So: on the pool.
 * Locks, preadv2(RWF_NOWAIT) and what is for sockets never wait and are called in place.
 */
import { closeSync } from "node:fs";
import { createRequire } from "node:module";
import { constants as osConstants } from "node:os";
import process from "node:process";
import { getSystemErrorName } from "node:util";

import type * as Koffi from "koffi";

import { asError } from "../errors.js";

/** futimens(2), in the place of a time: leave it as it is. */
const UTIME_OMIT = 0x3f_ff_ff_fen;
const NS_PER_S = 1_000_000_000n;

/** fallocate(2) modes, each with FALLOC_FL_KEEP_SIZE: no call changes how long a file is. */
export const FallocateMode = { Allocate: 0x01, PunchHole: 0x02 | 0x01, ZeroRange: 0x10 | 0x01 } as const;

/** lseek(2) `whence`. */
export const Seek = { Data: 3, Hole: 4 } as const;

/** flock(2) operations. */
const FLOCK_EXCLUSIVE_NONBLOCKING = 2 | 4;

/** fcntl(2): locks that belong to the open file, not to the process. The same on every 64-bit Linux we know. */
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;

/** posix_fadvise(2): the file's clean pages may go from the page cache. */
const POSIX_FADV_DONTNEED = 4;

/** preadv2(2): fail with EAGAIN rather than wait for the disk. */
const RWF_NOWAIT = 8;

/** socket(2) and sendto(2). */
const AF_UNIX = 1;
const SOCK_DGRAM_CLOEXEC = 2 | 0x8_00_00;
const MSG_DONTWAIT_NOSIGNAL = 0x40 | 0x40_00;
/** Of sockaddr_un.sun_path. */
const SUN_PATH_BYTES = 108;

/** setsockopt(2), as most architectures have them, those of ARCHITECTURES_64_BIT among them. */
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SO_LINGER = 13;
const IPPROTO_TCP = 6;
const TCP_KEEPINTVL = 5;
const TCP_KEEPCNT = 6;
const TCP_USER_TIMEOUT = 18;

/** mallopt(3) of glibc. */
const M_MMAP_THRESHOLD = -3;

/** struct flock: short l_type, l_whence; off_t l_start, l_len; pid_t l_pid. Offsets in bytes. */
const FlockField = { type: 0, start: 8, length: 16, pid: 24 } as const;
const FLOCK_STRUCT_BYTES = 32;

/** koffi refuses more than 256 asynchronous calls; it keeps stacks ready for 8. The others wait in line. */
const ASYNC_CALLS_MAXIMUM = 8;

const ARCHITECTURES_64_BIT = ["x64", "arm64", "riscv64", "loong64", "ppc64", "s390x"];

/** A system call failed; with the members of Node's own errors. */
export class SystemCallError extends Error {
  /** The errno, negated as Node has it. */
  readonly errno: number;
  /** Its name, such as "ENOSPC". */
  readonly code: string;
  readonly syscall: string;

  constructor(syscall: string, errno: number) {
    const code = getSystemErrorName(-errno);
    super(`${code}: ${syscall}`);
    this.name = "SystemCallError";
    this.errno = -errno;
    this.code = code;
    this.syscall = syscall;
  }
}

/** A lock that stands in the way, as F_OFD_GETLK tells it. */
export interface ForeignLock {
  /** Null where the kernel doesn't know: locks of open files have no owner. */
  readonly pid: number | null;
}

/** Each call throws, or rejects with, SystemCallError. */
export interface Libc {
  /** fallocate(2), on the thread pool. */
  fallocate(fd: number, mode: number, offset: number, lengthBytes: number): Promise<void>;
  /** lseek(2) with SEEK_DATA or SEEK_HOLE, on the thread pool; null: nothing of the kind follows (ENXIO). */
  seek(fd: number, offset: number, whence: number): Promise<number | null>;
  /**
   * Reads what the page cache holds, in place: 1.5 µs for 4 KiB.
   * @returns the bytes read; 0 where it would have to wait, or can't tell
   */
  readCached(fd: number, into: Buffer, offset: number): number;
  /** posix_fadvise(2), on the thread pool: drops the clean pages of a file from the page cache; dirty ones stay. */
  dropCached(fd: number): Promise<void>;
  /** The address in memory at which the content begins. */
  address(content: Buffer): bigint;
  /** setsockopt(2) SO_SNDBUF: how much the kernel buffers of what a socket sends; it caps it at net.core.wmem_max. */
  setSendBuffer(fd: number, lengthBytes: number): void;
  /** setsockopt(2) TCP_KEEPINTVL and TCP_KEEPCNT: how many probes of a silent peer stay unanswered, and how far apart they are. */
  setKeepaliveProbes(fd: number, intervalSeconds: number, probes: number): void;
  /** setsockopt(2) TCP_USER_TIMEOUT: after how long without an acknowledgement of what was sent the kernel ends the connection. */
  setUserTimeout(fd: number, timeoutMs: number): void;
  /** setsockopt(2) SO_LINGER of no time: what is sent and not delivered when the socket is closed never will be; TCP resets the peer. */
  setLingerNot(fd: number): void;
  /**
   * mallopt(3) M_MMAP_THRESHOLD: blocks of this length and more go back to the kernel as soon as they are freed. Left alone,
   * glibc raises the threshold to the longest block that was ever freed so, and keeps all shorter ones. Nothing happens with
   * another C library.
   */
  setMmapThreshold(lengthBytes: number): void;
  /** futimens(2): sets the time of the last change, in nanoseconds since the epoch, and no other. */
  setModified(fd: number, modifiedNs: bigint): void;
  /**
   * Sends a datagram to a unix socket, without waiting for room there.
   * @param path "@" in front: an abstract one
   */
  sendDatagram(path: string, content: string): void;
  /** flock(2), exclusive; false: someone else holds it. */
  tryFlock(fd: number): boolean;
  /** Puts a shared lock on one byte for as long as this file is open; null: done; else what is in its way. */
  lockByteShared(fd: number, offset: number): ForeignLock | null;
  /** Whether another open file has any lock on the byte. */
  foreignLock(fd: number, offset: number): ForeignLock | null;
}

/** A C function: `(...arguments)` in place, or on the thread pool with a callback. */
interface NativeFunction {
  (...callArguments: unknown[]): number;
  async(...callArguments: unknown[]): void;
}

interface Outcome {
  readonly result: number;
  readonly errno: number;
}

let loaded: Libc | null | undefined;

/** The C library, loaded at the first call; null where it can't be. */
export function libc(): Libc | null {
  if (loaded === undefined) loaded = load();
  return loaded;
}

function load(): Libc | null {
  const supported = process.platform === "linux" && ARCHITECTURES_64_BIT.includes(process.arch);
  if (!supported || process.env["REPL_NO_KOFFI"] === "1") return null;
  try {
    return new KoffiLibc(createRequire(import.meta.url)("koffi") as typeof Koffi);
  } catch {
    // No binary for this C library, or a symbol is missing: whoever needs it says what is lost without.
    return null;
  }
}

/** Null where the C library has no such function. */
function optional(find: () => NativeFunction): NativeFunction | null {
  try {
    return find();
  } catch {
    return null;
  }
}

class KoffiLibc implements Libc {
  readonly #koffi: typeof Koffi;
  readonly #fallocate: NativeFunction;
  readonly #lseek: NativeFunction;
  readonly #preadv2: NativeFunction;
  readonly #fadvise: NativeFunction;
  readonly #futimens: NativeFunction;
  readonly #flock: NativeFunction;
  readonly #fcntl: NativeFunction;
  readonly #setsockopt: NativeFunction;
  readonly #mallopt: NativeFunction | null;
  readonly #socket: NativeFunction;
  readonly #sendto: NativeFunction;
  readonly #optionValue = new Int32Array(1);
  /** struct linger: int l_onoff, l_linger. */
  readonly #lingerNot = new Int32Array([1, 0]);
  readonly #iovec = new BigUint64Array(2);
  /** In the byte order of the machine, as typed arrays are. */
  readonly #lock = new ArrayBuffer(FLOCK_STRUCT_BYTES);
  /** Calls on the thread pool now; at most ASYNC_CALLS_MAXIMUM. */
  #running = 0;
  readonly #waiting: (() => void)[] = [];

  constructor(koffi: typeof Koffi) {
    const library = koffi.load(null);
    this.#koffi = koffi;
    this.#fallocate = library.func("int fallocate(int fd, int mode, int64_t offset, int64_t length)");
    this.#lseek = library.func("int64_t lseek(int fd, int64_t offset, int whence)");
    this.#preadv2 = library.func("int64_t preadv2(int fd, void *iov, int count, int64_t offset, int flags)");
    this.#fadvise = library.func("int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)");
    this.#futimens = library.func("int futimens(int fd, void *times)");
    this.#flock = library.func("int flock(int fd, int operation)");
    this.#fcntl = library.func("int fcntl(int fd, int command, ...)");
    this.#setsockopt = library.func(
      "int setsockopt(int fd, int level, int name, void *value, uint32_t bytes)",
    );
    this.#socket = library.func("int socket(int domain, int type, int protocol)");
    this.#sendto = library.func(
      "int64_t sendto(int fd, void *content, size_t length, int flags, void *address, uint32_t addressBytes)",
    );
    this.#mallopt = optional(() => library.func("int mallopt(int parameter, int value)"));
  }

  async fallocate(fd: number, mode: number, offset: number, lengthBytes: number): Promise<void> {
    const { result, errno } = await this.#onPool(this.#fallocate, fd, mode, offset, lengthBytes);
    if (result !== 0) throw new SystemCallError("fallocate", errno);
  }

  async seek(fd: number, offset: number, whence: number): Promise<number | null> {
    const { result, errno } = await this.#onPool(this.#lseek, fd, offset, whence);
    if (result >= 0) return result;
    if (errno === osConstants.errno.ENXIO) return null;
    throw new SystemCallError("lseek", errno);
  }

  readCached(fd: number, into: Buffer, offset: number): number {
    this.#iovec[0] = this.#koffi.address(into);
    this.#iovec[1] = BigInt(into.length);
    return Math.max(0, this.#preadv2(fd, this.#iovec, 1, offset, RWF_NOWAIT));
  }

  async dropCached(fd: number): Promise<void> {
    // To the end of the file. It returns its errno, and sets none.
    const { result: errno } = await this.#onPool(this.#fadvise, fd, 0, 0, POSIX_FADV_DONTNEED);
    if (errno !== 0) throw new SystemCallError("posix_fadvise", errno);
  }

  address(content: Buffer): bigint {
    return this.#koffi.address(content);
  }

  setSendBuffer(fd: number, lengthBytes: number): void {
    this.#setOption(fd, SOL_SOCKET, SO_SNDBUF, lengthBytes);
  }

  setKeepaliveProbes(fd: number, intervalSeconds: number, probes: number): void {
    this.#setOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, intervalSeconds);
    this.#setOption(fd, IPPROTO_TCP, TCP_KEEPCNT, probes);
  }

  setUserTimeout(fd: number, timeoutMs: number): void {
    this.#setOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, timeoutMs);
  }

  setLingerNot(fd: number): void {
    this.#setValue(fd, SOL_SOCKET, SO_LINGER, this.#lingerNot);
  }

  setMmapThreshold(lengthBytes: number): void {
    this.#mallopt?.(M_MMAP_THRESHOLD, lengthBytes);
  }

  setModified(fd: number, modifiedNs: bigint): void {
    // struct timespec[2]: of the last access, of the last change.
    const times = new BigInt64Array([0n, UTIME_OMIT, modifiedNs / NS_PER_S, modifiedNs % NS_PER_S]);
    if (this.#futimens(fd, times) !== 0) throw new SystemCallError("futimens", this.#koffi.errno());
  }

  sendDatagram(path: string, content: string): void {
    const name = Buffer.from(path.replace(/^@/, "\0"));
    if (name.length > SUN_PATH_BYTES) throw new SystemCallError("sendto", osConstants.errno.ENAMETOOLONG);
    const family = Buffer.from(new Uint16Array([AF_UNIX]).buffer);
    const address = Buffer.concat([family, name]);
    const datagram = Buffer.from(content);
    const fd = this.#socket(AF_UNIX, SOCK_DGRAM_CLOEXEC, 0);
    if (fd < 0) throw new SystemCallError("socket", this.#koffi.errno());
    try {
      const flags = MSG_DONTWAIT_NOSIGNAL;
      const sentBytes = this.#sendto(fd, datagram, datagram.length, flags, address, address.length);
      if (sentBytes < 0) throw new SystemCallError("sendto", this.#koffi.errno());
    } finally {
      closeSync(fd);
    }
  }

  tryFlock(fd: number): boolean {
    if (this.#flock(fd, FLOCK_EXCLUSIVE_NONBLOCKING) === 0) return true;
    const errno = this.#koffi.errno();
    if (errno === osConstants.errno.EWOULDBLOCK) return false;
    throw new SystemCallError("flock", errno);
  }

  lockByteShared(fd: number, offset: number): ForeignLock | null {
    this.#encodeLock(F_RDLCK, offset);
    if (this.#fcntl(fd, F_OFD_SETLK, "void *", this.#lock) === 0) return null;
    const errno = this.#koffi.errno();
    const held = errno === osConstants.errno.EAGAIN || errno === osConstants.errno.EACCES;
    if (!held) throw new SystemCallError("fcntl", errno);
    return this.foreignLock(fd, offset) ?? { pid: null };
  }

  foreignLock(fd: number, offset: number): ForeignLock | null {
    this.#encodeLock(F_WRLCK, offset);
    if (this.#fcntl(fd, F_OFD_GETLK, "void *", this.#lock) !== 0) {
      throw new SystemCallError("fcntl", this.#koffi.errno());
    }
    return this.#decodeLock();
  }

  /** Makes a call on the thread pool, now or when one of those running is done. */
  async #onPool(call: NativeFunction, ...callArguments: number[]): Promise<Outcome> {
    if (this.#running < ASYNC_CALLS_MAXIMUM) this.#running++;
    else await new Promise<void>((admit) => this.#waiting.push(admit));
    try {
      return await new Promise<Outcome>((resolve, reject) => {
        call.async(...callArguments, (failure: unknown, result: number) => {
          // koffi sets errno to what the call left in its thread, for the length of this callback.
          const errno = this.#koffi.errno();
          if (failure === null) resolve({ result, errno });
          else reject(asError(failure));
        });
      });
    } finally {
      const admitNext = this.#waiting.shift();
      if (admitNext === undefined) this.#running--;
      else admitNext();
    }
  }

  #setOption(fd: number, level: number, name: number, value: number): void {
    this.#optionValue[0] = value;
    this.#setValue(fd, level, name, this.#optionValue);
  }

  #setValue(fd: number, level: number, name: number, value: Int32Array): void {
    const result = this.#setsockopt(fd, level, name, value, value.byteLength);
    if (result !== 0) throw new SystemCallError("setsockopt", this.#koffi.errno());
  }

  #encodeLock(type: number, offset: number): void {
    new Uint8Array(this.#lock).fill(0);
    new Int16Array(this.#lock, FlockField.type, 1).fill(type);
    new BigInt64Array(this.#lock, FlockField.start, 1).fill(BigInt(offset));
    new BigInt64Array(this.#lock, FlockField.length, 1).fill(1n);
  }

  #decodeLock(): ForeignLock | null {
    const [type] = new Int16Array(this.#lock, FlockField.type, 1);
    const [pid] = new Int32Array(this.#lock, FlockField.pid, 1);
    if (type === F_UNLCK) return null;
    return { pid: pid !== undefined && pid > 0 ? pid : null };
  }
}
