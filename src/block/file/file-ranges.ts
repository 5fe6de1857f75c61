/**
 * What a file can do with ranges beside reading and writing them: punch holes, become zero, tell its
 * allocation. All of it is fallocate(2) and lseek(2); each file system has its own selection.
 *
 * Block devices take the same calls (Linux 4.9): a hole is a discard that is sure to read as zeroes. They want
 * whole sectors, so the ends of a range are written or, for trim, left alone.
 *
 * Invariants:
 * - What the file system has refused once (`#punches`, `#zeroes`, `#allocates`) is not asked of it again.
 * - There is no hole in `#data` that was punched through this device.
 */
import type { Extent, Flags } from "../device.js";
import { Flag } from "../device.js";
import { ZEROES } from "../zeroes.js";
import { writeFully } from "./file-io.js";
import type { OpenFile } from "./file-open.js";
import { fstatSync } from "node:fs";
import { DeviceError } from "../../errors.js";
import { isUnsupported } from "../../os/errno.js";
import type { Libc } from "../../os/libc.js";
import { FallocateMode, Seek, SystemCallError } from "../../os/libc.js";

/** The length of a hole punched where nothing is. */
const PROBE_BYTES = 4096;

/** A range [start, end). */
interface Range {
  readonly start: number;
  readonly end: number;
}

const NOTHING: Range = { start: 0, end: 0 };

export class FileRanges {
  readonly #system: Libc | null;
  readonly #file: OpenFile;
  /** What the file system is known to take; falls to false at the first refusal. */
  #punches: boolean;
  #zeroes: boolean;
  #allocates: boolean;
  readonly #tells: boolean;
  /**
   * A range without holes, the last that was found: saves each long read of a full disk two calls on the thread pool. Only
   * punching could make it untrue, and resets it; if another process punches, holes are told as data, which is allowed.
   */
  #data: Range = NOTHING;
  #punchCount = 0;

  private constructor(system: Libc | null, file: OpenFile, punches: boolean, tells: boolean) {
    this.#system = system;
    this.#file = file;
    this.#punches = punches;
    this.#zeroes = system !== null;
    this.#allocates = system !== null && !file.isBlockDevice;
    this.#tells = tells;
  }

  /** Finds out, changing nothing, what the file can do. */
  static async probe(system: Libc | null, file: OpenFile): Promise<FileRanges> {
    if (system === null) return new FileRanges(null, file, false, false);
    const tells = !file.isBlockDevice && (await succeeds(system.seek(file.fd, 0, Seek.Hole)));
    return new FileRanges(system, file, file.writable && (await canPunch(system, file)), tells);
  }

  get canPunch(): boolean {
    return this.#punches;
  }

  get tellsExtents(): boolean {
    return this.#tells;
  }

  /** @throws DeviceError ENOTSUP, with nothing changed, for Flag.FastZero where zeroes would have to be written */
  async zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    const whole = this.#wholeSectors(offset, lengthBytes);
    const fast = whole !== null && (await this.#zeroFast(whole, flags));
    if (!fast && (flags & Flag.FastZero) !== 0) {
      throw new DeviceError("ENOTSUP", `${this.#file.path} has no fast way to zero this range`);
    }
    const end = offset + lengthBytes;
    if (!fast) {
      await this.#writeZeroes(offset, end);
    } else {
      await this.#writeZeroes(offset, whole.start);
      await this.#writeZeroes(whole.end, end);
    }
  }

  /** Gives the whole sectors of the range back to the file system. */
  async trim(offset: number, lengthBytes: number): Promise<void> {
    const whole = this.#wholeSectors(offset, lengthBytes);
    if (whole !== null) await this.#punch(whole);
  }

