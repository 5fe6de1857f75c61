/**
 * The replica of a primary: who it is, the link to it, and the stage of replication.
 *
 * Invariants:
 * - There is a link while, and only while, the stage is `running`, but for the moments in which it is begun or left.
 * - An error of the replica is recorded, and its blocks are in the dirty map, until a resync has sent them.
 *
 * Its operations run one at a time: the caller sees to that.
 */
import type { Logger } from "pino";
import type { RequestFailure } from "../../block/failure.js";
import { asError, LinkError, StateError } from "../../errors.js";
import type { Endpoint } from "../../net/endpoint.js";
import type { LinkState, SwallowedError } from "../../status.js";
import { ErrorRecord } from "../error-record.js";
import type { GuestHold } from "./guest-hold.js";
import { CONGESTED, Link, type LinkEvents, type LinkOptions } from "./link.js";
import type { PrimaryDisk } from "./disk.js";
import type { PrimaryLineage } from "./lineage.js";
import { initialState, type Mode, type Stage, type State, step } from "../stage.js";

export interface Replica {
  readonly address: Endpoint;
  /** null: a manager drives the checkpoints. */
  readonly control: Endpoint | null;
  /** As it was given, for people. */
  readonly uri: string;
}

export interface ReplicaAttachmentParts extends Pick<
  LinkOptions,
  "disks" | "timeoutMs" | "clock" | "network" | "rate" | "primary"
> {
  readonly lineage: PrimaryLineage;
  readonly hold: GuestHold;
  readonly log: Logger;
  readonly events: ReplicaAttachmentEvents;
}

export interface ReplicaAttachmentEvents extends Pick<
  LinkEvents,
  "synchronised" | "stateChanged" | "jobEnded" | "durable" | "checkpointFailed"
> {
  /** A replica that has none of this data takes it; it is sent nothing before this resolves. */
  admitted(): Promise<void>;
  /** A replica is attached, whether it can be reached or not. */
  attached(): void;
  /** The link is about to be stopped. Resolves when nobody uses it any more. */
  leaving(): Promise<void>;
}

export class ReplicaAttachment {
  readonly #parts: ReplicaAttachmentParts;
  readonly #errors = new ErrorRecord();
  #state: State = initialState("primary");
  #replica: Replica | null = null;
  #link: Link | null = null;
  /** When the last link was left; before the first one, since when there could have been one. */
  #leftAt = new Date();
  /** The last replica, if it was not attached, and why; null: it was. */
  #refused: { readonly replica: Replica; readonly error: Error } | null = null;
  #loggedLink: LinkState | null = null;

  constructor(parts: ReplicaAttachmentParts) {
    this.#parts = parts;
  }

  get stage(): Stage {
    return this.#state.stage;
  }

  /** What did not reach the replica and was not sent again yet. */
  get error(): SwallowedError | null {
    return this.#errors.get();
  }

  get replica(): Replica | null {
    return this.#replica;
  }

  /** The one that linkError is of: the replica, or another one that was not attached. */
  get lastReplica(): Replica | null {
    return this.#refused?.replica ?? this.#replica;
  }

  get link(): Link | null {
    return this.#link;
  }

  /** When the link came into its state, "detached" included. */
  get linkSince(): Date {
    return this.#link?.since ?? this.#leftAt;
  }

  /** Why the link was lost last, or why the last replica was not attached; null: neither, or that is mended. */
  get linkError(): Error | null {
    return this.#link === null ? (this.#refused?.error ?? null) : this.#link.lastError;
  }

