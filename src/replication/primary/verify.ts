/**
 * Compares a primary disk with its replica by digests, while guests write. (DRBD: online verify.)
 *
 * Invariants:
 * - A piece is read and digested on both sides while no change to it is under way on either, so what differs
 *   differs. Blocks that the dirty map has as missed are known to differ, and are passed over.
 * - A piece counts as done only when it was compared: what a lost link interrupts is compared again, and nothing else.
 */
import { withBuffer } from "../../block/buffer-pool.js";
import type { BlockDevice } from "../../block/device.js";
import { DIRTY_BLOCK_BYTES } from "../../block/dirty-blocks.js";
import { settleAll } from "../../block/settle-all.js";
import { LinkError } from "../../errors.js";
import type { DifferingExtent, VerifyReport } from "../../status.js";
import { digestsOf, MIN_DIGEST_BLOCK_BYTES } from "../digest.js";
import type { PrimaryDisk } from "./disk.js";
import type { RateLimit } from "./rate-limit.js";
import type { ReplicaDigests } from "./replica-digests.js";
import { Serial } from "../serial.js";

/** Content compared at once; a guest's write to it waits that long. A multiple of the dirty block. */
const PIECE_BYTES = 4 * DIRTY_BLOCK_BYTES;
/** Pieces under way at once: while the one half is compared, the other is read. */
const PIECES_IN_FLIGHT = 8;
/** Holes are compared by the maps of both sides, in steps of this size. */
const HOLE_STEP_BYTES = 1024 * 1024 * 1024;
const MAX_EXTENTS = 256;
/** Of the extents that differ, so many are named; all are counted. */
const MAX_DIFFERENCES = 100;

/** How the replica is looked at, as long as the link holds. */
export interface ReplicaAccess {
  readonly digests: Pick<ReplicaDigests, "of">;
  /** For what is a hole there. */
  readonly replica: BlockDevice;
  /** Whether the replica takes every change. */
  readonly isReplicating: () => boolean;
}

interface Piece {
  readonly offset: number;
  readonly lengthBytes: number;
  /** Whether to ask for holes first. */
  readonly mayBeHole: boolean;
}

/** Of a piece. */
interface Comparison {
  /** In blocks of MIN_DIGEST_BLOCK_BYTES. */
  readonly differing: readonly DifferingExtent[];
  /** Known to differ. */
  readonly skippedBytes: number;
}

export interface VerifyOptions {
  readonly rate: RateLimit;
  /** Whether the replica is to get what differs. */
  readonly repair: boolean;
}

export class Verify {
  readonly disk: PrimaryDisk;
  readonly rate: RateLimit;
  readonly #repair: boolean;
  readonly #startedAt = new Date().toISOString();
  readonly #claims = new Serial();
  readonly #cancelling = new AbortController();
  /** What is to be compared yet, in order. */
  #todo: Piece[];
  #doneBytes = 0;
  readonly #startMs = performance.now();
  #skippedBytes = 0;
  #differingBytes = 0;
  #repairedBytes = 0;
  #differences: DifferingExtent[] = [];
  #differencesAreAll = true;

  constructor(disk: PrimaryDisk, { rate, repair }: VerifyOptions) {
    this.disk = disk;
    this.rate = rate;
    this.#repair = repair;
    this.#todo = [{ offset: 0, lengthBytes: this.totalBytes, mayBeHole: true }];
  }

  get totalBytes(): number {
    return this.disk.local.info.sizeBytes;
  }

