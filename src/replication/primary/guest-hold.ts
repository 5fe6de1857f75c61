/**
 * What guests' changes wait for, by `--on-replica-error`: with `stop` a change begins when it can be forwarded, and ends when
 * what failed meanwhile was sent again; with `continue` nothing waits.
 *
 * Invariants:
 * - Changes wait only while a replica is attached, and none is ended before the replica has what it lacks, in ack mode `sync` durably.
 * - A change that the replica lacks is ended only after it is on record that the guest goes on alone. One that waits counts as still
 *   under way: if this node dies, whoever takes over lacks nothing that a guest was told is done.
 */
import type { Logger } from "pino";
import { Hold } from "../../block/hold.js";
import { asError } from "../../errors.js";
import type { AckMode, LinkState, ReplicaErrorPolicy } from "../../status.js";
import type { Link } from "./link.js";
import { missedBytesOf, type PrimaryDisk } from "./disk.js";

export interface GuestHoldParts {
  readonly policy: ReplicaErrorPolicy;
  readonly ackMode: AckMode;
  readonly disks: () => readonly PrimaryDisk[];
  readonly link: () => Link | null;
  /** Resolves when it is on record that the guest goes on without the replica. */
  readonly goAlone: () => Promise<void>;
  readonly log: Logger;
}

export class GuestHold {
  /** Above each disk's mirror; null: guests never wait for a replica that is away. */
  readonly hold: Hold | null;
  readonly #parts: GuestHoldParts;
  /** Whether a replica is attached for which changes wait. */
  #isHolding = false;

  constructor(parts: GuestHoldParts) {
    this.#parts = parts;
    this.hold = parts.policy === "stop" ? this.#makeHold() : null;
  }

  /** Changes of guests that wait for the replica. */
  get waiting(): number {
    return this.hold?.waiting ?? 0;
  }

  /** The node stops: changes that wait for the replica, now or later, fail with ESHUTDOWN. */
  end(): void {
    this.hold?.end();
  }

  /** A change did not reach the replica, or may not have. @returns resolves when it may be ended, as far as history is concerned */
  failed(): Promise<void> {
    this.hold?.failed();
    const isHeld = this.#isHolding || this.hold?.isEnded === true;
    // In ack mode async the guest may have been told already.
    return isHeld && this.#parts.ackMode !== "async" ? Promise.resolve() : this.#parts.goAlone();
  }

  /** A replica is about to be attached: nothing begins before it takes changes. */
  attaching(): void {
    this.#isHolding = this.hold !== null;
    this.hold?.shut();
  }

  /** The replica is about to be detached: what waits for it is going to end without it. */
  async leaving(): Promise<void> {
    this.#isHolding = false;
    if (this.hold?.isLacking === true && !this.hold.isEnded) await this.#parts.goAlone();
  }

  /** It can't be: changes go on without it. */
  notAttached(): void {
    this.#isHolding = false;
    this.hold?.release();
  }

  linkChanged(state: LinkState): void {
    const { hold } = this;
    if (hold === null) return;
    if (state === "detached") hold.release();
    else if (state === "resyncing") hold.open();
    else if (state !== "replicating") hold.shut();
    else {
      hold.open();
      this.#letEnd(hold).catch((error: unknown) => this.#parts.link()?.giveUp(asError(error)));
    }
  }

  /** The resync is over. In ack mode sync, what it sent has to be durable first. */
  async #letEnd(hold: Hold): Promise<void> {
    const { failures } = hold;
    const { ackMode, disks, link } = this.#parts;
    if (ackMode === "sync") {
      for (const index of disks().keys()) await link()?.replica(index)?.flush();
    }
    // What failed in between is for the next resync.
    if (link()?.state === "replicating" && missedBytesOf(disks()) === 0) hold.whole(failures);
  }

  #makeHold(): Hold {
    const { link, log } = this.#parts;
    return new Hold({
      waiting: () => {
        log.warn(
          { link: link()?.state },
          "changes of guests wait for the replica until it is back, or is detached",
        );
      },
      goOn: (changes) => {
        log.info({ changes, link: link()?.state }, "changes of guests go on");
      },
    });
  }
}
