/**
 * The primary node: its disks and what works on them together.
 *
 *   GuestHold ─ what guests wait for          ReplicaAttachment ─ the replica, its link, the stage
 *   PrimaryCheckpoints ─ when, why not        PrimaryLineage ─ generation and epoch on record
 *   HandOver ─ switch-over                    Verifier ─ comparing both sides
 *
 * Invariant: whatever changes the stage, or ends the node, runs one at a time.
 */
import type { DirtyMap } from "../../block/dirty-map.js";
import { Gate } from "../../block/gate.js";
import { MemoryBudget } from "../../block/memory-budget.js";
import { systemClock } from "../../clock.js";
import { LinkError, ReplError, StateError } from "../../errors.js";
import { type ForeignDisk, identifyDisks } from "../../meta/disk-identity.js";
import { writeMetadata } from "../../meta/metadata.js";
import type { CheckpointFailure, SwallowedError } from "../../status.js";
import { GuestHold } from "./guest-hold.js";
import { HandOver } from "./hand-over.js";
import type { Link } from "./link.js";
import { PrimaryCheckpoints, type ReportedCheckpoint } from "./checkpoints.js";
import { type PrimaryDisk, primaryDisks, troubleOf, type WatchedDisk, watchedDisk } from "./disk.js";
import { openDirtyMaps, openPrimaryKeeper, type PrimaryFacts, type PrimaryKeeper } from "./keeper.js";
import { PrimaryLineage } from "./lineage.js";
import type { PrimaryOptions } from "./options.js";
import { RateLimit } from "./rate-limit.js";
import { type Replica, ReplicaAttachment, type ReplicaAttachmentEvents } from "./replica-attachment.js";
import { socketNetwork } from "./replica-network.js";
import { Serial } from "../serial.js";
import type { Mode, Stage } from "../stage.js";
import { Verifier } from "./verifier.js";

/** Ack mode async: changes acknowledged to guests and not yet by the replica. Beyond it, guests wait. */
const ASYNC_BYTES = 64 * 1024 * 1024;

export class Primary {
  readonly disks: readonly PrimaryDisk[];
  readonly rate: RateLimit;
  readonly verifier: Verifier;
  readonly #options: PrimaryOptions;
  readonly #metadata: PrimaryKeeper;
  readonly #serial = new Serial();
  readonly #guests: GuestHold;
  readonly #lineage: PrimaryLineage;
  readonly #attachment: ReplicaAttachment;
  readonly #checkpoints: PrimaryCheckpoints;
  readonly #handOver: HandOver;
  #newData: string | null = null;

