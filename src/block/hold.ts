/**
 * Keeps guests' changes from going where the replica does not: `--on-replica-error stop` (QEMU: werror=stop; DRBD:
 * suspend-io). Reads have nothing to do with it.
 *
 * Invariants:
 * - While shut, no change begins; later they begin in their order of arrival, before newer ones.
 * - A change during which the replica failed ends without error only after `whole()`, when the replica has it, or
 *   `release()`, when the operator does without it. Whether it was this change that failed is not asked.
 * - After `end()` nothing waits any more: what would is refused with ESHUTDOWN.
 */
import { Deferred } from "../deferred.js";
import { DeviceError } from "../errors.js";
import type { Passage } from "./filters/held.js";

export interface HoldEvents {
  /** The first change waits. */
  waiting(): void;
  /** So many changes waited and go on. */
  goOn(changes: number): void;
}

interface Waiting {
  readonly begin: () => void;
  readonly refuse: (error: Error) => void;
}

export class Hold implements Passage {
  readonly #events: HoldEvents;
  #isShut = false;
  #isEnded = false;
  /** Somebody was told that changes wait. */
  #isTold = false;
  /** Counts failures of the replica. */
  #failures = 0;
  /** Failures up to this one are mended. */
  #mended = 0;
  #beginning: Waiting[] = [];
  #ending: Deferred<undefined>[] = [];

  constructor(events: HoldEvents) {
    this.#events = events;
  }

  /** Changes that wait. */
  get waiting(): number {
    return this.#beginning.length + this.#ending.length;
  }

  /** Failures of the replica so far: names the present one for whole(). */
  get failures(): number {
    return this.#failures;
  }

  /** Whether the replica lacks changes that have not been ended, or may. */
  get isLacking(): boolean {
    return this.#mended !== this.#failures;
  }

  /** Whether all that would have to wait is refused. */
  get isEnded(): boolean {
    return this.#isEnded;
  }

  /** The replica takes no changes. */
  shut(): void {
    this.#isShut = true;
  }

  /** The replica takes changes. */
  open(): void {
    this.#isShut = false;
    const beginning = this.#beginning.splice(0);
    this.#tellGoOn(beginning.length);
    for (const { begin } of beginning) begin();
  }

  /** A change did not reach the replica, or may not have. */
  failed(): void {
    this.#failures++;
    this.shut();
  }

  /** The replica has everything that it lacked. @param failures those until then; nothing happens if there was one since */
  whole(failures: number): void {
    if (failures !== this.#failures) return;
    this.#mended = failures;
    const ending = this.#ending.splice(0);
    this.#tellGoOn(ending.length);
    for (const change of ending) change.resolve(undefined);
    this.open();
  }

  /** There is no replica any more: changes go on without it. */
  release(): void {
    this.whole(this.#failures);
  }

  /** The node stops: what waits is refused, and so is what would have to wait later. */
  end(): void {
    this.#isEnded = true;
    const ending = this.#ending.splice(0);
    for (const change of ending) change.reject(ended());
    for (const { refuse } of this.#beginning.splice(0)) refuse(ended());
  }

  /** Makes a change when the replica takes it. */
  change(apply: () => Promise<void>): Promise<void> {
    if (!this.#isShut) return this.finish(apply);
    if (this.#isEnded) return Promise.reject(ended());
    return new Promise((resolve, reject) => {
      const begin = (): void => {
        this.finish(apply).then(resolve, reject);
      };
      this.#beginning.push({ begin, refuse: reject });
      this.#tellWaiting();
    });
  }

  /** Makes a request at once; it ends when the replica has what was under way. */
  async finish(apply: () => Promise<void>): Promise<void> {
    const before = this.#failures;
    await apply();
    if (this.#failures === before || !this.isLacking) return;
    if (this.#isEnded) throw ended();
    const change = new Deferred<undefined>();
    this.#ending.push(change);
    this.#tellWaiting();
    await change.promise;
  }

  #tellWaiting(): void {
    if (this.#isTold) return;
    this.#isTold = true;
    this.#events.waiting();
  }

  #tellGoOn(changes: number): void {
    if (this.waiting === 0) this.#isTold = false;
    if (changes > 0) this.#events.goOn(changes);
  }
}

function ended(): DeviceError {
  return new DeviceError("ESHUTDOWN", "the node stops, and the replica does not have the change");
}
