/**
 * Sends the replica what it lacks: the initial copy of a new one, or what was missed while it was away; not what it is found to have
 * all the same (known-content.ts).
 *
 * Invariant: a piece is read and sent while no change to it is under way on either side, so that the replica
 * never gets content that is older than what it has.
 */
import { setMaxListeners } from "node:events";

import { withBuffer } from "../../block/buffer-pool.js";
import type { BlockDevice } from "../../block/device.js";
import type { Clock } from "../../clock.js";
import { LinkError } from "../../errors.js";
import { DIRTY_BLOCK_BYTES } from "../../block/dirty-blocks.js";
import { settleAll } from "../../block/settle-all.js";
import { type CopyWindow, PIECES, type Send } from "./copy-window.js";
import type { PrimaryDisk } from "./disk.js";
import { COMPARED_BYTES, type KnownContent } from "./known-content.js";
import { Politeness } from "./politeness.js";
import type { RateLimit } from "./rate-limit.js";
import { Serial } from "../serial.js";

/** Content sent as one request. */
const LONGEST_WRITE_BYTES = 256 * 1024;
/** A hole is dealt with in steps of this size, whatever its length. */
const HOLE_STEP_BYTES = 1024 * 1024 * 1024;
const MAX_EXTENTS = 256;
/** What is made zeroes at once, in requests and in bytes: each may be a before-image for the replica to keep. */
const MOST_ZEROES = 32;
const MOST_ZEROED_BYTES = 32 * 1024 * 1024;

interface Range {
  readonly offset: number;
  readonly lengthBytes: number;
}

interface Piece extends Range {
  readonly isHole: boolean;
  /** What tells which of it the replica lacks; null: it goes as it is. */
  readonly known: KnownContent | null;
}

export interface ResyncOptions {
  readonly rate: RateLimit;
  /** Of the link, for all disks that are copied over it. */
  readonly window: CopyWindow;
  readonly clock: Clock;
  /** Null: the replica can't be asked what it has. */
  readonly known: KnownContent | null;
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
  readonly #known: KnownContent | null;
  readonly #claims = new Serial();
  readonly #stopping = new AbortController();
  #cursor = 0;

  /** @param replica reachable for as long as run() runs */
  constructor(disk: PrimaryDisk, replica: BlockDevice, { rate, window, clock, known }: ResyncOptions) {
    this.disk = disk;
    this.#replica = replica;
    this.#rate = rate;
    this.#clock = clock;
    this.#startMs = clock.nowMs();
    this.#politeness = new Politeness(disk.mirror, clock);
    this.#window = window;
    this.#known = known;
    // Each piece that waits for its rate listens, and each that rests.
    setMaxListeners(2 * PIECES, this.#stopping.signal);
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
      const { offset, lengthBytes, isHole, known } = piece;
      if (isHole) {
        await this.#politeness.run(
          () => this.#send(offset, offset + lengthBytes, (request) => request()),
          signal,
        );
      } else if (known === null) await this.#sendContentOf(piece);
      else for (const range of await this.#lacking(piece, known)) await this.#sendContentOf(range);
    }
  }

