/**
 * Waits for every promise, then rejects with the first error, if there was one. Unlike Promise.all it leaves nothing
 * in flight behind a rejection, so that lent buffers are really free when the caller goes on.
 */
export async function settleAll(promises: readonly Promise<unknown>[]): Promise<void> {
  const [only] = promises;
  if (promises.length === 1) {
    await only;
    return;
  }
  for (const outcome of await Promise.allSettled(promises)) {
    if (outcome.status === "rejected") throw outcome.reason;
  }
}
