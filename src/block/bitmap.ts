/** A bitmap over the blocks of a disk, with a count of the bits set. 1 TiB in 64 KiB blocks: 2 MiB. */
export class Bitmap {
  readonly length: number;
  readonly #words: Uint32Array;
  #count = 0;

  constructor(length: number) {
    this.length = length;
    this.#words = new Uint32Array(Math.ceil(length / 32));
  }

  /** How many bits are set. */
  get count(): number {
    return this.#count;
  }

  has(index: number): boolean {
    return ((this.#word(index >>> 5) >>> (index & 31)) & 1) === 1;
  }

  /** Sets [start, end). */
  set(start: number, end: number): void {
    for (let index = start; index < end; index++) {
      if (this.has(index)) continue;
      this.#words[index >>> 5] = this.#word(index >>> 5) | (1 << (index & 31));
      this.#count++;
    }
  }

  /** Clears [start, end). */
  clear(start: number, end: number): void {
    for (let index = start; index < end; index++) {
      if (!this.has(index)) continue;
      this.#words[index >>> 5] = this.#word(index >>> 5) & ~(1 << (index & 31));
      this.#count--;
    }
  }

  setAll(): void {
    this.#words.fill(0xff_ff_ff_ff);
    const beyond = this.#words.length * 32 - this.length;
    if (beyond > 0) this.#words[this.#words.length - 1] = 0xff_ff_ff_ff >>> beyond;
    this.#count = this.length;
  }

  clearAll(): void {
    this.#words.fill(0);
    this.#count = 0;
  }

  /** Sets every bit that is set in `other`. */
  add(other: Bitmap): void {
    if (other.count === 0) return;
    let count = 0;
    for (let index = 0; index < this.#words.length; index++) {
      const word = this.#word(index) | other.#word(index);
      this.#words[index] = word;
      count += bitCount(word);
    }
    this.#count = count;
  }

  /** Clears every bit that is set in `other`. */
  remove(other: Bitmap): void {
    if (this.#count === 0 || other.count === 0) return;
    let count = 0;
    for (let index = 0; index < this.#words.length; index++) {
      const word = this.#word(index) & ~other.#word(index);
      this.#words[index] = word;
      count += bitCount(word);
    }
    this.#count = count;
  }

  /** 32 bits, of which bit 0 is number 32 * `index`; zero beyond the end. */
  word(index: number): number {
    return this.#words[index] ?? 0;
  }

  /** Sets the bits that are set in `word`, as word() gives them. */
  addWord(index: number, word: number): void {
    for (let rest = word >>> 0; rest !== 0; rest &= rest - 1) {
      const bit = index * 32 + trailingZeros(rest);
      if (bit < this.length) this.set(bit, bit + 1);
    }
  }

  /** Whether a bit of [start, end) is set; looks no further. */
  intersects(start: number, end: number): boolean {
    return this.#count > 0 && this.#next(start, Math.min(end, this.length), 0) !== -1;
  }

  /** The first set bit at or after `from`, or -1. */
  nextSet(from: number): number {
    return this.#count > 0 ? this.#next(from, this.length, 0) : -1;
  }

  /** The first clear bit at or after `from`, or `length`. */
  nextClear(from: number): number {
    const found = this.#next(from, this.length, 0xff_ff_ff_ff);
    return found === -1 ? this.length : found;
  }

  /** The first set bit of [from, end), with all inverted or none; or -1. */
  #next(from: number, end: number, invert: number): number {
    if (from >= end) return -1;
    let wordIndex = from >>> 5;
    let word = (this.#word(wordIndex) ^ invert) & (0xff_ff_ff_ff << (from & 31));
    for (;;) {
      if (word !== 0) {
        const found = wordIndex * 32 + trailingZeros(word);
        return found < end ? found : -1;
      }
      wordIndex++;
      if (wordIndex * 32 >= end) return -1;
      word = this.#word(wordIndex) ^ invert;
    }
  }

  #word(index: number): number {
    const word = this.#words[index];
    if (word === undefined) throw new RangeError(`bitmap: word ${index} of ${this.#words.length}`);
    return word;
  }
}

function trailingZeros(word: number): number {
  return 31 - Math.clz32(word & -word);
}

function bitCount(word: number): number {
  let pairs = word - ((word >>> 1) & 0x55_55_55_55);
  pairs = (pairs & 0x33_33_33_33) + ((pairs >>> 2) & 0x33_33_33_33);
  return (((pairs + (pairs >>> 4)) & 0x0f_0f_0f_0f) * 0x01_01_01_01) >>> 24;
}
