/** A promise that is settled from outside. A rejection that nobody waits for is not an error. */
export class Deferred<T> {
  readonly promise: Promise<T>;
  readonly resolve: (value: T) => void;
  readonly reject: (error: Error) => void;

  constructor() {
    let resolve: (value: T) => void = () => undefined;
    let reject: (error: Error) => void = () => undefined;
    this.promise = new Promise((onResolve, onReject) => {
      resolve = onResolve;
      reject = onReject;
    });
    this.promise.catch(() => undefined);
    this.resolve = resolve;
    this.reject = reject;
  }
}
