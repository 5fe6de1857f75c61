/**
 * For how long a replica has owed the answer that is due next.
 *
 * A request waits for those before it too, behind 64 MiB of them if need be, on a link that is slow or a disk that is busy. So time
 * counts from when it was sent, or from when it became the oldest: a replica that answers one after the other is slow, not silent.
 * One that answers all but one is silent: else whoever waits for that one would wait for ever.
 */
export class Silence {
  #oldest: { readonly sentAtMs: number } | null = null;
  #sinceMs = 0;

  /** To be called every now and then: what becomes the oldest in between counts from the call on. @param oldest request unanswered */
  look(oldest: { readonly sentAtMs: number } | null, nowMs: number): number {
    if (oldest !== null && oldest !== this.#oldest)
      this.#sinceMs = this.#oldest === null ? oldest.sentAtMs : nowMs;
    this.#oldest = oldest;
    return oldest === null ? 0 : Math.max(0, nowMs - this.#sinceMs);
  }
}
