/**
 * Bounds how many requests the device of an export has under way for all its clients together. A device that is busy gains nothing
 * from thousands more, which the garbage collector would have to move about.
 *
 * Invariants:
 * - Somebody waits only while requests are under way: each that settles gives its place to one of those who wait, in the order
 *   in which they came, and the last one calls all.
 * - Where nothing settles for DEVICE_WAIT_MS all are called: the device may hold what is under way for as long as it likes.
 */
import type { NbdExport } from "./exports.js";
import { DEVICE_REQUESTS, DEVICE_WAIT_MS } from "./limits.js";

/** @param hasPlace true: a place was passed on, for one request; false: only a client that has nothing under way may begin */
export type LookAgain = (hasPlace: boolean) => void;

export class DeviceDepth {
  #underWay = 0;
  readonly #waiting = new Set<LookAgain>();
  #isTimerArmed = false;
  /** Since the timer was armed. */
  #hasSettled = false;

  /** Whether the next request is to wait(). */
  get isFull(): boolean {
    return this.#underWay >= DEVICE_REQUESTS;
  }

  begun(): void {
    this.#underWay++;
  }

  settled(): void {
    this.#underWay--;
    this.#hasSettled = true;
    if (this.#underWay === 0) {
      this.#callAll(true);
      return;
    }
    const [next] = this.#waiting;
    if (next !== undefined) this.#call(next, true);
  }

  /** Calls back once, when it makes sense to ask again. To be called while it is full. */
  wait(callback: LookAgain): void {
    this.#waiting.add(callback);
    if (!this.#isTimerArmed) this.#armTimer();
  }

  /** It no longer waits. */
  leave(callback: LookAgain): void {
    this.#waiting.delete(callback);
  }

  #armTimer(): void {
    this.#isTimerArmed = true;
    this.#hasSettled = false;
    setTimeout(() => {
      this.#isTimerArmed = false;
      // A place that nobody took leaves the others waiting beside it.
      if (!this.#hasSettled || !this.isFull) this.#callAll(false);
      if (this.#waiting.size > 0) this.#armTimer();
    }, DEVICE_WAIT_MS).unref();
  }

  #callAll(hasPlace: boolean): void {
    for (const each of [...this.#waiting]) this.#call(each, hasPlace);
  }

  #call(callback: LookAgain, hasPlace: boolean): void {
    this.#waiting.delete(callback);
    callback(hasPlace);
  }
}

/** One client's way to the device. */
export class DevicePlace {
  readonly #depth: DeviceDepth;
  readonly #onCalled: () => void;
  #isAwaited = false;
  /** The outcome of its last wait, until mayBegin() has used it: a place was passed on to it, or none was. */
  #hasWaited: "for a place" | "in vain" | null = null;
  /** When it began to wait the last time; of performance.now(). */
  #waitedAtMs = -Infinity;

  /** @param onCalled it has waited: mayBegin() is to be asked again */
  constructor(depth: DeviceDepth, onCalled: () => void) {
    this.#depth = depth;
    this.#onCalled = onCalled;
  }

  /** It waits. */
  get isAwaited(): boolean {
    return this.#isAwaited;
  }

  /**
   * Whether another request may be taken up for the device. If not, the client waits from now on.
   * @param isFirst the client has no request open
   * @param hasJustCome the request has not waited for anything
   */
  mayBegin(isFirst: boolean, hasJustCome: boolean): boolean {
    const waited = this.#hasWaited;
    this.#hasWaited = null;
    if (!this.#depth.isFull || waited === "for a place") return true;
    const nowMs = performance.now();
    // Whoever asks for little at a time waits for nobody, and nobody for those whose requests may never settle.
    const asksForLittle = hasJustCome && nowMs - this.#waitedAtMs > DEVICE_WAIT_MS;
    if (isFirst && (asksForLittle || waited === "in vain")) return true;
    this.#waitedAtMs = nowMs;
    this.#isAwaited = true;
    this.#depth.wait(this.#look);
    return false;
  }

  /** A request is with the device. */
  begun(): void {
    this.#depth.begun();
  }

  settled(): void {
    this.#depth.settled();
  }

  /** The client is gone: it no longer waits. Its requests may still settle. */
  close(): void {
    this.#depth.leave(this.#look);
  }

  readonly #look: LookAgain = (hasPlace) => {
    this.#isAwaited = false;
    this.#hasWaited = hasPlace ? "for a place" : "in vain";
    this.#onCalled();
  };
}

const DEPTHS = new WeakMap<NbdExport, DeviceDepth>();

/** Shared by all clients of the export. */
export function deviceDepthOf(served: NbdExport): DeviceDepth {
  const depth = DEPTHS.get(served) ?? new DeviceDepth();
  DEPTHS.set(served, depth);
  return depth;
}
