/**
 * Storage of a simulated host: each request takes its time, they overtake each other, stall and fail, and a crash in the middle
 * of one leaves all, a part or nothing of it.
 */
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../../src/block/device.js";
import { asError, type Errno } from "../../src/errors.js";
import { StorageFault } from "../tools/memory-state-directory.js";
import type { Random } from "../tools/seed.js";
import { SECTOR_BYTES, type WriteBackDisk } from "../tools/write-back-disk.js";
import type { VirtualTime } from "./virtual-time.js";

/** What becomes of a request that was under way. */
type Fate = "whole" | "torn" | "lost";

/** How long requests take, and what is under way. */
export class Latency {
  readonly #time: VirtualTime;
  readonly #random: Random;
  readonly #underWay = new Set<(fate: Fate) => void>();
  #stalledUntilMs = 0;

  constructor(time: VirtualTime, random: Random) {
    this.#time = time;
    this.#random = random;
  }

  /** Resolves when the medium does the request. */
  pass(): Promise<Fate> {
    return new Promise((resolve) => {
      const end = (fate: Fate): void => {
        cancel();
        this.#underWay.delete(end);
        resolve(fate);
      };
      const usualMs = this.#random.below(40) === 0 ? 20 : this.#random.below(100) / 100;
      const stalledMs = Math.max(0, this.#stalledUntilMs - this.#time.nowMs);
      const cancel = this.#time.after(usualMs + stalledMs, () => {
        end("whole");
      });
      this.#underWay.add(end);
    });
  }

  /** Later requests wait for so long. */
  stall(ms: number): void {
    this.#stalledUntilMs = this.#time.nowMs + ms;
  }

  /** Ends what is under way, one way or another. */
  crash(losesPower: boolean): void {
    for (const end of [...this.#underWay]) {
      // The kernel finishes what it was given; of what a process had not given it nothing is done.
      end(this.#random.oneOf<Fate>(losesPower ? ["whole", "torn", "lost"] : ["whole", "lost"]));
    }
    this.#stalledUntilMs = 0;
  }
}

/** Requests of a medium that fail, by order of their coming; they outlast the life of a node. */
export class Faults {
  #left = 0;
  #errno: Errno = "EIO";
  #pattern: RegExp | null = null;
  #taken = 0;

  /** How many requests failed so far. */
  get taken(): number {
    return this.#taken;
  }

  /** So many of the next requests fail. @param pattern of what is asked for; null: whatever it is */
  set(count: number, errno: Errno, pattern: RegExp | null = null): void {
    this.#left = count;
    this.#errno = errno;
    this.#pattern = pattern;
  }

  mend(): void {
    this.#left = 0;
  }

  /** @throws StorageFault if the request is to fail */
  take(request = ""): void {
    if (this.#left === 0 || this.#pattern?.test(request) === false) return;
    this.#left--;
    this.#taken++;
    throw new StorageFault(this.#errno, `injected ${this.#errno}${request === "" ? "" : `: ${request}`}`);
  }
}

/** What fails of a disk. */
export interface DiskFaults {
  /** Reads and changes. */
  readonly requests: Faults;
  readonly flushes: Faults;
}

export class SimulatedDisk implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #medium: WriteBackDisk;
  readonly #latency: Latency;
  readonly #faults: DiskFaults;
  readonly #random: Random;
  readonly #onFlushFailed: () => void;
  /** The first failure is final, as of a file or block device (src/block/group-flush.ts). */
  #flushFailure: Error | null = null;

  /** @param onFlushFailed what was not durable may be lost from then on */
  constructor(
    medium: WriteBackDisk,
    latency: Latency,
    faults: DiskFaults,
    random: Random,
    onFlushFailed: () => void,
  ) {
    this.info = medium.info;
    this.#medium = medium;
    this.#latency = latency;
    this.#faults = faults;
    this.#random = random;
    this.#onFlushFailed = onFlushFailed;
  }

  /** Whether no flush succeeds any more. */
  get hasFlushFailed(): boolean {
    return this.#flushFailure !== null;
  }

  async read(offset: number, into: Buffer): Promise<void> {
    await this.#latency.pass();
    this.#faults.requests.take();
    await this.#medium.read(offset, into);
  }

  /** Half of it is in memory, by chance. */
  tryRead(offset: number, into: Buffer): boolean {
    return this.#random.below(2) === 0 && this.#medium.tryRead(offset, into);
  }

  async write(offset: number, from: Buffer, flags: Flags): Promise<void> {
    await this.#change(offset, from.length, (start, end) =>
      this.#medium.write(start, from.subarray(start - offset, end - offset), flags),
    );
  }

  async zero(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    await this.#change(offset, lengthBytes, (start, end) => this.#medium.zero(start, end - start, flags));
  }

  async trim(offset: number, lengthBytes: number, flags: Flags): Promise<void> {
    await this.#change(offset, lengthBytes, (start, end) => this.#medium.trim(start, end - start, flags));
  }

  async flush(): Promise<void> {
    this.#refuseAfterFailure();
    const commit = this.#medium.beginFlush();
    const fate = await this.#latency.pass();
    // One that was under way beside it may cover what that one gave up.
    this.#refuseAfterFailure();
    try {
      this.#faults.flushes.take();
    } catch (error) {
      this.#flushFailure = asError(error);
      this.#medium.failFlush(this.#random);
      commit();
      this.#onFlushFailed();
      throw error;
    }
    if (fate === "whole") commit();
  }

  async extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    await this.#latency.pass();
    this.#faults.requests.take();
    return this.#medium.extents(offset, lengthBytes, maxExtents);
  }

  /** The medium outlives the node. */
  close(): Promise<void> {
    return Promise.resolve();
  }

  #refuseAfterFailure(): void {
    if (this.#flushFailure !== null) throw this.#flushFailure;
  }

  async #change(
    offset: number,
    lengthBytes: number,
    apply: (start: number, end: number) => Promise<void>,
  ): Promise<void> {
    const fate = await this.#latency.pass();
    const end = offset + lengthBytes;
    try {
      this.#faults.requests.take();
    } catch (error) {
      // What a failed change leaves is any mixture of old and new.
      await this.#tear(offset, end, apply);
      throw error;
    }
    if (fate === "whole") await apply(offset, end);
    if (fate === "torn") await this.#tear(offset, end, apply);
  }

  async #tear(
    offset: number,
    end: number,
    apply: (start: number, end: number) => Promise<void>,
  ): Promise<void> {
    for (let start = offset; start < end;) {
      const next = Math.min(end, start - (start % SECTOR_BYTES) + SECTOR_BYTES);
      if (this.#random.below(2) === 0) await apply(start, next);
      start = next;
    }
  }
}
