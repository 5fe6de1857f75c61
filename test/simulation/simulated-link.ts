/**
 * The network between the two hosts: connections that deliver messages in order and late, and that are cut, stalled and lost.
 *
 * Invariant: each side of a connection gets a prefix of what the other sent, in order, then hears of its end at most once.
 */
import { LinkError, UnreachableError } from "../../src/errors.js";
import type { Random } from "../tools/seed.js";
import type { VirtualTime } from "./virtual-time.js";

/**
 * `stalled`: nothing arrives before it is up again. `lost`: as stalled, and then the connections turn out to be gone.
 * `cut`: connections break at once, new ones are refused.
 */
export type LinkMode = "up" | "stalled" | "lost" | "cut";

/** After so much silence a connection has ended. */
const KEEPALIVE_MS = 40_000;

/** One side of a connection. */
export class End {
  onMessage: (message: unknown) => void = () => undefined;
  /** The other side is gone. */
  onClosed: () => void = () => undefined;
  /** Nothing is heard or said here any more. */
  isClosed = false;
  peer: End | null = null;
  readonly #link: SimulatedLink;
  /** On the way to the peer, oldest first. */
  readonly sent: (() => void)[] = [];
  lastArrivalMs = 0;

  constructor(link: SimulatedLink) {
    this.#link = link;
  }

  send(message: unknown): void {
    if (this.isClosed) return;
    this.#link.transmit(this, () => {
      const { peer } = this;
      if (peer?.isClosed === false) peer.onMessage(message);
    });
  }

  /** What was sent before arrives, unless the other side has sent something that nobody takes any more. */
  close(isReset = false): void {
    if (this.isClosed) return;
    this.isClosed = true;
    if (isReset) this.sent.length = 0;
    this.#link.transmit(this, () => {
      this.peer?.hearEnd();
    });
  }

  /** The host is dead: nobody says anything, which the other one's kernel finds out. */
  vanish(): void {
    this.isClosed = true;
    this.#link.findOut(this);
  }

  hearEnd(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.onClosed();
  }
}

/** Takes the server's side of new connections; null: nothing listens there, the host answers for it. */
export type Accept = (end: End) => void;

export class SimulatedLink {
  readonly #time: VirtualTime;
  readonly #random: Random;
  readonly #ends = new Set<End>();
  #mode: LinkMode = "up";
  #slowness = 1;

  constructor(time: VirtualTime, random: Random) {
    this.#time = time;
    this.#random = random;
  }

  get mode(): LinkMode {
    return this.#mode;
  }

  set(mode: LinkMode, slowness = 1): void {
    const before = this.#mode;
    this.#mode = mode;
    this.#slowness = slowness;
    if (mode === "cut" || before === "lost") this.#breakAll();
    else if (mode === "up") this.#resume();
  }

  /** @param isDown whether the host has no power, so that nobody refuses either */
  async dial(accept: () => Accept | null, isDown: () => boolean, timeoutMs: number): Promise<End> {
    await this.#time.sleep(this.#latencyMs());
    const isSilent = (): boolean => this.#mode === "stalled" || this.#mode === "lost" || isDown();
    for (let waitedMs = 0; isSilent(); waitedMs += 10) {
      if (waitedMs > timeoutMs) throw new UnreachableError("unreachable", "no answer in time");
      await this.#time.sleep(10);
    }
    const taken = accept();
    if (this.#mode === "cut" || taken === null)
      throw new UnreachableError("unreachable", "connection refused");
    const [near, far] = [new End(this), new End(this)];
    [near.peer, far.peer] = [far, near];
    this.#ends.add(near).add(far);
    taken(far);
    await this.#time.sleep(this.#latencyMs());
    if (near.isClosed) throw new LinkError("closed", "the connection was lost in its first moment");
    return near;
  }

  /** The keepalive of TCP. */
  findOut(vanished: End): void {
    this.#time.after(KEEPALIVE_MS, () => {
      vanished.peer?.hearEnd();
    });
  }

  transmit(from: End, deliver: () => void): void {
    const arrivalMs = Math.max(from.lastArrivalMs, this.#time.nowMs + this.#latencyMs());
    from.lastArrivalMs = arrivalMs;
    from.sent.push(deliver);
    this.#time.after(arrivalMs - this.#time.nowMs, () => {
      this.#deliver(from);
    });
  }

  #latencyMs(): number {
    return ((10 + this.#random.below(40)) / 100) * this.#slowness;
  }

  #deliver(from: End): void {
    if (this.#mode === "stalled" || this.#mode === "lost") return;
    from.sent.shift()?.();
    if (from.isClosed && from.peer?.isClosed !== false && from.sent.length === 0) this.#ends.delete(from);
  }

  /** What waited arrives, in order. */
  #resume(): void {
    for (const end of this.#ends) {
      const waiting = end.sent.splice(0);
      end.lastArrivalMs = Math.max(end.lastArrivalMs, this.#time.nowMs);
      for (const deliver of waiting) this.transmit(end, deliver);
    }
  }

  #breakAll(): void {
    const broken = [...this.#ends];
    this.#ends.clear();
    for (const end of broken) {
      // Some of what was under way had arrived.
      for (const deliver of end.sent.splice(0)) {
        if (this.#random.below(2) === 0) break;
        deliver();
      }
    }
    for (const end of broken) end.hearEnd();
  }
}
