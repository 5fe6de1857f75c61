/**
 * Background work that gives way to guests: while they are at work it goes on one piece at a time, with a rest after each
 * (DRBD: c-min-rate, by which a resync slows down beside application I/O). Else it goes as fast as it can.
 */
import { type Clock, pause } from "../../clock.js";
import { Serial } from "../serial.js";

/** How often it is looked whether guests are at work. */
const SAMPLE_MS = 50;
/** After a piece it rests for so many times as long as the piece took, so that guests have most of disks, link and processors. */
const REST_FACTOR = 3;
/** But no longer: some progress is made beside any guest. */
const LONGEST_REST_MS = 250;

/** What is known of guests. */
export interface Guests {
  /** That they have made so far. */
  readonly requests: number;
  /** Changes of theirs that are not done: while they wait for the link they make no requests. */
  readonly inFlight: number;
}

export class Politeness {
  readonly #guests: Guests;
  readonly #clock: Clock;
  readonly #oneAtATime = new Serial();
  #isBusy = false;
  #sampledRequests: number;
  #sampledAtMs: number;

  constructor(guests: Guests, clock: Clock) {
    this.#guests = guests;
    this.#clock = clock;
    this.#sampledRequests = guests.requests;
    this.#sampledAtMs = clock.nowMs();
  }

  /** Does one piece of the work, at once or when it is its turn. @param stop ends the rest after it */
  run(piece: () => Promise<void>, stop: AbortSignal): Promise<void> {
    this.#look();
    if (!this.#isBusy) return piece();
    return this.#oneAtATime.run(async () => {
      const startMs = this.#clock.nowMs();
      await piece();
      const restMs = REST_FACTOR * (this.#clock.nowMs() - startMs);
      await pause(this.#clock, Math.min(restMs, LONGEST_REST_MS), stop);
    });
  }

  #look(): void {
    const nowMs = this.#clock.nowMs();
    if (nowMs - this.#sampledAtMs < SAMPLE_MS) return;
    const { requests, inFlight } = this.#guests;
    this.#isBusy = requests > this.#sampledRequests || inFlight > 0;
    this.#sampledRequests = requests;
    this.#sampledAtMs = nowMs;
  }
}
