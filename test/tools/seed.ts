/** Seeds of random tests: printed when a run starts, taken back through the environment variable SEED. */
import process from "node:process";

/** The seed of this run: SEED if set, else a random one. */
export const SEED: number = seedOfRun();

function seedOfRun(): number {
  const text = process.env["SEED"];
  const seed = text === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(text);
  if (!Number.isSafeInteger(seed)) throw new Error(`SEED=${String(text)} is not an integer`);
  process.stderr.write(`SEED=${seed}\n`);
  return seed;
}

/** A small generator of random integers (mulberry32), the same for the same seed on every machine. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** An integer of at least 0 and less than `limit`. */
  below(limit: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit);
  }

  /** One of the given. */
  oneOf<T>(choices: readonly T[]): T {
    const choice = choices[this.below(choices.length)];
    if (choice === undefined) throw new Error("nothing to choose from");
    return choice;
  }

  /** A buffer of random bytes, of which about one in four is zero throughout. */
  bytes(lengthBytes: number): Buffer {
    const buffer = Buffer.alloc(lengthBytes);
    if (this.below(4) === 0) return buffer;
    for (let at = 0; at < lengthBytes; at++) buffer[at] = this.below(256);
    return buffer;
  }
}
