/**
 * How many requests the device of an export has under way for all its clients together. A device that is busy anyway gains
 * nothing from thousands of them, which the garbage collector would have to move about.
 *
 * Invariants:
 * - Somebody waits only while requests are under way: each that settles calls one of those who wait, in the order in which
 *   they came, and the last one calls all.
 * - Nobody waits longer than DEVICE_WAIT_MS without being called: what is under way may be held for as long as it likes.
 */
import type { NbdExport } from "./exports.js";
import { DEVICE_REQUESTS, DEVICE_WAIT_MS } from "./limits.js";

export class DeviceDepth {
  #underWay = 0;
  readonly #waiting = new Set<() => void>();
  #isTimerArmed = false;

  /** Whether the next request is to wait(). */
  get isFull(): boolean {
    return this.#underWay >= DEVICE_REQUESTS;
  }

  begun(): void {
    this.#underWay++;
  }

  settled(): void {
    this.#underWay--;
    if (this.#underWay > 0) {
      const [next] = this.#waiting;
      if (next !== undefined) this.#call(next);
      return;
    }
    this.#callAll();
  }

  /** Calls back, once, when it makes sense to look again. While it is full. */
  wait(callback: () => void): void {
    this.#waiting.add(callback);
    if (this.#isTimerArmed) return;
    this.#isTimerArmed = true;
    setTimeout(() => {
      this.#isTimerArmed = false;
      this.#callAll();
    }, DEVICE_WAIT_MS).unref();
  }

  /** It no longer waits. */
  leave(callback: () => void): void {
    this.#waiting.delete(callback);
  }

  #callAll(): void {
    for (const each of [...this.#waiting]) this.#call(each);
  }

  #call(callback: () => void): void {
    this.#waiting.delete(callback);
    callback();
  }
}

const DEPTHS = new WeakMap<NbdExport, DeviceDepth>();

/** Shared by all clients of the export. */
export function deviceDepthOf(served: NbdExport): DeviceDepth {
  const depth = DEPTHS.get(served) ?? new DeviceDepth();
  DEPTHS.set(served, depth);
  return depth;
}