  private constructor(
    options: PrimaryOptions,
    watched: readonly WatchedDisk[],
    metadata: PrimaryKeeper,
    maps: readonly DirtyMap[],
  ) {
    this.#options = options;
    this.#metadata = metadata;
    const { ackMode, log, replicaTimeoutMs: timeoutMs, clock = systemClock } = options;
    const network = options.network ?? socketNetwork;
    const gate = new Gate();
    const memory = new MemoryBudget(options.asyncBytes ?? ASYNC_BYTES);
    const link = (): Link | null => this.link;
    this.rate = new RateLimit(options.resyncBytesPerSecond);
    this.#lineage = new PrimaryLineage(metadata, clock, log);
    this.#guests = new GuestHold({
      policy: options.onReplicaError,
      ackMode,
      disks: () => this.disks,
      link,
      goAlone: () => this.#lineage.goAlone(),
      log,
    });
    this.disks = primaryDisks(watched, maps, {
      ackMode,
      gate,
      hold: this.#guests.hold,
      memory,
      onForwardFailure: (disk, failure) => {
        // Only a guest's flush, in ack mode sync: the replica has everything durably, and takes over this line of history, not a new one.
        if (this.#handOver.isUnderWay) return Promise.resolve();
        const mayEnd = this.#guests.failed();
        this.#attachment.forwardFailed(disk, failure);
        return mayEnd;
      },
      // The guest is about to wait for the replica, which it needs not do where it may go on alone.
      onCongested: () => {
        if (options.onCongestion === "detach") this.#attachment.giveUpCongested();
      },
      onAlone: () => this.#lineage.goAlone(),
    });
    const { disks } = this;
    this.verifier = new Verifier({
      disks,
      timeoutMs,
      network,
      link,
      control: () => this.replica?.control ?? null,
      clock,
      log,
      verifyEnded: options.events.verifyEnded,
    });
    this.#checkpoints = new PrimaryCheckpoints({
      intervalMs: options.checkpointIntervalMs,
      disks,
      gate,
      memory,
      link,
      lineage: this.#lineage,
      clock,
      log,
    });
    this.#attachment = new ReplicaAttachment({
      disks,
      timeoutMs,
      clock,
      network,
      rate: this.rate,
      primary: metadata.current.uuid,
      lineage: this.#lineage,
      hold: this.#guests,
      log,
      events: this.#attachmentEvents(),
    });
    this.#handOver = new HandOver({
      disks,
      attachment: this.#attachment,
      checkpoints: this.#checkpoints,
      metadata,
      timeoutMs,
      clock,
      network,
      log,
    });
  }

  /**
   * Why the data is new: how a disk is another file than the one on record, which may be put back; the record stays as it is until
   * a replica takes the new data. null: the record is of these disks.
   */
  get newData(): string | null {
    return this.#newData;
  }

  /** @throws MetadataError if the state directory can't be trusted or belongs to other disks */
  static async open(options: PrimaryOptions): Promise<Primary> {
    const { directory, disks } = options;
    const { keeper, known, foreign } = await openPrimaryKeeper(directory, disks, options.log);
    const primary = await Primary.#open(options, keeper);
    // Before the disks are on record as they are now: a start that ends in between has to find out once more.
    if (foreign !== null) await primary.#takeForeignDisk(foreign);
    if (known !== null && primary.newData !== null) {
      await writeMetadata(directory, { ...known, cleanShutdown: false });
    } else {
      await keeper.save({ cleanShutdown: false, disks: await identifyDisks(disks, false) });
    }
    return primary;
  }

  /** A node that was promoted and goes on as a primary, in the same state directory. */
  static promoted(options: PrimaryOptions, keeper: PrimaryKeeper): Promise<Primary> {
    return Primary.#open(options, keeper);
  }

  static async #open(options: PrimaryOptions, keeper: PrimaryKeeper): Promise<Primary> {
    const { directory, disks, log } = options;
    const watched = disks.map((disk) => watchedDisk(disk, log));
    const maps = await openDirtyMaps(directory, watched, log);
    return new Primary(options, watched, keeper, maps);
  }

  get stage(): Stage {
    return this.#attachment.stage;
  }

  get epoch(): number {
    return this.#lineage.epoch;
  }

  get metadata(): PrimaryFacts {
    return this.#metadata.current;
  }

  get error(): SwallowedError | null {
    return this.#attachment.error;
  }

  get link(): Link | null {
    return this.#attachment.link;
  }

  get replica(): Replica | null {
    return this.#attachment.replica;
  }

  /** As ReplicaAttachment.lastReplica. */
  get lastReplica(): Replica | null {
    return this.#attachment.lastReplica;
  }

  /** 0: on demand only. */
  get checkpointIntervalMs(): number {
    return this.#checkpoints.intervalMs;
  }

  /** The last one that the secondary confirmed as durable, since this start. */
  get lastCheckpoint(): ReportedCheckpoint | null {
    return this.#checkpoints.last;
  }

  /** The checkpoints that were tried in vain since the last one that was taken, or null. */
  get checkpointFailure(): CheckpointFailure | null {
    return this.#checkpoints.failure;
  }

  /** When the link came into its state, "detached" included. */
  get linkSince(): Date {
    return this.#attachment.linkSince;
  }

  /** Why the link was lost last, or why the last replica was not attached; null: neither, or that is mended. */
  get linkError(): Error | null {
    return this.#attachment.linkError;
  }

  /** Changes of guests that wait for the replica. */
  get waitingChanges(): number {
    return this.#guests.waiting;
  }

  /** The node stops: changes that wait for the replica, now or later, fail with ESHUTDOWN. */
  refuseWaiting(): void {
    this.#guests.end();
  }

  /**
   * The node stops, and guests are to hear of their last changes: those that wait for the replica wait no more. In ack mode `async`
   * only those do whose blocks are being copied or compared.
   */
  giveUpAwaitedReplica(): void {
    const { link } = this;
    const areSome = this.disks.some(
      ({ mirror }, index) => mirror.inFlight > 0 || (link?.inFlight(index) ?? 0) > 0,
    );
    const areCompared = (link?.resyncs.length ?? 0) + this.verifier.verifies.length > 0;
    if (!areSome || (this.#options.ackMode === "async" && !areCompared)) return;
    link?.giveUp(new LinkError("stopping", "the node stops, and the replica has not answered"));
  }

  /** Why a checkpoint would be refused now, or null. */
  checkpointRefusal(): string | null {
    return this.#checkpoints.refusal();
  }

  /**
   * A manager takes a checkpoint, to which the primary contributes that nothing is missing.
   * @throws StateError if something is, or may be, for nothing is replicated
   */
  refuseHole(): void {
    if (this.stage === "none") throw new StateError("not-running", "Block replication is not running");
    const hole = this.#checkpoints.hole();
    if (hole !== null) throw new StateError("checkpoint-refused", `checkpoint refused: ${hole}`);
  }

  /**
   * Takes a replica and begins to replicate.
   * @param checkpointIntervalMs between periodic checkpoints, as long as it is attached; default: as opened
   * @throws StateError if there is one, or if it has other data and a disk is another file; NegotiationError, ProtocolError or QmpError if it is there and can't be used
   */
  attach(replica: Replica, checkpointIntervalMs = this.#options.checkpointIntervalMs): Promise<void> {
    return this.#serial.run(async () => {
      this.#handOver.refuseAfterwards();
      this.#attachment.refuseSecond();
      const formerIntervalMs = this.#checkpoints.intervalMs;
      // Where a manager drives the checkpoints none is periodic, whatever the node was started with.
      this.#checkpoints.setInterval(replica.control === null ? 0 : checkpointIntervalMs);
      try {
        // It can't refuse what it is sent.
        if (replica.control === null) await this.#recordNewData();
        await this.#attachment.attach(replica);
      } catch (error) {
        this.#checkpoints.setInterval(formerIntervalMs);
        throw this.#wrongDisk(error);
      }
    });
  }

  /** @throws StateError if there is none */
  detach(): Promise<void> {
    return this.#serial.run(() => this.#attachment.detach());
  }

  /** QEMU's replication_start_all(): begins to replicate to the replica that was given. */
  start(mode: Mode): Promise<void> {
    return this.#serial.run(() => {
      this.#handOver.refuseAfterwards();
      return this.#attachment.start(mode);
    });
  }

  /** QEMU's replication_stop_all(): stops forwarding, whatever becomes of the replica. */
  stop(isFailover: boolean): Promise<void> {
    return this.#serial.run(() => this.#attachment.stop(isFailover));
  }

  /** @throws StateError with QEMU's texts */
  getError(): void {
    this.#attachment.getError();
  }

  /** Resolves with the epoch when the checkpoint is durable on the secondary. @throws StateError if it is refused */
  checkpoint(): Promise<number> {
    return this.#checkpoints.take();
  }

  /**
   * Hands over to the replica at a checkpoint: no write is lost, guests are refused from then on, and the node's state is that
   * of a secondary. To be closed afterwards.
   * @returns the generation of the node that took over, and how long guests waited
   * @throws StateError or QmpError if it can't be done: everything goes on as before
   */
  switchOver(): Promise<{ readonly generation: string; readonly pauseMs: number }> {
    return this.#serial.run(() => this.#handOver.run());
  }

  /** Whether another node has taken over: this one is to be closed. */
  get isHandedOver(): boolean {
    return this.#handOver.isDone;
  }

  /** As HandOver.isElsewhere. */
  get isElsewhere(): boolean {
    return this.#handOver.isElsewhere;
  }

  /** Which promise can't be kept any more, or null; for the exit code. */
  brokenPromise(): string | null {
    if (this.#handOver.isUndecided) return "whether the secondary has taken over is unknown";
    return troubleOf(this.disks) ?? this.#lineage.brokenPromise();
  }

  /** Takes leave of the replica and records a clean state. The guests' exports are closed already. */
  close(): Promise<void> {
    this.refuseWaiting();
    return this.#serial.run(async () => {
      await this.#attachment.leave();
      for (const { local, mirror, dirty } of this.disks) {
        await mirror.drain();
        await local.flush();
        await dirty.close();
      }
      this.#lineage.close();
      if (this.isHandedOver || this.#newData !== null) return;
      const disks = await identifyDisks(this.#options.disks, true);
      await this.#metadata.save({ cleanShutdown: true, disks });
    });
  }

  #attachmentEvents(): ReplicaAttachmentEvents {
    const { stateChanged, jobEnded } = this.#options.events;
    return {
      jobEnded,
      stateChanged: (state) => {
        if (state !== "replicating") this.#checkpoints.linkLost();
        this.verifier.linkChanged(state);
        stateChanged(state);
      },
      synchronised: () => {
        this.#checkpoints.takeAfterResync();
      },
      durable: (epoch) => {
        this.#checkpoints.durable(epoch);
      },
      checkpointFailed: (failed) => {
        this.#checkpoints.failed(failed);
      },
      admitted: () => this.#recordNewData(),
      attached: () => {
        this.#checkpoints.begin();
      },
      leaving: () => {
        this.#checkpoints.end();
        return this.verifier.cancel();
      },
    };
  }

  /** Somebody changed a disk, by what right is not ours to say: no dirty map tells what a replica lacks. */
  async #takeForeignDisk({ isOtherFile, reason }: ForeignDisk): Promise<void> {
    const { log } = this.#options;
    for (const { dirty } of this.disks) await dirty.describe(null, false);
    if (isOtherFile) {
      this.#newData = reason;
      log.warn(
        { reason },
        "new data: put the disk back; if it is meant, a replica of the old takes it when started with --discard-local-changes",
      );
      return;
    }
    log.warn({ reason }, "the replica lacks everything: a full copy");
    await this.#lineage.goAlone();
  }

  /** Which of them is the wrong one is told first, lest the replica's data be given up for a disk that is there by mistake. */
  #wrongDisk(error: unknown): unknown {
    if (this.#newData === null || !(error instanceof ReplError) || error.code !== "unrelated-data")
      return error;
    const message = `${this.#newData}: put the disk back; if it is meant: ${error.message}`;
    return new StateError("other-disk", message, { cause: error });
  }

  /** Before a replica is sent any of it: from here on the old disk is another file. */
  async #recordNewData(): Promise<void> {
    if (this.#newData === null) return;
    await this.#metadata.save({
      cleanShutdown: false,
      disks: await identifyDisks(this.#options.disks, false),
    });
    this.#newData = null;
  }
}
