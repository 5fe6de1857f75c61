/**
 * The primary's link to its replica: connects, introduces itself, resyncs, watches, and begins anew when it is lost.
 *
 *   connecting ──► handshaking ──► resyncing ──► replicating
 *        ▲              │              │             │
 *        └── back-off ──┴── disconnected (or refused) ◄
 *
 * Invariants:
 * - Writes are forwarded from before the first block is resynced until the link is lost, so that every block is
 *   either sent or in the dirty map.
 * - A replica that was lost for its silence is forwarded nothing before it has taken content again: guests wait for it once.
 *   One that was asked for digests meanwhile is not asked again before it is up to date: it may be silent about these alone.
 * - While a replica is asked to change its epoch, no write is on its way to it; when its answer stays out, the
 *   connections are destroyed before another write is let through.
 * - A whole attempt to connect takes no longer than a few time-outs. The pause between two grows, up to a bound, until an attempt
 *   brings the replica up to date. If the link is then lost to an error reply, the pause starts small again only if the link had held
 *   for LONGEST_BACKOFF_MS: a replica that refuses writes, or flushes, is not asked ten times a second.
 */
import { randomUUID } from "node:crypto";
import type { Logger } from "pino";
import { checked } from "../../block/checked.js";
import type { BlockDevice } from "../../block/device.js";
import { pause } from "../../clock.js";
import { asError, DeviceError, LinkError, StateError } from "../../errors.js";
import { QmpError } from "../../qmp/errors.js";
import type { LinkState } from "../../status.js";
import type { RateLimit } from "./rate-limit.js";
import { type HandshakeEvents, type HandshakeOptions, helloOf, takeWelcome } from "./handshake.js";
import type { LostRollback } from "../protocol.js";
import type { ReplicaControlEvents } from "./replica-control.js";
import { ReplicaConnections, type ReplicaConnectionsOptions, SILENT } from "./replica-connections.js";
import { isRefusal, isSameLoss } from "./link-loss.js";
import { ReplicaDigests } from "./replica-digests.js";
import type { Resync } from "./resync.js";
import { ResyncRound } from "./resync-round.js";
import { tryOut } from "./try-out.js";

const FIRST_BACKOFF_MS = 100;
const LONGEST_BACKOFF_MS = 5000;
/** How often a link that holds is looked at for blocks that the replica lacks all the same. */
const RECHECK_MS = 1000;
/** Why the link was given up: code of a LinkError. */
export const CONGESTED = "congested";
/** Refusals by a secondary that a new handshake mends: it takes the session for lost, or somebody else began an epoch. */
const OUT_OF_STEP: ReadonlySet<string> = new Set(["session-lost", "old-epoch"]);

export interface LinkOptions extends ReplicaConnectionsOptions, HandshakeOptions {
  readonly rate: RateLimit;
  readonly log: Logger;
  readonly events: LinkEvents;
}

export interface LinkEvents
  extends HandshakeEvents, Pick<ReplicaControlEvents, "durable" | "checkpointFailed"> {
  /** The replica has everything; from now on a checkpoint can be taken. */
  synchronised(): void;
  stateChanged(state: LinkState): void;
  jobEnded(resync: Resync, error: Error | null): void;
}

export class Link {
  readonly #options: LinkOptions;
  readonly #stopping = new AbortController();
  #state: LinkState = "connecting";
  #since = new Date();
  #lastError: Error | null = null;
  #reconnects = 0;
  #wasConnected = false;
  /** Since when this connection has been replicating; null: not yet. */
  #upToDateMs: number | null = null;
  #connections: ReplicaConnections | null = null;
  /** Whether the last replica was lost for its silence, and has not taken content since. */
  #isDoubted = false;
  /** Whether it was asked for digests and did not answer, and has not been up to date since. */
  #keepsDigests = false;
  /** Whether the replica that is connected has all that it acknowledged before. */
  #hasKept = false;
  /** The replica's memory when the dirty maps heard of it last; null: there was none. */
  #memory: string | null = null;
  /** Names the last handshake. A checkpoint that was asked for under an earlier one comes late, and is refused by it. */
  #session = "";
  /** The last epoch that the replica said is durable there. */
  #durableEpoch = 0;
  /** The checkpoint that the replica can't go back to, as it said last; null: it has not said so. */
  #lostRollback: LostRollback | null = null;
  /** Null: nothing is copied. */
  #round: ResyncRound | null = null;
  #running: Promise<void> = Promise.resolve();

  constructor(options: LinkOptions) {
    this.#options = options;
  }

  get state(): LinkState {
    return this.#state;
  }

  /** When the link came into its state. */
  get since(): Date {
    return this.#since;
  }

  get lastError(): Error | null {
    return this.#lastError;
  }

  /** How often it came about again. */
  get reconnects(): number {
    return this.#reconnects;
  }

  /** Names the last handshake; empty: there was none. */
  get session(): string {
    return this.#session;
  }

  /** Why the replica can't go back to its last checkpoint, as it said last; null: it can, or does not say. */
  get rollbackLost(): string | null {
    return this.#lostRollback?.reason ?? null;
  }

