/**
 * Storage of a simulated host: each request takes its time, they overtake each other, stall and fail, and a crash in the middle
 * of one leaves all, a part or nothing of it.
 */
import type { BlockDevice, DeviceInfo, Extent, Flags } from "../../src/block/device.js";
import { DeviceError, type Errno } from "../../src/errors.js";
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
  #taken = 0;

  /** How many requests failed so far. */
  get taken(): number {
    return this.#taken;
  }

  /** So many of the next requests fail. */
  set(count: number, errno: Errno): void {
    this.#left = count;
    this.#errno = errno;
  }

  mend(): void {
    this.#left = 0;
  }

  /** @throws DeviceError if the request is to fail */
  take(): void {
    if (this.#left === 0) return;
    this.#left--;
    this.#taken++;
    throw new DeviceError(this.#errno, `injected ${this.#errno}`);
  }
}

export class SimulatedDisk implements BlockDevice {
  readonly info: DeviceInfo;
  readonly #medium: WriteBackDisk;
  readonly #latency: Latency;
  readonly #faults: Faults;
  readonly #random: Random;

  /** @param faults of reads and changes; flushes don't fail */
  constructor(medium: WriteBackDisk, latency: Latency, faults: Faults, random: Random) {
    this.info = medium.info;
    this.#medium = medium;
    this.#latency = latency;
    this.#faults = faults;
    this.#random = random;
  }

  async read(offset: number, into: Buffer): Promise<void> {
    await this.#latency.pass();
    this.#faults.take();
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
    const commit = this.#medium.beginFlush();
    if ((await this.#latency.pass()) === "whole") commit();
  }

  async extents(offset: number, lengthBytes: number, maxExtents: number): Promise<Extent[]> {
    await this.#latency.pass();
    this.#faults.take();
    return this.#medium.extents(offset, lengthBytes, maxExtents);
  }

  /** The medium outlives the node. */
  close(): Promise<void> {
    return Promise.resolve();
  }

  async #change(
    offset: number,
    lengthBytes: number,
    apply: (start: number, end: number) => Promise<void>,
  ): Promise<void> {
    const fate = await this.#latency.pass();
    const end = offset + lengthBytes;
    try {
      this.#faults.take();
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
