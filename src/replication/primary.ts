/**
 * The primary node: its disks, its link to the replica, and the checkpoints it takes.
 *
 * Invariants:
 * - An error of the replica is recorded and its blocks are in the dirty map; no checkpoint is taken before they are
 *   resynced (design, promises 10 and 16).
 * - Epochs only grow, also when the replica is another one or comes back from an older state.
 */
import { randomUUID } from "node:crypto";
import type { Logger } from "pino";
import type { ForwardFailure } from "../block/filters/replication.js";
import { DirtyMap, dirtyMapName } from "../block/dirty-map.js";
import { Gate } from "../block/gate.js";
import { Hold } from "../block/hold.js";
import { MemoryBudget } from "../block/memory-budget.js";
import type { AckMode } from "../block/mirror.js";
import { type Cancel, type Clock, systemClock } from "../clock.js";
import { asError, describeError, LinkError, StateError } from "../errors.js";
import {
  checkDisks,
  newPrimaryMetadata,
  type PrimaryMetadata,
  metadataPath,
  readMetadata,
  writeMetadata,
} from "../meta/metadata.js";
import { formatSize } from "../config/units.js";
import type { StateDirectory } from "../meta/state-directory.js";
import { findForeignDisk, identifyDisks } from "../meta/disk-identity.js";
import type { Endpoint } from "../net/endpoint.js";
import { Checkpointer } from "./checkpointer.js";
import type { CongestionPolicy, LinkState, ReplicaErrorPolicy, SwallowedError } from "../status.js";
import { ErrorRecord } from "./error-record.js";
import { branch } from "./generation.js";
import { CONGESTED, Link, type LinkEvents } from "./link.js";
import { MetadataKeeper } from "./metadata-keeper.js";
import { PrimaryDisk } from "./primary-disk.js";
import { RateLimit } from "./rate-limit.js";
import { type ReplicaNetwork, socketNetwork } from "./replica-network.js";
import type { NamedDisk } from "./secondary-disk.js";
import { asPrimary, comingBack } from "./roles.js";
import { Serial } from "./serial.js";
import { initialState, type Mode, type Stage, type State, step } from "./stage.js";
import { requestTakeOver } from "./take-over.js";
import { Verifier, type VerifierOptions } from "./verifier.js";

/** Ack mode async: changes acknowledged to guests and not yet by the replica. Beyond it, guests wait. */
const ASYNC_BYTES = 64 * 1024 * 1024;

export interface Replica {
  readonly address: Endpoint;
  /** null: a manager drives the checkpoints. */
  readonly control: Endpoint | null;
  /** As it was given, for people. */
  readonly uri: string;
}

export interface PrimaryOptions {
  readonly directory: StateDirectory;
  readonly disks: readonly NamedDisk[];
  readonly ackMode: AckMode;
  /** Ack mode async: whether the guest waits for a replica that is slower, or goes on without it for a while. */
  readonly onCongestion: CongestionPolicy;
  /** Whether guests go on without a replica that can't take changes, or their changes wait until it can. */
  readonly onReplicaError: ReplicaErrorPolicy;
  readonly replicaTimeoutMs: number;
  /** 0: no limit. */
  readonly resyncBytesPerSecond: number;
  /** 0: on demand only. */
  readonly checkpointIntervalMs: number;
  /** Default: the system's. */
  readonly clock?: Clock;
  /** Default: NBD and QMP over sockets. */
  readonly network?: ReplicaNetwork;
  readonly log: Logger;
  readonly events: Pick<LinkEvents, "stateChanged" | "jobEnded"> & Pick<VerifierOptions, "verifyEnded">;
}

/** What a primary must know after a restart, and how it is kept. */
export interface PrimaryKeeper {
  readonly current: PrimaryFacts;
  save(change: Partial<PrimaryFacts>): Promise<void>;
  saveSoon(change: Partial<PrimaryFacts>, onError: (error: unknown) => void): void;
  /** From the next start on the node is the secondary of the one that took over. @param tenure of its dirty maps */
  comeBack(tenure: string | null): Promise<void>;
}