  /** Copies under way. */
  get resyncs(): readonly Resync[] {
    return this.#round?.resyncs ?? [];
  }

  /** Whether this side drives the checkpoints. */
  get hasControl(): boolean {
    return this.#options.control !== null;
  }

  /** Whether the replica, as long as it is connected, tells digests of its content. */
  get hasDigests(): boolean {
    return this.#connections?.control?.hasDigests === true;
  }

  /** A disk's replica; null while it can't be reached. */
  replica(index: number): BlockDevice | null {
    const replica = this.#connections?.replicas[index];
    return replica === undefined ? null : checked(replica);
  }

  /** Whether there are connections, of whatever use. */
  get isConnected(): boolean {
    return this.#connections !== null;
  }

  /** Requests on their way to the replica. */
  inFlight(index: number): number {
    return this.#connections?.replicas[index]?.inFlight ?? 0;
  }

  /**
   * Connects, then keeps the link up in the background until stop().
   * @param isFirst else it was used before: as after a loss, one that can't be used now is tried again and again
   * @throws NegotiationError, ProtocolError or StateError if the replica is there and can't be used; an unreachable one is no error
   */
  async start(isFirst: boolean): Promise<void> {
    for (const disk of this.#options.disks) disk.setReplicated(true);
    let connections: ReplicaConnections | null = null;
    try {
      connections = await this.#connect();
    } catch (error) {
      if (isFirst && isRefusal(error)) {
        for (const disk of this.#options.disks) disk.setReplicated(false);
        throw error;
      }
      this.#lose(asError(error));
    }
    this.#running = this.#keepUp(connections);
  }

  /** Has the replica make ready for a checkpoint that is likely to come. @throws as checkpoint(), and nothing has changed */
  async prepareCheckpoint(epoch: number): Promise<void> {
    await this.#connections?.control?.prepareCheckpoint(epoch);
  }

  /** Takes a checkpoint's word to the replica. The caller has drained the mirrors and holds the gate. */
  async checkpoint(epoch: number): Promise<void> {
    const control = this.#connections?.control;
    if (this.#state !== "replicating" || control === null || control === undefined) {
      throw new StateError("not-replicating", `checkpoint refused: the replica is ${this.#state}`);
    }
    try {
      await control.checkpoint(this.#session, epoch);
    } catch (error) {
      // Nobody knows whether it took place: no write may reach the replica before the next handshake tells. Nor
      // will a secondary listen that takes this session for lost, until the next handshake.
      if (error instanceof LinkError) this.giveUp(error);
      if (error instanceof QmpError && OUT_OF_STEP.has(error.code)) {
        this.giveUp(new LinkError(error.code, error.message, { cause: error }));
      }
      throw error;
    }
  }

  /** Drops the connections: everything on its way fails, and the link is built anew. */
  giveUp(reason: Error): void {
    this.#connections?.giveUp(reason);
  }

  /** Flushes the replica, takes leave and stays away. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#connections?.close();
    await this.#running;
    for (const disk of this.#options.disks) disk.setReplicated(false);
    this.#become("detached");
  }

  async #keepUp(first: ReplicaConnections | null): Promise<void> {
    let connections = first;
    let backoffMs = FIRST_BACKOFF_MS;
    while (!this.#isStopping()) {
      try {
        connections ??= await this.#connect();
        await this.#serve(connections);
      } catch (error) {
        if (this.#wasOfUse(error)) backoffMs = FIRST_BACKOFF_MS;
        this.#upToDateMs = null;
        this.#lose(asError(error));
        // To come back at once would be to be congested at once.
        if (error instanceof LinkError && error.code === CONGESTED) backoffMs = LONGEST_BACKOFF_MS;
        if (error instanceof LinkError && error.code === SILENT) this.#isDoubted = true;
      }
      connections = null;
      await pause(this.#options.clock, backoffMs, this.#stopping.signal);
      backoffMs = Math.min(backoffMs * 2, LONGEST_BACKOFF_MS);
    }
  }

  /** Whether the connection that was lost brought the replica up to date, and was not lost at once to another error reply. */
  #wasOfUse(reason: unknown): boolean {
    if (this.#upToDateMs === null) return false;
    const forMs = this.#options.clock.nowMs() - this.#upToDateMs;
    return !(reason instanceof DeviceError) || forMs >= LONGEST_BACKOFF_MS;
  }

  #isStopping(): boolean {
    return this.#stopping.signal.aborted;
  }

  async #connect(): Promise<ReplicaConnections> {
    const { disks, events } = this.#options;
    this.#become("connecting");
    const connections = await ReplicaConnections.open(this.#options, {
      hello: () => {
        this.#become("handshaking");
        // What holds of the one that is asked now, it tells before it answers.
        this.#lostRollback = null;
        this.#session = randomUUID();
        return helloOf(this.#options, this.#session);
      },
      welcomed: (welcome) => {
        const known = welcome.known && !this.#isOlderCopy(welcome.epoch);
        if (!known) this.#durableEpoch = 0;
        return takeWelcome(this.#options, { ...welcome, known });
      },
      durable: (number) => {
        // The next checkpoint may be lost as well before it is known to be durable.
        if (this.#lostRollback !== null && number > this.#lostRollback.epoch) this.#lostRollback = null;
        this.#durableEpoch = Math.max(this.#durableEpoch, number);
        events.durable(number);
      },
      checkpointFailed: (failed) => {
        events.checkpointFailed(failed);
      },
      rollbackLost: (lost) => {
        this.#lostRollback = lost;
        this.#options.log.warn(lost, "the replica can't go back to its last checkpoint");
      },
    });
    this.#connections = connections;
    if (this.#wasConnected) this.#reconnects++;
    this.#wasConnected = true;
    this.#hasKept = connections.memory !== null && connections.memory === this.#memory;
    // A replica without a handshake may have been written by anybody.
    if (connections.control === null) for (const { dirty } of disks) await dirty.describe(null, false);
    if (!this.#isDoubted) this.#forward(connections);
    return connections;
  }

  /** Whether a replica in this epoch is from before a checkpoint that it had made durable: what it acknowledged since is lost. */
  #isOlderCopy(replicaEpoch: number): boolean {
    if (replicaEpoch >= this.#durableEpoch) return false;
    this.#options.log.warn(
      { epoch: replicaEpoch, durableEpoch: this.#durableEpoch },
      "the replica is an older copy of itself, from before a checkpoint that it had: everything is copied",
    );
    return true;
  }

  /** Guests' changes go to the replica from now on. */
  #forward({ replicas, memory }: ReplicaConnections): void {
    // Not before the dirty maps hear of it: of a replica that was lost in its try-out they know the memory that it had before.
    this.#memory = memory;
    for (const [index, disk] of this.#options.disks.entries()) {
      const replica = replicas[index];
      if (replica !== undefined) disk.setReplica(checked(replica), this.#hasKept);
    }
  }

  async #tryOut(connections: ReplicaConnections, over: AbortSignal): Promise<void> {
    await tryOut(this.#options.disks, connections.replicas);
    over.throwIfAborted();
    this.#isDoubted = false;
    this.#forward(connections);
  }

  /** Resyncs, then stays until the link is lost, which it reports by throwing. */
  async #serve(connections: ReplicaConnections): Promise<never> {
    if (this.#isStopping()) connections.giveUp(new LinkError("stopped", "the link was stopped"));
    const over = new AbortController();
    const synchronised = this.#keepSynchronised(connections, over.signal).catch((error: unknown) => {
      connections.giveUp(asError(error));
    });
    try {
      return await connections.lost;
    } finally {
      over.abort();
      this.#connections = null;
      for (const disk of this.#options.disks) disk.setReplica(null);
      await connections.control?.close();
      this.#round?.stop();
      await synchronised;
    }
  }

  /** An error of the primary disk leaves blocks that have to be sent again although the link holds. */
  async #keepSynchronised(connections: ReplicaConnections, over: AbortSignal): Promise<void> {
    if (this.#isDoubted) await this.#tryOut(connections, over);
    await this.#synchronise(connections);
    for (;;) {
      await pause(this.#options.clock, RECHECK_MS, over);
      if (over.aborted) return;
      const isWhole = this.#options.disks.every(({ dirty }) => dirty.missedBytes === 0);
      if (!isWhole) await this.#synchronise(connections);
    }
  }

  async #synchronise({ replicas, control }: ReplicaConnections): Promise<void> {
    const { disks, rate, clock, log, events } = this.#options;
    this.#become("resyncing");
    const round = new ResyncRound({
      disks,
      rate,
      clock,
      log,
      replicas: replicas.map(checked),
      digests: control?.hasDigests === true ? this.#askDigests() : null,
      // Guests have waited for it: for what they write now they would wait as long again.
      onSilent: () => {
        this.#keepsDigests = true;
        this.giveUp(
          new LinkError(SILENT, `the replica has told no digests for ${this.#options.timeoutMs} ms`),
        );
      },
    });
    this.#round = round;
    try {
      await round.run((resync, error) => {
        events.jobEnded(resync, error);
      });
    } finally {
      this.#round = null;
    }
    this.#become("replicating");
    events.synchronised();
  }

  #askDigests(): ReplicaDigests | null {
    const { network, control, timeoutMs } = this.#options;
    if (control === null || this.#keepsDigests) return null;
    return new ReplicaDigests(network, control, timeoutMs, this.#session);
  }

  #lose(error: Error): void {
    if (this.#isStopping()) return;
    const isNews = this.#lastError === null || !isSameLoss(this.#lastError, error);
    this.#lastError = error;
    this.#options.log[isNews ? "warn" : "debug"]({ error: error.message }, "replica lost");
    this.#become(isRefusal(error) ? "refused" : "disconnected");
  }

  #become(state: LinkState): void {
    if (state === this.#state) return;
    this.#state = state;
    this.#since = new Date();
    if (state === "replicating") {
      this.#lastError = null;
      this.#keepsDigests = false;
      this.#upToDateMs ??= this.#options.clock.nowMs();
    }
    this.#options.events.stateChanged(state);
  }
}
