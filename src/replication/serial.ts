/** Runs operations one after the other, in the order they were asked for. */
export class Serial {
  #last: Promise<unknown> = Promise.resolve();

  run<T>(operation: () => Promise<T>): Promise<T> {
    const result = this.#last.then(operation, operation);
    // The next one starts whatever became of this one; its error is its caller's.
    this.#last = result.then(ignore, ignore);
    return result;
  }
}

function ignore(): void {
  return undefined;
}