  get elapsedSeconds(): number {
    return (performance.now() - this.#startMs) / 1000;
  }

  get doneBytes(): number {
    return this.#doneBytes;
  }

  get isCancelled(): boolean {
    return this.#cancelling.signal.aborted;
  }

  /** Aborted by cancel(). */
  get signal(): AbortSignal {
    return this.#cancelling.signal;
  }

  cancel(): void {
    this.#cancelling.abort();
  }

  /** @param error why it ended before its end, if it failed */
  report(error: Error | null): VerifyReport {
    return {
      startedAt: this.#startedAt,
      endedAt: new Date().toISOString(),
      outcome: error !== null ? "failed" : this.isCancelled ? "cancelled" : "completed",
      error: error?.message ?? null,
      comparedBytes: this.#doneBytes - this.#skippedBytes,
      skippedBytes: this.#skippedBytes,
      differingBytes: this.#differingBytes,
      repairedBytes: this.#repairedBytes,
      differences: this.#differences,
      differencesAreAll: this.#differencesAreAll,
    };
  }

  /**
   * Goes on where it stopped, until everything is compared or it is cancelled.
   * @throws LinkError if the link was lost: to be called again; DeviceError or QmpError if a side can't be read
   */
  async run(access: ReplicaAccess): Promise<void> {
    const failing = new AbortController();
    const workers = Array.from({ length: PIECES_IN_FLIGHT }, () =>
      this.#comparePieces(access, failing.signal).catch((error: unknown) => {
        failing.abort();
        throw error;
      }),
    );
    await settleAll(workers);
  }

  async #comparePieces(access: ReplicaAccess, failing: AbortSignal): Promise<void> {
    while (!failing.aborted && !this.isCancelled) {
      const piece = await this.#claims.run(() => this.#claim());
      if (piece === null) return;
      try {
        await this.#comparePiece(access, piece);
      } catch (error) {
        this.#todo.unshift(piece);
        throw error;
      }
    }
  }

  /** The next piece: a hole as far as it goes, or content up to PIECE_BYTES. */
  async #claim(): Promise<Piece | null> {
    // Taken out before anything is awaited: others put pieces back meanwhile.
    const next = this.#todo.shift();
    if (next === undefined) return null;
    const { offset, mayBeHole } = next;
    let holeBytes = 0;
    try {
      if (mayBeHole) {
        const stepBytes = Math.min(next.lengthBytes, HOLE_STEP_BYTES);
        holeBytes = await zeroBytes(this.disk.local, offset, stepBytes);
      }
    } catch (error) {
      this.#todo.unshift(next);
      throw error;
    }
    const isHole = holeBytes > 0;
    const lengthBytes = isHole ? holeBytes : Math.min(PIECE_BYTES, next.lengthBytes);
    const rest = next.lengthBytes - lengthBytes;
    if (rest > 0) this.#todo.unshift({ offset: offset + lengthBytes, lengthBytes: rest, mayBeHole });
    return { offset, lengthBytes, mayBeHole: isHole };
  }

  async #comparePiece(access: ReplicaAccess, piece: Piece): Promise<void> {
    const { mirror } = this.disk;
    const { offset, lengthBytes, mayBeHole } = piece;
    if (mayBeHole) {
      const isHole = await mirror.exclusively(offset, lengthBytes, () => this.#isHole(access, piece));
      if (isHole) this.#doneBytes += lengthBytes;
      else this.#todo.unshift({ ...piece, mayBeHole: false });
      return;
    }
    // Before the range is locked: guests must not wait for our rate limit.
    await this.rate.take(lengthBytes, this.signal);
    const { differing, skippedBytes } = await mirror.exclusively(offset, lengthBytes, () =>
      this.#compare(access, piece),
    );
    for (const { offset: start, lengthBytes: bytes } of differing) {
      this.#differ(start, bytes);
      if (!this.#repair) continue;
      await this.disk.mirror.resend(start, bytes);
      this.#repairedBytes += bytes;
    }
    this.#skippedBytes += skippedBytes;
    this.#doneBytes += lengthBytes;
  }

  /** Whether both sides have nothing there. */
  async #isHole({ replica, isReplicating }: ReplicaAccess, { offset, lengthBytes }: Piece): Promise<boolean> {
    if (!isReplicating()) throw linkLost();
    if (this.#isMissed(offset, lengthBytes)) return false;
    if ((await zeroBytes(this.disk.local, offset, lengthBytes)) < lengthBytes) return false;
    return (await zeroBytes(replica, offset, lengthBytes)) === lengthBytes;
  }

  #compare(access: ReplicaAccess, { offset, lengthBytes }: Piece): Promise<Comparison> {
    return withBuffer(lengthBytes, (content) => this.#compareContent(access, offset, content));
  }

  async #compareContent(access: ReplicaAccess, offset: number, content: Buffer): Promise<Comparison> {
    if (!access.isReplicating()) throw linkLost();
    const asked = access.digests.of(this.disk.name, offset, content.length, DIRTY_BLOCK_BYTES);
    const read = this.disk.local.read(offset, content);
    await settleAll([asked.then(() => undefined), read]);
    const theirs = await asked;
    const differing: DifferingExtent[] = [];
    let skippedBytes = 0;
    for (const [index, ours] of digestsOf(content, DIRTY_BLOCK_BYTES).entries()) {
      const start = index * DIRTY_BLOCK_BYTES;
      const block = content.subarray(start, start + DIRTY_BLOCK_BYTES);
      if (this.#isMissed(offset + start, block.length)) skippedBytes += block.length;
      else if (ours !== theirs[index]) differing.push(...(await this.#narrow(access, block, offset + start)));
    }
    return { differing, skippedBytes };
  }

  async #narrow({ digests }: ReplicaAccess, block: Buffer, offset: number): Promise<DifferingExtent[]> {
    const theirs = await digests.of(this.disk.name, offset, block.length, MIN_DIGEST_BLOCK_BYTES);
    const differing: DifferingExtent[] = [];
    for (const [index, ours] of digestsOf(block, MIN_DIGEST_BLOCK_BYTES).entries()) {
      if (ours === theirs[index]) continue;
      const start = index * MIN_DIGEST_BLOCK_BYTES;
      const lengthBytes = Math.min(MIN_DIGEST_BLOCK_BYTES, block.length - start);
      add(differing, { offset: offset + start, lengthBytes });
    }
    return differing;
  }

  #isMissed(offset: number, lengthBytes: number): boolean {
    const missed = this.disk.dirty.nextMissed(offset, lengthBytes);
    return missed !== null && missed.offset < offset + lengthBytes;
  }

  #differ(offset: number, lengthBytes: number): void {
    this.#differingBytes += lengthBytes;
    const sorted = [...this.#differences, { offset, lengthBytes }].sort((a, b) => a.offset - b.offset);
    const merged: DifferingExtent[] = [];
    for (const extent of sorted) add(merged, extent);
    // For good: what was left out is not found again, however many of the others turn out to be one.
    if (merged.length > MAX_DIFFERENCES) this.#differencesAreAll = false;
    this.#differences = merged.slice(0, MAX_DIFFERENCES);
  }
}

/** Appends an extent that begins where the last one ends, or behind it. */
function add(extents: DifferingExtent[], extent: DifferingExtent): void {
  const last = extents.at(-1);
  if (last === undefined || last.offset + last.lengthBytes !== extent.offset) extents.push(extent);
  else extents[extents.length - 1] = { ...last, lengthBytes: last.lengthBytes + extent.lengthBytes };
}

/** How far it reads as zeroes, by the device's map, in whole dirty blocks; 0 where it can't tell. */
async function zeroBytes(device: BlockDevice, offset: number, lengthBytes: number): Promise<number> {
  if (device.info.extents !== "native") return 0;
  let zero = 0;
  for (const extent of await device.extents(offset, lengthBytes, MAX_EXTENTS)) {
    if (!extent.zero) break;
    zero += extent.lengthBytes;
  }
  return zero >= lengthBytes ? lengthBytes : zero - (zero % DIRTY_BLOCK_BYTES);
}

function linkLost(): LinkError {
  return new LinkError("link-lost", "the link to the replica was lost");
}
