/**
 * For how long a replica has owed the answer that is due next.
 *
 * A request waits for those before it too, behind 64 MiB of them if need be, on a link that is slow or a disk that is busy. So time
 * counts from when it was sent, or from when it became the oldest: a replica that answers one after the other is slow, not silent.
 * One that answers all but one is silent: else whoever waits for that one would wait for ever.
 *
 * While this process is stopped (SIGSTOP, a host that is paused) no answer can be read, and what came meanwhile is not read yet when
 * it is looked: the last time that looks were further apart than twice their interval does not count.
 */
export class Silence {
  readonly #intervalMs: number;
  #oldest: { readonly sentAtMs: number } | null = null;
  #sinceMs = 0;
  #lookedMs: number | null = null;
  /** For how long the process was stopped last, and when that was noticed. */
  #stoppedMs = 0;
  #resumedMs = -Infinity;

  /** @param intervalMs between two looks */
  constructor(intervalMs: number) {
    this.#intervalMs = intervalMs;
  }

  /** To be called every now and then: what becomes the oldest in between counts from the call on. @param oldest request unanswered */
  look(oldest: { readonly sentAtMs: number } | null, nowMs: number): number {
    const lateMs = nowMs - (this.#lookedMs ?? nowMs) - this.#intervalMs;
    this.#lookedMs = nowMs;
    if (lateMs > this.#intervalMs) {
      this.#stoppedMs = lateMs;
      this.#resumedMs = nowMs;
    }
    if (oldest !== null && oldest !== this.#oldest)
      this.#sinceMs = this.#oldest === null ? oldest.sentAtMs : nowMs;
    this.#oldest = oldest;
    return oldest === null ? 0 : this.ranMs(this.#sinceMs, nowMs);
  }

  /** For how long this process has run since then. */
  ranMs(sinceMs: number, nowMs: number): number {
    return Math.max(0, nowMs - sinceMs - (sinceMs < this.#resumedMs ? this.#stoppedMs : 0));
  }
}
