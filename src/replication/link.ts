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
 * - While a replica is asked to change its epoch, no write is on its way to it; when its answer stays out, the
 *   connections are destroyed before another write is let through.
 * - A connection attempt in all takes no longer than a few time-outs; the time between two is bounded.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "pino";
import { checked } from "../block/checked.js";
import { settleAll } from "../block/settle-all.js";
import { Deferred } from "../deferred.js";
import {
  asError,
  LinkError,
  NegotiationError,
  ProtocolError,
  StateError,
  UnreachableError,
} from "../errors.js";
import type { Address } from "../net/address.js";
import { connectNbd } from "../nbd/client/connect.js";
import type { NbdDevice } from "../nbd/client/device.js";
import { QmpError } from "../qmp/errors.js";
import type { LinkState } from "../status.js";
import type { PrimaryDisk } from "./primary-disk.js";
import type { RateLimit } from "./rate-limit.js";
import { HANDSHAKE_VERSION, ReplicaControl } from "./replica-control.js";
import { Resync } from "./resync.js";

const FIRST_BACKOFF_MS = 100;
const LONGEST_BACKOFF_MS = 5000;
/** How often the replica is asked to make durable what it acknowledged. */
const FLUSH_INTERVAL_MS = 1000;
const HEARTBEAT_INTERVAL_MS = 1000;
/** A stalled replica is noticed at most this part of the time-out late. */
const WATCH_PARTS = 10;

export interface LinkOptions {
  /** Where the replica's NBD server is. */
  readonly address: Address;
  /** Its control; null: a manager drives the checkpoints. */
  readonly control: Address | null;
  readonly disks: readonly PrimaryDisk[];
  readonly timeoutMs: number;
  readonly rate: RateLimit;
  /** Names the primary, whichever life it is in. */
  readonly primary: string;
  /** Names this life of the process. */
  readonly session: string;
  readonly generation: string;
  /** The epoch of the pair as this side knows it. */
  readonly epoch: () => number;
  readonly log: Logger;
  readonly events: LinkEvents;
}

export interface LinkEvents {
  /** The replica has everything; from now on a checkpoint can be taken. `epoch` is its own. */
  synchronised(): void;
  stateChanged(state: LinkState): void;
  jobEnded(resync: Resync, error: Error | null): void;
  /** The secondary said in which epoch it is. */
  epochLearned(epoch: number): void;
  durable(epoch: number): void;
}

/** The connections of one attempt. */
interface Connections {
  readonly control: ReplicaControl | null;
  readonly replicas: readonly NbdDevice[];
  /** Rejected with the reason by whoever finds the link lost. */
  readonly lost: Deferred<never>;
}

export class Link {
  readonly #options: LinkOptions;
  readonly #stopping = new AbortController();
  #state: LinkState = "connecting";
  #since = new Date();
  #lastError: Error | null = null;
  #reconnects = 0;
  #connections: Connections | null = null;
  #resyncs: readonly Resync[] = [];
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

  get reconnects(): number {
    return this.#reconnects;
  }

  /** Copies under way. */
  get resyncs(): readonly Resync[] {
    return this.#resyncs;
  }

  /** Whether this side drives the checkpoints. */
  get hasControl(): boolean {
    return this.#options.control !== null;
  }

  /** Requests on their way to the replica. */
  inFlight(index: number): number {
    return this.#connections?.replicas[index]?.inFlight ?? 0;
  }

