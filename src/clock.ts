/** Time as a node's logic sees it: a seam, so that the simulation can let hours pass in a moment. */

/** The longest delay that Node's timers have, 24 days; they make 1 ms of a longer one, such as Infinity. */
export const LONGEST_DELAY_MS = 2 ** 31 - 1;

/** A delay that somebody else chose, for a timer of Node's. */
export function delayOf(ms: number): number {
  return Math.min(ms, LONGEST_DELAY_MS);
}

/** Cancels a timer; does nothing if it has fired, or was cancelled before. */
export type Cancel = () => void;

export interface Clock {
  /** Milliseconds since some instant; never goes back. */
  nowMs(): number;
  /** Calls once, after so many milliseconds. */
  after(ms: number, call: () => void): Cancel;
  /** Calls each time so many milliseconds have passed, until it is cancelled. */
  every(ms: number, call: () => void): Cancel;
}

export const systemClock = clockOf((timer) => timer);

/** The same time; but a process that has nothing left to do doesn't wait for what is set by it. */
export const backgroundClock = clockOf((timer) => timer.unref());

function clockOf(begun: (timer: NodeJS.Timeout) => NodeJS.Timeout): Clock {
  return {
    nowMs: () => performance.now(),
    after: (ms, call) => {
      const timer = begun(setTimeout(call, ms));
      return () => {
        clearTimeout(timer);
      };
    },
    every: (ms, call) => {
      const timer = begun(setInterval(call, ms));
      return () => {
        clearInterval(timer);
      };
    },
  };
}

/** In so many parts a limit is counted. */
const LIMIT_PARTS = 4;

/**
 * Calls once this process has run for so many milliseconds: for limits on what others do. One that was stopped (SIGSTOP, a host or a
 * virtual machine that was paused) goes on with the timers that are due, before it reads what came meanwhile: whoever has long
 * answered would be late. So however long it was stopped, that counts as one part.
 */
export function afterRunning(clock: Clock, ms: number, call: () => void): Cancel {
  let partsLeft = LIMIT_PARTS;
  const partOver = (): void => {
    partsLeft -= 1;
    if (partsLeft === 0) call();
    else cancel = clock.after(ms / LIMIT_PARTS, partOver);
  };
  let cancel = clock.after(ms / LIMIT_PARTS, partOver);
  return () => {
    cancel();
  };
}

/** As afterRunning(), again and again until it is cancelled. */
export function everyRunning(clock: Clock, ms: number, call: () => void): Cancel {
  let partsOver = 0;
  return clock.every(ms / LIMIT_PARTS, () => {
    partsOver += 1;
    if (partsOver % LIMIT_PARTS === 0) call();
  });
}

/** Resolves after so many milliseconds, or as soon as `stop` is aborted. */
export function pause(clock: Clock, ms: number, stop?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (stop?.aborted === true) {
      resolve();
      return;
    }
    const end = (): void => {
      cancel();
      stop?.removeEventListener("abort", end);
      resolve();
    };
    const cancel = clock.after(ms, end);
    stop?.addEventListener("abort", end);
  });
}
