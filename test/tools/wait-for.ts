/** Waiting for what other processes do. */
import { setTimeout as sleep } from "node:timers/promises";

const POLL_INTERVAL_MS = 25;
/** Not an expectation: what takes longer will never come. */
const DEFAULT_LIMIT_MS = 30_000;

/**
 * Asks again and again until the answer satisfies.
 * @param what names it in the error, which shows the last answer
 */
export async function waitFor<T>(
  what: string,
  ask: () => T | Promise<T>,
  satisfies: (answer: T) => boolean,
  limitMs: number = DEFAULT_LIMIT_MS,
): Promise<T> {
  const deadlineMs = performance.now() + limitMs;
  for (;;) {
    const answer = await ask();
    if (satisfies(answer)) return answer;
    if (performance.now() > deadlineMs) {
      throw new Error(`waited in vain for ${what}; the last answer: ${JSON.stringify(answer)}`);
    }
    await sleep(POLL_INTERVAL_MS);
  }
}
