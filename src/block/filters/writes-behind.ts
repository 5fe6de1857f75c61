/**
 * Writes that were acknowledged and are not on the disk yet: their content, their turns, and who waits for them.
 *
 * Invariants:
 * - A write is here from its acknowledgement until done(), and its content with it.
 * - They hold no more memory than the budget: one that finds it used up is not acknowledged before it has its share.
 * - Waiters are woken in the order of the numbers that they wait for.
 */
import { Arena, type Part } from "../buffer-pool.js";
import type { MemoryBudget } from "../memory-budget.js";
import type { RangeHold } from "../range-lock.js";

export interface WriteBehind {
  /** They are numbered in order of arrival. */
  readonly number: number;
  readonly offset: number;
  readonly copy: Part;
  /** Of the blocks that it touches. */
  readonly turn: RangeHold | Promise<RangeHold>;
  /** Settles when it has its share of the memory; null: it has. */
  readonly admitted: Promise<void> | null;
}

/** Holds many small copies. */
const SLAB_BYTES = 256 * 1024;

interface Waiter {
  readonly number: number;
  readonly resolve: () => void;
}

const DONE = Promise.resolve();

export class WritesBehind {
  readonly #memory: MemoryBudget;
  readonly #copies = new Arena(SLAB_BYTES);
  /** In order of arrival. */
  readonly #writes = new Set<WriteBehind>();
  readonly #waiters: Waiter[] = [];
  #lastNumber = 0;
  #lengthBytes = 0;

  constructor(memory: MemoryBudget) {
    this.#memory = memory;
  }

  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  get isEmpty(): boolean {
    return this.#writes.size === 0;
  }

  /** Copies the content. */
  add(offset: number, from: Buffer, turn: RangeHold | Promise<RangeHold>): WriteBehind {
    const admitted = this.#memory.tryTake(from.length) ? null : this.#memory.take(from.length);
    const number = ++this.#lastNumber;
    const write = { number, offset, copy: this.#copies.copy(from), turn, admitted };
    this.#writes.add(write);
    this.#lengthBytes += from.length;
    return write;
  }

  /** It is on the disk, or lost: its content may be forgotten. */
  done(write: WriteBehind): void {
    const { copy, admitted } = write;
    const { length } = copy.bytes;
    copy.slab.release();
    this.#lengthBytes -= length;
    this.#writes.delete(write);
    if (this.isEmpty) this.#copies.letGo();
    if (admitted === null) this.#memory.give(length);
    else void this.#giveBack(admitted, length);
    if (this.#waiters.length > 0) this.#wake();
  }

  /** Resolves when every write that is here now is done. Later ones are not waited for: under load there are always more. */
  settled(): Promise<void> {
    if (this.isEmpty) return DONE;
    return new Promise((resolve) => {
      this.#waiters.push({ number: this.#lastNumber, resolve });
    });
  }

  async #giveBack(admitted: Promise<void>, lengthBytes: number): Promise<void> {
    await admitted;
    this.#memory.give(lengthBytes);
  }

  #wake(): void {
    const [oldest] = this.#writes;
    const doneNumber = oldest === undefined ? this.#lastNumber : oldest.number - 1;
    for (let next = this.#waiters[0]; next !== undefined; next = this.#waiters[0]) {
      if (next.number > doneNumber) return;
      this.#waiters.shift();
      next.resolve();
    }
  }
}
