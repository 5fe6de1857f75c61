/**
 * Which bytes of a READ the chunks of its reply have described so far: each must be described exactly once,
 * in any order.
 *
 * Invariant: `#ranges` holds start, end, start, end, ... ascending, with a gap before each start but the first.
 */
import { ProtocolError } from "../../errors.js";

/** Servers answer in ascending order or in a few pieces; more than this many separate ranges are an attack. */
const RANGES_MAXIMUM = 1024;

export class ReadCoverage {
  readonly #start: number;
  readonly #end: number;
  readonly #ranges: number[] = [];

  constructor(offset: number, lengthBytes: number) {
    this.#start = offset;
    this.#end = offset + lengthBytes;
  }

  get complete(): boolean {
    return this.#ranges[0] === this.#start && this.#ranges[1] === this.#end;
  }

  /** @throws ProtocolError chunk-out-of-range, chunk-overlap, too-many-chunks */
  add(offset: number, lengthBytes: number): void {
    const end = offset + lengthBytes;
    if (offset < this.#start || end > this.#end) {
      throw new ProtocolError(
        "chunk-out-of-range",
        `a chunk of ${lengthBytes} bytes at ${offset} was not asked for`,
      );
    }
    const ranges = this.#ranges;
    let at = ranges.length;
    while (at > 0 && offset < (ranges[at - 2] ?? 0)) at -= 2;
    // The range before `at` starts at or before the chunk, the one at `at` behind it.
    const previousEnd = at > 0 ? (ranges[at - 1] ?? 0) : -1;
    const nextStart = ranges[at] ?? Infinity;
    if (offset < previousEnd || end > nextStart) {
      throw new ProtocolError("chunk-overlap", `the bytes of a chunk at ${offset} were sent before`);
    }
    const joinsPrevious = offset === previousEnd;
    const joinsNext = end === nextStart;
    if (joinsPrevious && joinsNext) ranges.splice(at - 1, 2);
    else if (joinsPrevious) ranges[at - 1] = end;
    else if (joinsNext) ranges[at] = offset;
    else ranges.splice(at, 0, offset, end);
    if (ranges.length > 2 * RANGES_MAXIMUM) {
      throw new ProtocolError("too-many-chunks", `a reply in more than ${RANGES_MAXIMUM} separate pieces`);
    }
  }
}
