/** What is told of a request that failed, to whoever keeps account of it. */

export interface RangeFailure {
  /** Bytes; flush: 0. */
  readonly offset: number;
  readonly lengthBytes: number;
  readonly error: Error;
}

export interface RequestFailure extends RangeFailure {
  /** "write", "flush", "copy-before-write", ... */
  readonly operation: string;
}