  /**
   * Connects for the first time, then keeps the link up in the background until stop().
   * @throws NegotiationError, ProtocolError or StateError if the replica is there and can't be used; an unreachable one is no error
   */
  async start(): Promise<void> {
    for (const disk of this.#options.disks) disk.setReplicated(true);
    let connections: Connections | null = null;
    try {
      connections = await this.#connect();
    } catch (error) {
      if (isRefusal(error)) {
        for (const disk of this.#options.disks) disk.setReplicated(false);
        throw error;
      }
      this.#lose(asError(error));
    }
    this.#running = this.#keepUp(connections);
  }

  /** Takes a checkpoint's word to the replica. The caller has drained the mirrors and holds the gate. */
  async checkpoint(epoch: number): Promise<void> {
    const control = this.#connections?.control;
    if (this.#state !== "replicating" || control === null || control === undefined) {
      throw new StateError("not-replicating", `checkpoint refused: the replica is ${this.#state}`);
    }
    try {
      await control.checkpoint(this.#options.session, epoch);
    } catch (error) {
      // Nobody knows whether it took place: no write may reach the replica before the next handshake tells. Nor
      // will a secondary listen that takes this session for lost, until the next handshake.
      const isSessionLost = error instanceof QmpError && error.code === "session-lost";
      if (error instanceof LinkError || isSessionLost) this.giveUp(error);
      throw error;
    }
  }

  /** Drops the connections: everything on its way fails, and the link is built anew. */
  giveUp(reason: Error): void {
    const connections = this.#connections;
    if (connections === null) return;
    for (const replica of connections.replicas) replica.destroy(reason);
    connections.lost.reject(reason);
  }

  /** Flushes the replica, takes leave and stays away. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    const connections = this.#connections;
    if (connections !== null) {
      await Promise.allSettled(connections.replicas.map((replica) => replica.flush()));
      await Promise.allSettled(connections.replicas.map((replica) => replica.close()));
      connections.lost.reject(new LinkError("stopped", "the link was stopped"));
    }
    await this.#running;
    for (const disk of this.#options.disks) disk.setReplicated(false);
    this.#become("detached");
  }

  async #keepUp(first: Connections | null): Promise<void> {
    let connections = first;
    let backoffMs = FIRST_BACKOFF_MS;
    while (!this.#isStopping()) {
      try {
        connections ??= await this.#connect();
        backoffMs = FIRST_BACKOFF_MS;
        await this.#serve(connections);
      } catch (error) {
        this.#lose(asError(error));
      }
      connections = null;
      await this.#pause(backoffMs);
      backoffMs = Math.min(backoffMs * 2, LONGEST_BACKOFF_MS);
      this.#reconnects++;
    }
  }

  #isStopping(): boolean {
    return this.#stopping.signal.aborted;
  }

  /** Waits, but not for stop(). */
  async #pause(ms: number): Promise<void> {
    const pause = sleep(ms, undefined, { signal: this.#stopping.signal });
    await Promise.allSettled([pause]);
  }

  async #connect(): Promise<Connections> {
    const { control: controlAddress, disks, timeoutMs, events } = this.#options;
    this.#become("connecting");
    let control: ReplicaControl | null = null;
    const replicas: NbdDevice[] = [];
    try {
      let isKnown = false;
      if (controlAddress !== null) {
        control = await ReplicaControl.connect(controlAddress, timeoutMs, (epoch) => {
          events.durable(epoch);
        });
        isKnown = await this.#handshake(control);
      }
      for (const disk of disks) replicas.push(await this.#connectDisk(disk));
      // A replica that somebody else may have written to, or that never introduced itself, is known to hold nothing.
      if (!isKnown) for (const disk of disks) disk.dirty.markAll();
    } catch (error) {
      await control?.close();
      for (const replica of replicas) replica.destroy(asError(error));
      throw error;
    }
    const connections = { control, replicas, lost: new Deferred<never>() };
    this.#connections = connections;
    for (const [index, disk] of disks.entries()) {
      const replica = replicas[index];
      if (replica !== undefined) disk.setReplica(checked(replica));
    }
    return connections;
  }

  async #handshake(control: ReplicaControl): Promise<boolean> {
    const { disks, session, generation, epoch, events } = this.#options;
    this.#become("handshaking");
    const welcome = await control.handshake({
      version: HANDSHAKE_VERSION,
      primary: this.#options.primary,
      session,
      generation,
      epoch: epoch(),
      disks: disks.map(({ name, local }) => ({ name, size: local.info.sizeBytes })),
    });
    events.epochLearned(welcome.epoch);
    return welcome.known;
  }

  async #connectDisk(disk: PrimaryDisk): Promise<NbdDevice> {
    const { address, timeoutMs } = this.#options;
    const replica = await connectNbd({ address, exportName: disk.name, connectTimeoutMs: timeoutMs });
    const { sizeBytes, writable } = replica.info;
    const expected = disk.local.info.sizeBytes;
    if (sizeBytes === expected && writable) return replica;
    await replica.close();
    const what = writable ? `has ${sizeBytes} bytes, the primary disk ${expected}` : "is read-only";
    throw new NegotiationError("replica-unusable", `the replica of disk ${disk.name} ${what}`);
  }

  /** Resyncs, then watches until the link is lost, which it reports by throwing. */
  async #serve(connections: Connections): Promise<never> {
    const { lost, control, replicas } = connections;
    for (const { ended } of control === null ? replicas : [...replicas, control]) {
      void ended.then((reason) => {
        lost.reject(reason ?? new LinkError("closed", "the link was closed"));
      });
    }
    if (this.#isStopping()) lost.reject(new LinkError("stopped", "the link was stopped"));
    const stopWatching = this.#watch(connections);
    const synchronised = this.#synchronise(connections).catch((error: unknown) => {
      lost.reject(asError(error));
    });
    try {
      return await lost.promise;
    } catch (error) {
      await this.#disconnect(connections, asError(error));
      throw error;
    } finally {
      stopWatching();
      await synchronised;
    }
  }

