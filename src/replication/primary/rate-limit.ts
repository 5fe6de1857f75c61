/** Spreads background work over time: so many bytes a second, in small portions. */
import { delayOf } from "../../clock.js";

/** How much may be done at once: what the rate allows in this time, saved up while nothing was done. */
const BURST_SECONDS = 0.1;

export class RateLimit {
  #bytesPerSecond: number;
  /** When the bytes taken so far will have been paid for, by performance.now(). */
  #paidUntilMs = 0;
  /** Ends one wait each, before its time. */
  readonly #waits = new Set<() => void>();

  /** @param bytesPerSecond 0: no limit */
  constructor(bytesPerSecond: number) {
    this.#bytesPerSecond = bytesPerSecond;
  }

  get bytesPerSecond(): number {
    return this.#bytesPerSecond;
  }

  /** The new rate holds for those who wait already, too. */
  set(bytesPerSecond: number): void {
    this.#bytesPerSecond = bytesPerSecond;
    this.#paidUntilMs = 0;
    for (const endWait of this.#waits) endWait();
  }

  /**
   * Resolves when the bytes may be worked on, or when `stop` is aborted: nobody waits for work that is given up, nor for the time that
   * it would have taken.
   */
  async take(bytes: number, stop: AbortSignal): Promise<void> {
    for (;;) {
      if (this.#bytesPerSecond === 0 || isGivenUp(stop)) return;
      const now = performance.now();
      const from = Math.max(this.#paidUntilMs, now - BURST_SECONDS * 1000);
      const priceMs = (bytes / this.#bytesPerSecond) * 1000;
      this.#paidUntilMs = from + priceMs;
      if (this.#paidUntilMs <= now || (await this.#wait(this.#paidUntilMs - now, stop))) return;
      if (isGivenUp(stop)) this.#paidUntilMs -= priceMs;
    }
  }

  /** @returns whether it lasted to its end */
  #wait(ms: number, stop: AbortSignal): Promise<boolean> {
    return new Promise((resolve) => {
      const end = (inFull: boolean): void => {
        clearTimeout(timer);
        this.#waits.delete(cutShort);
        stop.removeEventListener("abort", cutShort);
        resolve(inFull);
      };
      const cutShort = (): void => {
        end(false);
      };
      const timer = setTimeout(end, delayOf(ms), true);
      this.#waits.add(cutShort);
      stop.addEventListener("abort", cutShort);
    });
  }
}

/** It may have been given up while something was waited for. */
function isGivenUp(stop: AbortSignal): boolean {
  return stop.aborted;
}
