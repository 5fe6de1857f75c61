/**
 * Sends the replica what it lacks: the initial copy of a new one, or what was missed while it was away.
 *
 * Invariant: a piece is read and sent while no change to it is under way on either side, so that the replica
 * never gets content that is older than what it has.
 */
import { withBuffer } from "../block/buffer-pool.js";
import type { BlockDevice } from "../block/device.js";
import type { Clock } from "../clock.js";
import { LinkError } from "../errors.js";
import { DIRTY_BLOCK_BYTES } from "../block/dirty-blocks.js";
import { settleAll } from "../block/settle-all.js";
import { CopyWindow, PIECES, type Send } from "./copy-window.js";
import type { PrimaryDisk } from "./primary-disk.js";
import { Politeness } from "./politeness.js";
import type { RateLimit } from "./rate-limit.js";
import { Serial } from "./serial.js";

/** Content sent as one request. */
const LONGEST_WRITE_BYTES = 256 * 1024;
/** A hole is dealt with in steps of this size, whatever its length. */
const HOLE_STEP_BYTES = 1024 * 1024 * 1024;
const MAX_EXTENTS = 256;

interface Piece {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly isHole: boolean;
}

export class Resync {
  readonly disk: PrimaryDisk;
  readonly totalBytes: number;
  readonly #replica: BlockDevice;
  readonly #rate: RateLimit;
  readonly #clock: Clock;
  readonly #startMs: number;
  readonly #politeness: Politeness;
  readonly #window: CopyWindow;
  readonly #claims = new Serial();
  readonly #stopping = new AbortController();
  #cursor = 0;

  /** @param replica reachable for as long as run() runs */
  constructor(disk: PrimaryDisk, replica: BlockDevice, rate: RateLimit, clock: Clock) {
    this.disk = disk;
    this.#replica = replica;
    this.#rate = rate;
    this.#clock = clock;
    this.#startMs = clock.nowMs();
    this.#politeness = new Politeness(disk.mirror, clock);
    this.#window = new CopyWindow(clock);
    this.totalBytes = disk.dirty.missedBytes;
  }

  /** Bytes of `totalBytes` that the replica has by now. */
  get doneBytes(): number {
    return Math.max(0, this.totalBytes - this.disk.dirty.missedBytes);
  }

  get elapsedSeconds(): number {
    return (this.#clock.nowMs() - this.#startMs) / 1000;
  }

  /**
   * Resolves when the replica lacks nothing.
   * @throws DeviceError or LinkError as soon as something can't be read or sent
   */
  async run(): Promise<void> {
    // Blocks missed behind the cursor while we went on are picked up by another round.
    while (this.disk.dirty.missedBytes > 0) {
      this.#cursor = 0;
      await settleAll(Array.from({ length: PIECES }, () => this.#sendPieces().catch(this.#giveUp)));
    }
  }

  /** Makes run() reject soon, whatever the rate limit says. */
  stop(): void {
    this.#stopping.abort(new LinkError("stopped", "the resync was stopped"));
  }

  /** One piece that can't be sent ends the copy: the others would go on to the end of the disk first. */
  readonly #giveUp = (error: unknown): never => {
    this.#stopping.abort(error);
    throw error;
  };

  async #sendPieces(): Promise<void> {
    const { signal } = this.#stopping;
    for (;;) {
      const piece = await this.#claims.run(() => this.#claim());
      if (piece === null) return;
      const { offset, lengthBytes, isHole } = piece;
      const send = (by: Send): Promise<void> => {
        signal.throwIfAborted();
        return this.disk.mirror.exclusively(offset, lengthBytes, () =>
          this.#send(offset, offset + lengthBytes, by),
        );
      };
      // Both before the range is locked: guests must not wait for our limits.
      if (!isHole) await this.#rate.take(lengthBytes, signal);
      await this.#politeness.run(
        () => (isHole ? send((request) => request()) : this.#window.run(lengthBytes, send)),
        signal,
      );
    }
  }

  /** The next piece: a hole as far as it goes, or content as the window allows. */
  async #claim(): Promise<Piece | null> {
    const run = this.disk.dirty.nextMissed(this.#cursor, HOLE_STEP_BYTES);
    if (run === null) return null;
    const { offset } = run;
    const holeBytes = await this.#holeAt(offset, run.lengthBytes);
    const isHole = holeBytes > 0;
    const lengthBytes = isHole ? holeBytes : Math.min(this.#window.pieceBytes, run.lengthBytes);
    this.#cursor = offset + lengthBytes;
    return { offset, lengthBytes, isHole };
  }

  /** Length of the hole at `offset` in whole dirty blocks; 0 where there is none. */
  async #holeAt(offset: number, lengthBytes: number): Promise<number> {
    const { local } = this.disk;
    if (local.info.extents !== "native") return 0;
    const [extent] = await local.extents(offset, lengthBytes, 1);
    if (extent?.zero !== true) return 0;
    return extent.lengthBytes === lengthBytes
      ? lengthBytes
      : extent.lengthBytes - (extent.lengthBytes % DIRTY_BLOCK_BYTES);
  }

  async #send(start: number, end: number, by: Send): Promise<void> {
    const { local, dirty } = this.disk;
    let at = start;
    while (at < end) {
      const extents =
        local.info.extents === "native"
          ? await local.extents(at, end - at, MAX_EXTENTS)
          : [{ lengthBytes: end - at, hole: false, zero: false }];
      for (const { lengthBytes, zero } of extents) {
        if (zero) await this.#sendZeroes(at, at + lengthBytes);
        else await this.#sendContent(at, at + lengthBytes, by);
        at += lengthBytes;
      }
    }
    dirty.resynced(start, end - start);
  }

  /** A piece of content; but a hole that was filled since it was looked up can be long. */
  async #sendContent(start: number, end: number, by: Send): Promise<void> {
    for (let at = start; at < end; at += LONGEST_WRITE_BYTES) {
      const lengthBytes = Math.min(LONGEST_WRITE_BYTES, end - at);
      await withBuffer(lengthBytes, async (content) => {
        await this.disk.local.read(at, content);
        await by(() => this.#replica.write(at, content, 0));
      });
      this.disk.resynced(lengthBytes);
    }
  }

  /** Asks first where that is cheap: most holes of a disk are holes of its replica. */
  async #sendZeroes(start: number, end: number): Promise<void> {
    if (this.#replica.info.extents !== "native") return this.#replica.zero(start, end - start, 0);
    let at = start;
    while (at < end) {
      for (const { lengthBytes, zero } of await this.#replica.extents(at, end - at, MAX_EXTENTS)) {
        if (!zero) await this.#replica.zero(at, lengthBytes, 0);
        at += lengthBytes;
      }
    }
  }
}
