/**
 * How much of a copy is on the link at once: what keeps it busy, and little more, for guests' writes stand behind that. What an answer
 * takes longer than the quickest one was spent in a queue (RFC 6817, LEDBAT, which yields to other traffic in the same way).
 *
 * Invariants:
 * - A piece enters when it fits the window beside those that are under way, or when none is.
 * - Pieces enter in the order in which they ask.
 * - The quickest answer is one of the last two minutes: a route may have become longer since.
 */
import { DIRTY_BLOCK_BYTES } from "../../block/dirty-blocks.js";
import type { Clock } from "../../clock.js";

/** Enough for 160 MB/s where an answer takes 50 ms. */
const LARGEST_BLOCKS = 128;
const FIRST_BLOCKS = 8;
/** Under way at most; so many fill the window, unless they would be shorter than a block. */
export const PIECES = 32;
/** The window grows while answers have waited for less than that, and shrinks when one has waited for more than twice that. */
const TARGET_MS = 50;
/** For so long the quickest answer counts at least, and at most twice that. */
const MEMORY_MS = 60_000;

/** A piece that is under way. */
interface Entry {
  readonly blocks: number;
  /** Nothing more would have fitted: what is learnt from it is learnt of a full window. */
  readonly isFilling: boolean;
  /** How often the window had shrunk before. */
  readonly shrunk: number;
}

interface Waiting {
  readonly blocks: number;
  readonly enter: (entry: Entry) => void;
}

export class CopyWindow {
  readonly #clock: Clock;
  #sizeBlocks = FIRST_BLOCKS;
  #blocksUnderWay = 0;
  readonly #waiting: Waiting[] = [];
  #shortestMs = Infinity;
  /** The one of the MEMORY_MS before. */
  #formerShortestMs = Infinity;
  #rememberedSinceMs: number;
  #shrunk = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#rememberedSinceMs = clock.nowMs();
  }

  /** How long the next piece may be: whole dirty blocks. */
  get pieceBytes(): number {
    return Math.ceil(this.#sizeBlocks / PIECES) * DIRTY_BLOCK_BYTES;
  }

  /** Does it once there is room. @param action gets what it is to send by */
  async run(lengthBytes: number, action: (send: Send) => Promise<void>): Promise<void> {
    const entry = await this.#enter(Math.ceil(lengthBytes / DIRTY_BLOCK_BYTES));
    try {
      await action(async (request) => {
        const startMs = this.#clock.nowMs();
        await request();
        this.#learn(entry, this.#clock.nowMs() - startMs);
      });
    } finally {
      this.#blocksUnderWay -= entry.blocks;
      this.#admit();
    }
  }

  #enter(blocks: number): Promise<Entry> {
    return new Promise((enter) => {
      this.#waiting.push({ blocks, enter });
      this.#admit();
    });
  }

  #admit(): void {
    for (;;) {
      const next = this.#waiting[0];
      if (next === undefined) return;
      const { blocks, enter } = next;
      if (this.#blocksUnderWay > 0 && this.#blocksUnderWay + blocks > this.#sizeBlocks) return;
      this.#waiting.shift();
      this.#blocksUnderWay += blocks;
      const isFilling = this.#blocksUnderWay + blocks > this.#sizeBlocks;
      enter({ blocks, isFilling, shrunk: this.#shrunk });
    }
  }

  #learn({ isFilling, shrunk }: Entry, tookMs: number): void {
    this.#forget();
    this.#shortestMs = Math.min(this.#shortestMs, tookMs);
    const queuedMs = tookMs - Math.min(this.#shortestMs, this.#formerShortestMs);
    if (queuedMs < TARGET_MS && isFilling) this.#sizeBlocks = Math.min(LARGEST_BLOCKS, this.#sizeBlocks + 1);
    // Pieces from before it shrank tell what is known already.
    if (queuedMs > 2 * TARGET_MS && shrunk === this.#shrunk) {
      this.#shrinkTo(Math.max(1, Math.floor(this.#sizeBlocks / 2)));
    }
  }

  #forget(): void {
    const nowMs = this.#clock.nowMs();
    if (nowMs - this.#rememberedSinceMs < MEMORY_MS) return;
    this.#rememberedSinceMs = nowMs;
    this.#formerShortestMs = this.#shortestMs;
    this.#shortestMs = Infinity;
    // The queue has to be empty once, or what an answer waits in it would pass for the way, and be added to each time.
    this.#shrinkTo(1);
  }

  #shrinkTo(blocks: number): void {
    this.#sizeBlocks = blocks;
    this.#shrunk++;
  }
}

/** Sends one request and takes its time. */
export type Send = (request: () => Promise<void>) => Promise<void>;