  /** The allocation of a range, at most `maxExtents` of them; needs `tellsExtents`. */
  async extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    const system = this.#system;
    if (system === null || !this.#tells) {
      throw new DeviceError("ENOTSUP", `${this.#file.path} does not tell what is allocated`);
    }
    const end = offset + lengthBytes;
    const extents: Extent[] = [];
    let at = offset;
    while (at < end && extents.length < maxExtents) {
      if (at >= this.#data.start && at < this.#data.end) {
        const dataEnd = Math.min(end, this.#data.end);
        extents.push({ lengthBytes: dataEnd - at, hole: false, zero: false });
        at = dataEnd;
        continue;
      }
      const punchCount = this.#punchCount;
      const dataStart = Math.min(end, (await system.seek(this.#file.fd, at, Seek.Data)) ?? end);
      if (dataStart > at) {
        extents.push({ lengthBytes: dataStart - at, hole: true, zero: true });
        at = dataStart;
      } else {
        // A hole punched since the first look may begin right here; "data" is never wrong, so say that.
        const hole = (await system.seek(this.#file.fd, at, Seek.Hole)) ?? end;
        if (punchCount === this.#punchCount) this.#data = { start: at, end: hole };
        const dataEnd = hole > at ? Math.min(end, hole) : end;
        extents.push({ lengthBytes: dataEnd - at, hole: false, zero: false });
        at = dataEnd;
      }
    }
    return extents;
  }

  async #zeroFast(range: Range, flags: Flags): Promise<boolean> {
    if ((flags & Flag.NoHole) === 0) return this.#punch(range);
    // On a block device the kernel writes the zeroes itself where the disk can't: right, but not fast.
    if (this.#file.isBlockDevice && (flags & Flag.FastZero) !== 0) return false;
    if (this.#zeroes) {
      this.#zeroes = await this.#allocate(FallocateMode.ZeroRange, range);
      if (this.#zeroes) return true;
    }
    if (!this.#allocates || !(await this.#punch(range))) return false;
    this.#allocates = await this.#allocate(FallocateMode.Allocate, range);
    return this.#allocates;
  }

  async #punch(range: Range): Promise<boolean> {
    if (!this.#punches) return false;
    this.#forgetData();
    this.#punches = await this.#allocate(FallocateMode.PunchHole, range);
    this.#forgetData();
    return this.#punches;
  }

  /** Called before and after a punch: for look-ups during it, and so that one that began before is not remembered. */
  #forgetData(): void {
    this.#punchCount++;
    this.#data = NOTHING;
  }

  /** False: the file system lacks this mode, and has changed nothing. */
  async #allocate(mode: number, { start, end }: Range): Promise<boolean> {
    try {
      await this.#system?.fallocate(this.#file.fd, mode, start, end - start);
      return true;
    } catch (error) {
      if (isUnsupported(error)) return false;
      throw error;
    }
  }

  /** Null where there is none. */
  #wholeSectors(offset: number, lengthBytes: number): Range | null {
    const { sectorBytes } = this.#file;
    const start = Math.ceil(offset / sectorBytes) * sectorBytes;
    const end = Math.floor((offset + lengthBytes) / sectorBytes) * sectorBytes;
    return start < end ? { start, end } : null;
  }

  async #writeZeroes(start: number, end: number): Promise<void> {
    for (let at = start; at < end; at += ZEROES.length) {
      await writeFully(this.#file, null, ZEROES.subarray(0, end - at), at);
    }
  }
}

/**
 * Punching behind the end of a regular file is a no-op that shows the answer; a block device tells when used. The
 * kernel takes it for a change all the same, which is undone: by that time others tell whether the disk was changed.
 */
async function canPunch(system: Libc, file: OpenFile): Promise<boolean> {
  if (file.isBlockDevice) return true;
  const { mtimeNs } = fstatSync(file.fd, { bigint: true });
  const punches = await succeeds(
    system.fallocate(file.fd, FallocateMode.PunchHole, file.sizeBytes, PROBE_BYTES),
  );
  system.setModified(file.fd, mtimeNs);
  return punches;
}

async function succeeds(call: Promise<unknown>): Promise<boolean> {
  try {
    await call;
    return true;
  } catch (error) {
    if (error instanceof SystemCallError) return false;
    throw error;
  }
}