  async #sendContentOf({ offset, lengthBytes }: Range): Promise<void> {
    const { signal } = this.#stopping;
    // Both before the range is locked: guests must not wait for our limits.
    await this.#rate.take(lengthBytes, signal);
    await this.#politeness.run(
      () => this.#window.run(lengthBytes, (by) => this.#send(offset, offset + lengthBytes, by)),
      signal,
    );
  }

  /** What the replica does not have of a piece, each as long as may be sent at once. */
  async #lacking({ offset, lengthBytes }: Range, known: KnownContent): Promise<Range[]> {
    const { mirror, local, dirty } = this.disk;
    const lacking: Range[] = [];
    const compare = async (content: Buffer): Promise<void> => {
      this.#stopping.signal.throwIfAborted();
      const read = local.read(offset, content).then(() => content);
      const isSame = await known.compare(offset, lengthBytes, read);
      for (let at = 0; at < lengthBytes; at += DIRTY_BLOCK_BYTES) {
        const block = { offset: offset + at, lengthBytes: Math.min(DIRTY_BLOCK_BYTES, lengthBytes - at) };
        if (isSame[at / DIRTY_BLOCK_BYTES] === true) {
          dirty.resynced(block.offset, block.lengthBytes);
          this.disk.found(block.lengthBytes);
        } else add(lacking, block, this.#window.pieceBytes);
      }
    };
    await this.#politeness.run(
      () => mirror.exclusively(offset, lengthBytes, () => withBuffer(lengthBytes, compare)),
      this.#stopping.signal,
    );
    return lacking;
  }

  /** The next piece: a hole as far as it goes, or content as the window allows. */
  async #claim(): Promise<Piece | null> {
    const run = this.disk.dirty.nextMissed(this.#cursor, HOLE_STEP_BYTES);
    if (run === null) return null;
    const { offset } = run;
    const holeBytes = await this.#holeAt(offset, run.lengthBytes);
    const isHole = holeBytes > 0;
    const { pieceBytes } = this.#window;
    const known = !isHole && this.#known?.isDue(pieceBytes) === true ? this.#known : null;
    const longestBytes = isHole ? holeBytes : known !== null ? COMPARED_BYTES : pieceBytes;
    const lengthBytes = Math.min(longestBytes, run.lengthBytes);
    // The last block of a disk may be shorter: it is not to be claimed again while it is sent.
    this.#cursor = Math.ceil((offset + lengthBytes) / DIRTY_BLOCK_BYTES) * DIRTY_BLOCK_BYTES;
    return { offset, lengthBytes, isHole, known };
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
    for (let at = start; at < end;) {
      this.#stopping.signal.throwIfAborted();
      const from = at;
      at = await this.disk.mirror.exclusively(from, end - from, () => this.#sendSome(from, end, by));
    }
  }

  /**
   * Sends as much from the beginning of a range as a few requests take: all of most pieces. Guests must not wait for a long hole that is a
   * thousand fragments on the replica.
   * @returns the end of it, or of a block
   */
  async #sendSome(start: number, end: number, by: Send): Promise<number> {
    const { local, dirty } = this.disk;
    let at = start;
    do {
      const extents =
        local.info.extents === "native"
          ? await local.extents(at, end - at, MAX_EXTENTS)
          : [{ lengthBytes: end - at, zero: false }];
      for (const { lengthBytes, zero } of extents) {
        const extentEnd = at + lengthBytes;
        at = zero ? await this.#sendZeroes(at, extentEnd) : await this.#sendContent(at, extentEnd, by);
        if (at < extentEnd) break;
      }
    } while (at < end && at - start < DIRTY_BLOCK_BYTES);
    const reached = at === end ? end : at - ((at - start) % DIRTY_BLOCK_BYTES);
    dirty.resynced(start, reached - start);
    return reached;
  }

  /** @returns how far it came */
  async #sendContent(start: number, end: number, by: Send): Promise<number> {
    // A piece of content is no longer; but a hole may have been filled since it was looked up.
    const lengthBytes = Math.min(LONGEST_WRITE_BYTES, end - start);
    await withBuffer(lengthBytes, async (content) => {
      await this.disk.local.read(start, content);
      await by(() => this.#replica.write(start, content, 0));
    });
    this.disk.resynced(lengthBytes);
    return start + lengthBytes;
  }

  /** Asks first where that is cheap: most holes of a disk are holes of its replica. @returns how far it came */
  async #sendZeroes(start: number, end: number): Promise<number> {
    if (this.#replica.info.extents !== "native") {
      await this.#replica.zero(start, end - start, 0);
      return end;
    }
    const zeroes: Promise<void>[] = [];
    let at = start;
    let leftBytes = MOST_ZEROED_BYTES;
    for (const { lengthBytes, zero } of await this.#replica.extents(start, end - start, MAX_EXTENTS)) {
      if (!zero && (zeroes.length === MOST_ZEROES || leftBytes === 0)) break;
      const takenBytes = zero ? lengthBytes : Math.min(lengthBytes, leftBytes);
      if (!zero) {
        zeroes.push(this.#replica.zero(at, takenBytes, 0));
        leftBytes -= takenBytes;
      }
      at += takenBytes;
      if (takenBytes < lengthBytes) break;
    }
    await settleAll(zeroes);
    return at;
  }
}

/** Appends a range that begins where the last one ends, or behind it. */
function add(ranges: Range[], { offset, lengthBytes }: Range, longestBytes: number): void {
  const last = ranges.at(-1);
  const isNext = last !== undefined && last.offset + last.lengthBytes === offset;
  if (isNext && last.lengthBytes + lengthBytes <= longestBytes)
    ranges[ranges.length - 1] = { ...last, lengthBytes: last.lengthBytes + lengthBytes };
  else ranges.push({ offset, lengthBytes });
}
