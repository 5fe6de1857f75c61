/** Spreads background work over time: so many bytes a second, in small portions. */
import { setTimeout as sleep } from "node:timers/promises";

/** Work saved up while nothing was done; also how much may be done at once. */
const BURST_SECONDS = 0.1;

export class RateLimit {
  #bytesPerSecond: number;
  /** When the bytes taken so far will have been paid for, by performance.now(). */
  #paidUntilMs = 0;

  /** @param bytesPerSecond 0: no limit */
  constructor(bytesPerSecond: number) {
    this.#bytesPerSecond = bytesPerSecond;
  }

  get bytesPerSecond(): number {
    return this.#bytesPerSecond;
  }

  set(bytesPerSecond: number): void {
    this.#bytesPerSecond = bytesPerSecond;
    this.#paidUntilMs = 0;
  }

  /** Resolves when the bytes may be worked on. */
  async take(bytes: number): Promise<void> {
    if (this.#bytesPerSecond === 0) return;
    const now = performance.now();
    const from = Math.max(this.#paidUntilMs, now - BURST_SECONDS * 1000);
    this.#paidUntilMs = from + (bytes / this.#bytesPerSecond) * 1000;
    // Unreferenced: a wait here must not keep the process from ending.
    if (this.#paidUntilMs > now) await sleep(this.#paidUntilMs - now, undefined, { ref: false });
  }
}