type PrimaryFacts = Pick<
  PrimaryMetadata,
  "uuid" | "generation" | "ancestors" | "replicaGeneration" | "epoch" | "cleanShutdown" | "disks"
>;

export class Primary {
  readonly disks: readonly PrimaryDisk[];
  readonly rate: RateLimit;
  readonly verifier: Verifier;
  readonly #options: PrimaryOptions;
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #network: ReplicaNetwork;
  readonly #metadata: PrimaryKeeper;
  readonly #gate = new Gate();
  /** null: guests never wait for a replica that is away. */
  readonly #hold: Hold | null;
  readonly #errors = new ErrorRecord();
  readonly #serial = new Serial();
  readonly #checkpointer: Checkpointer;
  readonly #session = randomUUID();
  #state: State = initialState("primary");
  /** Resolves when it is on record that this side goes on without its replica. */
  #alone: Promise<void> = Promise.resolve();
  #replica: Replica | null = null;
  #link: Link | null = null;
  #lastCheckpoint: { readonly epoch: number; readonly at: string } | null = null;
  #checkpointIntervalMs: number;
  #isHandedOver = false;
  #isUndecided = false;
  #cancelTimer: Cancel | null = null;
  #loggedLink: LinkState | null = null;

  private constructor(options: PrimaryOptions, metadata: PrimaryKeeper, maps: readonly DirtyMap[]) {
    this.#options = options;
    this.#log = options.log;
    this.#clock = options.clock ?? systemClock;
    this.#network = options.network ?? socketNetwork;
    this.#metadata = metadata;
    this.#checkpointIntervalMs = options.checkpointIntervalMs;
    this.rate = new RateLimit(options.resyncBytesPerSecond);
    const memory = new MemoryBudget(ASYNC_BYTES);
    this.#hold = options.onReplicaError === "stop" ? this.#makeHold() : null;
    this.disks = options.disks.map((disk, index) => {
      const dirty = maps[index];
      if (dirty === undefined) throw new RangeError(`no dirty map for disk ${disk.name}`);
      return new PrimaryDisk(disk, {
        dirty,
        ackMode: options.ackMode,
        gate: this.#gate,
        hold: this.#hold,
        memory,
        onForwardFailure: (failed, failure) => {
          this.#hold?.failed();
          this.#forwardFailed(failed, failure);
          return this.#goAlone();
        },
        onCongested: () => {
          this.#congested();
        },
        onAlone: () => this.#goAlone(),
      });
    });
    this.verifier = new Verifier({
      disks: this.disks,
      session: this.#session,
      timeoutMs: options.replicaTimeoutMs,
      link: () => this.#link,
      control: () => this.#replica?.control ?? null,
      log: options.log,
      verifyEnded: options.events.verifyEnded,
    });
    this.#checkpointer = new Checkpointer({
      gate: this.#gate,
      drain: async () => {
        for (const { mirror } of this.disks) await mirror.drain();
      },
      refusal: () => this.checkpointRefusal(),
      nextEpoch: () => this.epoch + 1,
      prepare: async () => {
        await this.#link?.prepareCheckpoint(this.epoch + 1);
      },
      atInstant: () => this.#beginFlush(),
      send: async (epoch) => {
        await this.#link?.checkpoint(epoch);
      },
      onCheckpoint: (epoch, pauseMs) => {
        this.#checkpointTaken(epoch, pauseMs);
      },
      clock: this.#clock,
    });
  }

  /** @throws MetadataError if the state directory can't be trusted or belongs to other disks */
  static async open(options: PrimaryOptions): Promise<Primary> {
    const { directory, disks } = options;
    const identities = await identifyDisks(disks, true);
    const found = await readMetadata(directory);
    const known = found === null ? null : asPrimary(found, metadataPath(directory));
    if (known !== null) checkDisks(directory, known.disks, identities);
    const keeper = new MetadataKeeper(directory, known ?? newPrimaryMetadata(identities));
    const primary = await Primary.#open(options, {
      get current() {
        return keeper.current;
      },
      save: (change) => keeper.save(change),
      saveSoon: (change, onError) => {
        keeper.saveSoon(change, onError);
      },
      comeBack: (tenure) => writeMetadata(directory, comingBack(keeper.current, tenure)),
    });
    await keeper.save({ cleanShutdown: false, disks: await identifyDisks(disks, false) });
    if (known !== null) await primary.#takeForeignDisk(findForeignDisk(known.disks, identities, disks));
    return primary;
  }

  /** A node that was promoted and goes on as a primary, in the same state directory. */
  static promoted(options: PrimaryOptions, keeper: PrimaryKeeper): Promise<Primary> {
    return Primary.#open(options, keeper);
  }

  static async #open(options: PrimaryOptions, keeper: PrimaryKeeper): Promise<Primary> {
    const { directory, disks, log } = options;
    const maps: DirtyMap[] = [];
    try {
      for (const [disk, { name, device }] of disks.entries()) {
        const onBroken = (error: Error, isRemoved: boolean): void => {
          const remedy = isRemoved
            ? "the next start copies everything"
            : `remove ${directory.path}/${dirtyMapName(disk)} before the next start`;
          log.error({ disk: name, error: error.message }, `dirty map can't be kept: ${remedy}`);
        };
        const { sizeBytes } = device.info;
        const flushDisk = (): Promise<void> => device.flush();
        maps.push(await DirtyMap.open({ directory, disk, sizeBytes, flushDisk, onBroken }));
      }
    } catch (error) {
      for (const map of maps) await map.close();
      throw error;
    }
    return new Primary(options, keeper, maps);
  }

  get stage(): Stage {
    return this.#state.stage;
  }

  get epoch(): number {
    return this.#metadata.current.epoch;
  }

  get metadata(): PrimaryFacts {
    return this.#metadata.current;
  }

  get error(): SwallowedError | null {
    return this.#errors.get();
  }

  get link(): Link | null {
    return this.#link;
  }

  get replica(): Replica | null {
    return this.#replica;
  }

  /** 0: on demand only. */
  get checkpointIntervalMs(): number {
    return this.#checkpointIntervalMs;
  }

  /** The last one that the secondary confirmed as durable, since this start. */
  get lastCheckpoint(): { readonly epoch: number; readonly at: string } | null {
    return this.#lastCheckpoint;
  }

  /** Changes of guests that wait for the replica. */
  get waitingChanges(): number {
    return this.#hold?.waiting ?? 0;
  }

  /** The node stops: changes that wait for the replica, now or later, fail with ESHUTDOWN. */
  refuseWaiting(): void {
    this.#hold?.end();
  }

  /** Why a checkpoint would be refused now, or null. */
  checkpointRefusal(): string | null {
    if (this.#link === null) return "no replica is attached";
    if (!this.#link.hasControl) return "a manager drives the checkpoints of this replica (no --replica-qmp)";
    if (this.#link.state !== "replicating") {
      return `the replica is ${this.#link.state}: ${formatSize(this.#missedBytes)} are not replicated`;
    }
    if (this.#missedBytes > 0) return `${formatSize(this.#missedBytes)} are not replicated`;
    return null;
  }

  /**
   * Takes a replica and begins to replicate.
   * @param checkpointIntervalMs between periodic checkpoints, as long as it is attached; default: as opened
   * @throws StateError if there is one; NegotiationError, ProtocolError or QmpError if it is there and can't be used
   */
  attach(replica: Replica, checkpointIntervalMs = this.#options.checkpointIntervalMs): Promise<void> {
    return this.#serial.run(async () => {
      if (this.#link !== null) {
        throw new StateError(
          "attached",
          `a replica is attached already (${this.#replica?.uri ?? ""}): detach it first`,
        );
      }
      this.#replica = replica;
      this.#checkpointIntervalMs = checkpointIntervalMs;
      await this.#start("primary");
    });
  }

  /** @throws StateError if there is none */
  detach(): Promise<void> {
    return this.#serial.run(async () => {
      if (this.#link === null) throw new StateError("detached", "no replica is attached");
      await this.#stopLink();
      this.#replica = null;
      this.#state = initialState("primary");
    });
  }

  /** QEMU's replication_start_all(): begins to replicate to the replica that was given. */
  start(mode: Mode): Promise<void> {
    return this.#serial.run(() => this.#start(mode));
  }

  /** QEMU's replication_stop_all(): stops forwarding, whatever becomes of the replica. */
  stop(isFailover: boolean): Promise<void> {
    return this.#serial.run(async () => {
      const [next] = step(this.#state, { type: "stop", failover: isFailover ? "checkpoint" : null });
      await this.#stopLink();
      this.#errors.clear();
      this.#state = next;
    });
  }

  /** @throws StateError with QEMU's texts */
  getError(): void {
    step(this.#state, { type: "get-error" });
  }

  /** Resolves with the epoch when the checkpoint is durable on the secondary. @throws StateError if it is refused */
  async checkpoint(): Promise<number> {
    await this.#recordReplica();
    const at = new Date().toISOString();
    const epoch = await this.#checkpointer.checkpoint();
    this.#lastCheckpoint = { epoch, at };
    return epoch;
  }

  /**
   * Hands over to the replica at a checkpoint: no write is lost, guests are refused from then on, and the node's state is that
   * of a secondary. To be closed afterwards.
   * @returns the generation of the node that took over, and how long guests waited
   * @throws StateError or QmpError if it can't be done: everything goes on as before
   */
  switchOver(): Promise<{ readonly generation: string; readonly pauseMs: number }> {
    return this.#serial.run(async () => {
      const control = this.#replica?.control ?? null;
      if (control === null) {
        const refusal = this.checkpointRefusal() ?? "no replica is attached";
        throw new StateError("no-switch-over", `switch-over refused: ${refusal}`);
      }
      await this.#recordReplica();
      const startMs = this.#clock.nowMs();
      const generation = await this.#checkpointer.checkpointAndHold((epoch) =>
        this.#handOver(control, epoch),
      );
      return { generation, pauseMs: this.#clock.nowMs() - startMs };
    });
  }

  /** Whether another node has taken over: this one is to be closed. */
  get isHandedOver(): boolean {
    return this.#isHandedOver;
  }

  /** Which promise can't be kept any more, or null; for the exit code. */
  brokenPromise(): string | null {
    return this.#isUndecided ? "whether the secondary has taken over is unknown" : null;
  }

  /** Takes leave of the replica and records a clean state. The guests' exports are closed already. */
  close(): Promise<void> {
    this.refuseWaiting();
    return this.#serial.run(async () => {
      await this.#stopLink();
      for (const { local, mirror, dirty } of this.disks) {
        await mirror.drain();
        await local.flush();
        await dirty.close();
      }
      if (this.#isHandedOver) return;
      const disks = await identifyDisks(this.#options.disks, true);
      await this.#metadata.save({ cleanShutdown: true, disks });
    });
  }

  /** Somebody changed a disk, by what right is not ours to say: it is new data, all of which the replica lacks. */
  async #takeForeignDisk(foreign: string | null): Promise<void> {
    if (foreign === null) return;
    this.#log.warn({ reason: foreign }, "the replica lacks everything: a full copy");
    for (const { dirty } of this.disks) await dirty.describe(null, false);
    await this.#goAlone();
  }

  /** The gate is shut and both sides are the same. */
  async #handOver(control: Endpoint, epoch: number): Promise<string> {
    await this.#stopLink();
    let generation: string;
    try {
      const timeoutMs = this.#options.replicaTimeoutMs;
      generation = await requestTakeOver({
        control,
        primary: this.metadata.uuid,
        epoch,
        timeoutMs,
        clock: this.#clock,
        network: this.#network,
      });
    } catch (error) {
      this.#isUndecided = error instanceof LinkError && error.code === "undecided";
      // It may have: whatever guests write from now on could be a second history.
      if (this.#isUndecided) for (const { mirror } of this.disks) mirror.handOver();
      else {
        this.#state = initialState("primary");
        await this.#start("primary");
      }
      throw error;
    }
    for (const { mirror } of this.disks) mirror.handOver();
    this.#isHandedOver = true;
    this.#log.info({ epoch, generation }, "handed over to the secondary");
    const [first] = this.disks;
    const tenure = first?.dirty.tenure ?? null;
    for (const { local, dirty } of this.disks) {
      await local.flush();
      await dirty.close();
    }
    await this.#metadata.comeBack(tenure);
    return generation;
  }

  /** On record before the replica can have it: what is written without it from then on is another line. */
  async #recordReplica(): Promise<void> {
    const { generation, replicaGeneration } = this.metadata;
    if (replicaGeneration !== generation) await this.#metadata.save({ replicaGeneration: generation });
  }

  get #missedBytes(): number {
    return this.disks.reduce((sum, { dirty }) => sum + dirty.missedBytes, 0);
  }

  async #start(mode: Mode): Promise<void> {
    const [next] = step(this.#state, { type: "start", mode });
    if (next.stage !== "running" || this.#state.stage === "running") return;
    const replica = this.#replica;
    if (replica === null)
      throw new StateError("no-replica", "no replica was given: attach one (x-repl-attach)");
    const link = new Link({
      ...replica,
      disks: this.disks,
      timeoutMs: this.#options.replicaTimeoutMs,
      clock: this.#clock,
      network: this.#network,
      rate: this.rate,
      primary: this.metadata.uuid,
      session: this.#session,
      lineage: () => this.metadata,
      epoch: () => this.epoch,
      log: this.#log,
      events: {
        ...this.#options.events,
        synchronised: () => {
          this.#synchronised();
        },
        stateChanged: (state) => {
          if (state !== "replicating") {
            this.#checkpointer.linkLost(
              new LinkError("link-lost", "the link was lost before the checkpoint was durable"),
            );
          }
          this.verifier.linkChanged(state === "replicating");
          this.#holdChanges(state);
          this.#logLink(state);
          this.#options.events.stateChanged(state);
        },
        otherReplica: async () => {
          const mayHaveOurs = this.metadata.replicaGeneration === this.metadata.generation;
          // Else what is written from now on would pass for the line that the one before was left with.
          if (mayHaveOurs) await this.#goAlone();
          return mayHaveOurs;
        },
        epochLearned: (epoch) => {
          if (epoch > this.epoch) this.#saveEpoch(epoch);
        },
        durable: (epoch) => {
          this.#checkpointer.durable(epoch);
        },
      },
    });
    this.#link = link;
    this.#state = next;
    this.#hold?.shut();
    try {
      await link.start();
    } catch (error) {
      this.#hold?.release();
      this.#link = null;
      this.#state = initialState("primary");
      throw error;
    }
    this.#schedule();
  }

  #makeHold(): Hold {
    return new Hold({
      waiting: () => {
        this.#log.warn(
          { link: this.#link?.state },
          "changes of guests wait for the replica until it is back, or is detached",
        );
      },
      goOn: (changes) => {
        this.#log.info({ changes, link: this.#link?.state }, "changes of guests go on");
      },
    });
  }

  /** With policy stop: a change begins when it would be forwarded, and ends when what failed meanwhile was sent again. */
  #holdChanges(state: LinkState): void {
    const hold = this.#hold;
    if (hold === null) return;
    if (state === "detached") hold.release();
    else if (state === "resyncing") hold.open();
    else if (state !== "replicating") hold.shut();
    else {
      hold.open();
      this.#letEnd(hold).catch((error: unknown) => this.#link?.giveUp(asError(error)));
    }
  }

  /** The resync is over. In ack mode sync, what it sent has to be durable first. */
  async #letEnd(hold: Hold): Promise<void> {
    const { failures } = hold;
    if (this.#options.ackMode === "sync") {
      for (const index of this.disks.keys()) await this.#link?.replica(index)?.flush();
    }
    // What failed in between is for the next resync.
    if (this.#link?.state === "replicating" && this.#missedBytes === 0) hold.whole(failures);
  }

  /** An outage is news once, however often the link tries to mend it. */
  #logLink(state: LinkState): void {
    const isAttempt = state === "connecting" || state === "handshaking";
    const isNews = !isAttempt && state !== this.#loggedLink;
    this.#log[isNews ? "info" : "debug"]({ link: state }, "link");
    if (isNews) this.#loggedLink = state;
  }

  async #stopLink(): Promise<void> {
    this.#cancelTimer?.();
    this.#cancelTimer = null;
    const cancelled = this.verifier.cancel();
    await this.#link?.stop();
    await cancelled;
    this.#link = null;
  }

  /** The replica has everything: what was swallowed is mended. The first time, a checkpoint makes it one to go back to. */
  #synchronised(): void {
    this.#errors.clear();
    this.#state = step(this.#state, { type: "errors-mended" })[0];
    if (this.#link?.hasControl !== true) return;
    this.checkpoint().catch((error: unknown) => {
      this.#log.warn({ error: describeError(error) }, "no checkpoint after the resync");
    });
  }

  #schedule(): void {
    if (this.#checkpointIntervalMs === 0) return;
    this.#cancelTimer = this.#clock.after(this.#checkpointIntervalMs, () => {
      void this.#periodicCheckpoint().finally(() => {
        if (this.#cancelTimer !== null) this.#schedule();
      });
    });
  }

  async #periodicCheckpoint(): Promise<void> {
    // While the replica is away or resyncing there is nothing to take, which the status says.
    if (this.checkpointRefusal() !== null) return;
    try {
      await this.checkpoint();
    } catch (error) {
      this.#log.warn({ error: describeError(error) }, "checkpoint failed");
    }
  }

  /** A checkpoint makes durable on the replica what was acknowledged before it, as a flush does. */
  #beginFlush(): (isDurable: boolean) => void {
    const maps = this.disks.map(({ dirty }) => dirty).filter(({ isFlushing }) => !isFlushing);
    for (const map of maps) map.beginFlush();
    return (isDurable) => {
      for (const map of maps) map.endFlush(isDurable);
    };
  }

  #checkpointTaken(epoch: number, pauseMs: number): void {
    this.#saveEpoch(epoch);
    this.#log.debug({ epoch, pauseMs }, "checkpoint");
  }

  #saveEpoch(epoch: number): void {
    this.#metadata.saveSoon({ epoch }, (error) => {
      this.#log.error({ error: describeError(error) }, "metadata could not be written");
    });
  }

  /** The guest is about to wait for the replica, which it needs not do where it may go on alone. */
  #congested(): void {
    if (this.#options.onCongestion === "block") return;
    this.#link?.giveUp(
      new LinkError(CONGESTED, "the replica is slower than the guest: detached for a while"),
    );
  }

  /**
   * The guest's data is about to have what the replica has not: another line of history, if the replica may have the
   * present one. Resolves when that is on record.
   */
  #goAlone(): Promise<void> {
    const { generation, replicaGeneration } = this.metadata;
    if (replicaGeneration !== generation) return this.#alone;
    this.#alone = this.#metadata.save(branch(this.metadata)).catch((error: unknown) => {
      // The guest goes on (promise 16); what it writes now would pass for the replica's line if this node fails too.
      this.#log.error({ error: describeError(error) }, "the new generation could not be written");
    });
    return this.#alone;
  }

  #forwardFailed(disk: PrimaryDisk, failure: ForwardFailure): void {
    const isFirst = this.#errors.add(disk.name, failure);
    this.#state = step(this.#state, { type: "io-error" })[0];
    if (!isFirst) return;
    this.#log.warn({ disk: disk.name, ...failure, error: failure.error.message }, "change not replicated");
    // An error reply leaves the connection up: begin anew, for the resync is what sends the block again.
    this.#link?.giveUp(failure.error);
  }
}
