/**
 * Whose turn it is: what a client wants beyond its share of a turn of the event loop is done round robin, one client in each
 * turn, so that whoever asks for little at a time never waits for those who flood. (fq_codel does so with packets.)
 *
 * Invariants:
 * - Those who wait are called in the order in which they came, one in a turn of the event loop.
 * - A client's share is renewed with each turn; while somebody waits it is smaller.
 */

/** Units of a share, while nobody waits: what a client does at once with a queue of 32 requests and more. */
const SHARE_UNITS = 64;
/** While somebody waits: about a tenth of a millisecond. */
const CONTENDED_SHARE_UNITS = 16;
/** So many bytes cost as much as a request without any. */
const UNIT_BYTES = 16 * 1024;

/** Calls back in this turn of the event loop or the next. */
export type Soon = (callback: () => void) => void;

export class Turns {
  readonly #soon: Soon;
  readonly #waiting: (() => void)[] = [];
  /** Counts turns, of those in which somebody asked or waited. */
  #number = 0;
  #isEndDue = false;

  constructor(soon: Soon = setImmediate) {
    this.#soon = soon;
  }

  get isContended(): boolean {
    return this.#waiting.length > 0;
  }

  /** Number of this turn of the event loop. */
  get number(): number {
    if (!this.#isEndDue) {
      this.#isEndDue = true;
      this.#soon(this.#end);
    }
    return this.#number;
  }

  /** Calls back when it is its turn. */
  readonly later: Soon = (callback) => {
    this.#waiting.push(callback);
    if (this.#isEndDue) return;
    this.#isEndDue = true;
    this.#soon(this.#end);
  };

  readonly #end = (): void => {
    this.#number++;
    const next = this.#waiting.shift();
    this.#isEndDue = this.#waiting.length > 0;
    if (this.#isEndDue) this.#soon(this.#end);
    next?.();
  };
}

/** One client in that round: what it has spent of its share, and whether it is its turn. */
export class ClientTurn {
  readonly #turns: Turns;
  readonly #onTurn: () => void;
  #isAwaited = false;
  /** When its turn came last; as Turns.number. */
  #lastNumber = -1;
  /** Of the turn of the event loop in which it spent something last. */
  #number = 0;
  #spentUnits = 0;

  /** @param onTurn it has its turn, which it waited for */
  constructor(turns: Turns, onTurn: () => void) {
    this.#turns = turns;
    this.#onTurn = onTurn;
  }

  /** It is its turn. */
  get isNow(): boolean {
    return this.#lastNumber === this.#turns.number;
  }

  /** It waits for its turn from now on, once however often it asks. */
  await(): void {
    if (this.#isAwaited) return;
    this.#isAwaited = true;
    this.#turns.later(this.#come);
  }

  /** Whether what comes next is to wait for its turn. */
  get isSpent(): boolean {
    this.#renew();
    return this.#spentUnits >= (this.#turns.isContended ? CONTENDED_SHARE_UNITS : SHARE_UNITS);
  }

  /** For a request or an option, or a part of one, that moves so many bytes. */
  spend(lengthBytes: number): void {
    this.#renew();
    this.#spentUnits += 1 + lengthBytes / UNIT_BYTES;
  }

  readonly #come = (): void => {
    this.#isAwaited = false;
    this.#lastNumber = this.#turns.number;
    this.#onTurn();
  };

  #renew(): void {
    const { number } = this.#turns;
    if (this.#number === number) return;
    this.#number = number;
    this.#spentUnits = 0;
  }
}