  async #synchronise({ replicas }: Connections): Promise<void> {
    const { disks, rate, events } = this.#options;
    this.#become("resyncing");
    this.#resyncs = disks.flatMap((disk, index) => {
      const replica = replicas[index];
      return replica === undefined ? [] : [new Resync(disk, checked(replica), rate)];
    });
    try {
      await settleAll(this.#resyncs.map((resync) => this.#resync(resync)));
    } finally {
      this.#resyncs = [];
    }
    this.#become("replicating");
    events.synchronised();
  }

  async #resync(resync: Resync): Promise<void> {
    const { events } = this.#options;
    try {
      await resync.run();
    } catch (error) {
      events.jobEnded(resync, asError(error));
      throw error;
    }
    events.jobEnded(resync, null);
  }

  /** Notices a replica that is silent, and has it make durable what it acknowledged. @returns how to stop that */
  #watch({ control, replicas, lost }: Connections): () => void {
    const { timeoutMs } = this.#options;
    const timers = [
      setInterval(() => {
        const now = performance.now();
        if (replicas.some((replica) => replica.oldestPendingMs(now) >= timeoutMs)) {
          lost.reject(new LinkError("replica-timeout", `the replica has not answered for ${timeoutMs} ms`));
        }
      }, timeoutMs / WATCH_PARTS),
      setInterval(() => {
        this.#flushReplicas(replicas).catch(lost.reject);
      }, FLUSH_INTERVAL_MS),
      setInterval(() => {
        control?.heartbeat().catch(lost.reject);
      }, HEARTBEAT_INTERVAL_MS),
    ];
    return () => {
      timers.forEach(clearInterval);
    };
  }

  async #flushReplicas(replicas: readonly NbdDevice[]): Promise<void> {
    for (const [index, { dirty }] of this.#options.disks.entries()) {
      const replica = replicas[index];
      if (replica === undefined || !dirty.hasVolatile || dirty.isFlushing) continue;
      dirty.beginFlush();
      let isDurable = false;
      try {
        await replica.flush();
        isDurable = true;
      } finally {
        dirty.endFlush(isDurable);
      }
    }
  }

  async #disconnect({ control, replicas }: Connections, reason: Error): Promise<void> {
    this.#connections = null;
    for (const replica of replicas) replica.destroy(reason);
    for (const disk of this.#options.disks) disk.setReplica(null);
    await control?.close();
  }

  #lose(error: Error): void {
    if (this.#isStopping()) return;
    const isNews = this.#lastError?.message !== error.message;
    this.#lastError = error;
    this.#options.log[isNews ? "warn" : "debug"]({ error: error.message }, "replica lost");
    this.#become(isRefusal(error) ? "refused" : "disconnected");
  }

  #become(state: LinkState): void {
    if (state === this.#state) return;
    this.#state = state;
    this.#since = new Date();
    if (state === "replicating") this.#lastError = null;
    this.#options.events.stateChanged(state);
  }
}

/** Whether the replica is there but can't be used, so that an operator has to look. */
function isRefusal(error: unknown): boolean {
  if (error instanceof UnreachableError || error instanceof LinkError) return false;
  return (
    error instanceof NegotiationError ||
    error instanceof ProtocolError ||
    error instanceof StateError ||
    error instanceof QmpError
  );
}
