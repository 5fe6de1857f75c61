/**
 * What the log of a server, of NBD or QMP, tells of clients that were refused or cut off, or whose requests failed: their number
 * is up to them, that of the lines is not.
 *
 * Invariants:
 * - In each period there are LINES_EACH lines at most for clients of one host and one code, and KEYS such pairs that are
 *   told apart; at its end there is one line more for each that had more to tell, with their number.
 * - A period begins with a line; while there is nothing to tell no timer runs.
 */
import type { Logger } from "pino";

import type { Cancel, Clock } from "../clock.js";
import { systemClock } from "../clock.js";

const PERIOD_MS = 10_000;
const LINES_EACH = 10;
const KEYS = 100;

export interface ClientEvent {
  /** Null: it came by a unix socket. */
  readonly host: string | null;
  /** What happened, the same for all that a line may stand for. */
  readonly code: string;
}

interface Told {
  readonly event: ClientEvent;
  lines: number;
  untold: number;
}

export class ClientLog {
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #told = new Map<string, Told>();
  #cancel: Cancel | null = null;
  #isClosed = false;

  constructor(log: Logger, clock: Clock = systemClock) {
    this.#log = log;
    this.#clock = clock;
  }

  /** @param details asked for only if there is a line */
  warn(event: ClientEvent, details: () => Readonly<Record<string, unknown>>, message: string): void {
    if (!this.#isClosed) this.#cancel ??= this.#clock.after(PERIOD_MS, this.#endPeriod);
    const told = this.#of(event);
    if (told.lines === LINES_EACH) {
      told.untold++;
      return;
    }
    told.lines++;
    this.#log.warn({ ...details(), code: event.code }, message);
  }

  /** From now on no period ends. */
  close(): void {
    this.#isClosed = true;
    this.#cancel?.();
    this.#endPeriod();
  }

  readonly #endPeriod = (): void => {
    this.#cancel = null;
    for (const { event, untold } of this.#told.values()) {
      if (untold === 0) continue;
      const { host, code } = event;
      this.#log.warn({ host, code, count: untold }, `${untold} more of these within ${PERIOD_MS / 1000} s`);
    }
    this.#told.clear();
  };

  /** Hosts that are too many to be told apart count as one that is not known. */
  #of(event: ClientEvent): Told {
    const found = this.#told.get(keyOf(event));
    if (found !== undefined) return found;
    const isApart = this.#told.size < KEYS || event.host === null;
    const counted = isApart ? event : { host: null, code: event.code };
    const told = this.#told.get(keyOf(counted)) ?? { event: counted, lines: 0, untold: 0 };
    this.#told.set(keyOf(counted), told);
    return told;
  }
}

function keyOf({ host, code }: ClientEvent): string {
  return `${code} ${host ?? ""}`;
}