  /**
   * Takes a replica and begins to replicate.
   * @throws NegotiationError, ProtocolError or QmpError if it is there and can't be used: the one before, if any, is the replica still
   */
  async attach(replica: Replica): Promise<void> {
    const [former, formerState] = [this.#replica, this.#state];
    this.#replica = replica;
    // A stop that was a failover ended replication with the one before; it is begun anew.
    this.#state = initialState("primary");
    try {
      await this.start("primary");
    } catch (error) {
      this.#replica = former;
      this.#state = formerState;
      throw error;
    }
  }

  /** @throws StateError if there is one */
  refuseSecond(): void {
    if (this.#link === null) return;
    throw new StateError(
      "attached",
      `a replica is attached already (${this.#replica?.uri ?? ""}): detach it first`,
    );
  }

  /** Also one to which a manager has stopped replicating. @throws StateError if there is none */
  async detach(): Promise<void> {
    if (this.#replica === null) throw new StateError("detached", "no replica is attached");
    await this.leave();
    this.#replica = null;
    this.#state = initialState("primary");
  }

  /** Begins to replicate to the replica that was given. @throws StateError if none was */
  start(mode: Mode): Promise<void> {
    return this.#start(mode, true);
  }

  /** @param isFirst as Link.start() */
  async #start(mode: Mode, isFirst: boolean): Promise<void> {
    const [next] = step(this.#state, { type: "start", mode });
    if (next.stage !== "running" || this.#state.stage === "running") return;
    const replica = this.#replica;
    if (replica === null)
      throw new StateError("no-replica", "no replica was given: attach one (x-repl-attach)");
    const { hold, events, log } = this.#parts;
    const link = this.#makeLink(replica);
    this.#link = link;
    this.#refused = null;
    this.#state = next;
    hold.attaching();
    try {
      await link.start(isFirst);
    } catch (error) {
      hold.notAttached();
      this.#endLink();
      this.#state = initialState("primary");
      // Who asked is told; whoever looks at the node later has to find it as well.
      this.#refused = { replica, error: asError(error) };
      log.warn({ replica: replica.uri, error: this.#refused.error.message }, "replica not attached");
      throw error;
    }
    events.attached();
  }

  /** Stops forwarding, whatever becomes of the replica. */
  async stop(isFailover: boolean): Promise<void> {
    const [next] = step(this.#state, { type: "stop", failover: isFailover ? "checkpoint" : null });
    await this.leave();
    this.#errors.clear();
    this.#state = next;
  }

  /** Takes leave of the replica; the stage stays as it is. */
  async leave(): Promise<void> {
    const left = this.#parts.events.leaving();
    await this.#parts.hold.leaving();
    await this.#link?.stop();
    await left;
    this.#endLink();
  }

  /** After leave(): goes on with the same replica as if nothing had been, also if that can't be used now. */
  async resume(): Promise<void> {
    this.#state = initialState("primary");
    await this.#start("primary", false);
  }

  /** @throws StateError with QEMU's texts */
  getError(): void {
    step(this.#state, { type: "get-error" });
  }

  /** A change did not reach the replica, or may not have; the dirty map has it. */
  forwardFailed(disk: PrimaryDisk, failure: RequestFailure): void {
    const isFirst = this.#errors.add(disk.name, failure);
    this.#state = step(this.#state, { type: "io-error" })[0];
    if (!isFirst) return;
    this.#parts.log.warn(
      { disk: disk.name, ...failure, error: failure.error.message },
      "change not replicated",
    );
    // An error reply leaves the connection up: begin anew, for the resync is what sends the block again.
    this.#link?.giveUp(failure.error);
  }

  /** The replica is slower than guests, who are not to wait for it. */
  giveUpCongested(): void {
    this.#link?.giveUp(
      new LinkError(CONGESTED, "the replica is slower than the guest: detached for a while"),
    );
  }

  #endLink(): void {
    if (this.#link !== null) this.#leftAt = new Date();
    this.#link = null;
  }

  #makeLink(replica: Replica): Link {
    const { lineage, hold, events, ...parts } = this.#parts;
    return new Link({
      ...replica,
      ...parts,
      lineage: () => lineage.current,
      epoch: () => lineage.knownEpoch,
      events: {
        ...events,
        synchronised: () => {
          // What was swallowed is mended.
          this.#errors.clear();
          this.#state = step(this.#state, { type: "errors-mended" })[0];
          events.synchronised();
        },
        stateChanged: (state) => {
          hold.linkChanged(state);
          this.#logLink(state);
          events.stateChanged(state);
        },
        otherReplica: async () => {
          await events.admitted();
          const { isShared } = lineage;
          // Else what is written from now on would pass for the line that the one before was left with.
          if (isShared) await lineage.goAlone();
          return isShared;
        },
        epochLearned: (epoch) => {
          lineage.reached(epoch);
        },
      },
    });
  }

  /** An outage is news once, however often the link tries to mend it. */
  #logLink(state: LinkState): void {
    const isAttempt = state === "connecting" || state === "handshaking";
    const isNews = !isAttempt && state !== this.#loggedLink;
    this.#parts.log[isNews ? "info" : "debug"]({ link: state }, "link");
    if (isNews) this.#loggedLink = state;
  }
}
