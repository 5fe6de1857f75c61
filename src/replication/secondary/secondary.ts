/**
 * The secondary node: its disks and what works on them together.
 *
 *   DiskGroup ─ what is copied and shown, at one instant     WriterTracker ─ whether the disks may have holes
 *   EpochChanger, EpochStore ─ epochs, their files           WriterSessions ─ whose writes, whose word
 *   SecondaryStages ─ the stage                              SecondaryCheckpoints ─ on whose word, why not
 *   Failover ─ its way, and the primary it makes of this     IoTrouble, OwnData ─ errors; what only this node has
 *
 * Invariants:
 * - Operations run one at a time. What they change together changes with both gates shut, so that every request to any
 *   disk falls before or after it.
 * - metadata.json names the epoch whose overlays count. It moves on only after everything received before that
 *   epoch is durable on the disks; until then the older epoch's files are kept.
 */
import { StateError } from "../../errors.js";
import { identifyDisks } from "../../meta/disk-identity.js";
import { makingRoom } from "../../meta/making-room.js";
import type { SecondaryMetadata } from "../../meta/metadata.js";
import type { SwallowedError } from "../../status.js";
import type { Commit } from "./commit.js";
import { systemClock } from "../../clock.js";
import { DiskGroup } from "./disk-group.js";
import { type Epoch, EpochStore } from "./epoch.js";
import { EpochChanger } from "./epoch-changer.js";
import { Failover } from "./failover.js";
import { FailoverChoice, type FailoverOption } from "./failover-choice.js";
import type { Introduction } from "./introduction.js";
import { IoTrouble } from "./io-trouble.js";
import { MetadataKeeper } from "../metadata-keeper.js";
import { OwnData } from "./own-data.js";
import type { Primary } from "../primary/primary.js";
import { type Introduced, WriterSessions } from "./writer-sessions.js";
import { type CheckpointRequest, SecondaryCheckpoints } from "./checkpoints.js";
import type { SecondaryDisk } from "./disk.js";
import type { SecondaryOptions } from "./options.js";
import { readSecondaryState, recover, refuseLeftovers } from "./recovery.js";
import { Reserve } from "./reserve.js";
import { SecondaryStages } from "./stages.js";
import { SecondaryTakeOver } from "./take-over.js";
import { Serial } from "../serial.js";
import { SpareLog } from "./spare-log.js";
import { type FailoverTarget, isPromoted, type Mode, type Stage } from "../stage.js";
import { WriterTracker } from "./writer-tracker.js";

export class Secondary {
  readonly #options: SecondaryOptions;
  readonly #serial = new Serial();
  readonly #metadata: MetadataKeeper<SecondaryMetadata>;
  readonly #group: DiskGroup;
  readonly #store: EpochStore;
  readonly #reserve: Reserve;
  readonly #epochs: EpochChanger;
  readonly #tracker: WriterTracker;
  readonly #trouble: IoTrouble;
  readonly #own: OwnData;
  readonly #stages: SecondaryStages;
  readonly #sessions: WriterSessions;
  readonly #checkpoints: SecondaryCheckpoints;
  readonly #choice: FailoverChoice;
  readonly #failover: Failover;
  readonly #takeOver: SecondaryTakeOver;

  private constructor(options: SecondaryOptions, known: SecondaryMetadata) {
    this.#options = options;
    const { disks, log, clock = systemClock, events } = options;
    const spare = new SpareLog(options.directory, log);
    const reserve = new Reserve(options.directory, disks, log);
    this.#reserve = reserve;
    const makeRoom = async (): Promise<boolean> => (await spare.makeRoom()) || (await reserve.lend());
    const directory = makingRoom(options.directory, makeRoom);
    const disconnectWriters = (): Promise<void> => events.disconnectWriters();
    const metadata = new MetadataKeeper(directory, known, log);
    this.#metadata = metadata;
    const group = new DiskGroup(disks, clock, {
      imageLost: (disk, failure) => this.#trouble.imageLost(disk, failure),
      ioError: (disk, failure) => {
        this.#trouble.failed(disk, failure);
      },
      disconnectWriters,
    });
    this.#group = group;
    this.#store = new EpochStore({
      directory,
      disks: group.devices,
      clock,
      salvage: () => this.metadata.salvage,
      nothingSalvaged: (epoch) => this.#own.nothingSaved(epoch),
      spare,
      lost: () => {
        this.#tellLostRollback();
      },
    });
    const tracker = new WriterTracker(
      known,
      () => this.#sessions.isReserved,
      () => {
        const { gap, cutOff } = tracker;
        const isKnown = [metadata.recorded, metadata.current].every(
          (known) => known.gap === gap && known.cutOff === cutOff,
        );
        if (!isKnown) void metadata.saveSoon({ gap, cutOff });
      },
    );
    this.#tracker = tracker;
    this.#own = new OwnData({ directory, disks, metadata, log });
    const epochs = this.#makeEpochs();
    this.#epochs = epochs;
    const stages = this.#makeStages();
    this.#stages = stages;
    const trouble = new IoTrouble({
      policy: options.onUndoError,
      overlays: () => this.overlays,
      isSalvage: (epoch) => epoch === this.metadata.salvage,
      tracker,
      onError: () => {
        stages.happened("io-error");
      },
      log,
    });
    this.#trouble = trouble;
    const sessions = new WriterSessions({
      stages,
      group,
      tracker,
      own: this.#own,
      metadata,
      refusal: () => this.exportRefusal(),
      disconnectWriters,
      log,
    });
    this.#sessions = sessions;
    const checkpoints = new SecondaryCheckpoints({ stages, sessions, group, epochs, tracker, trouble });
    this.#checkpoints = checkpoints;
    this.#takeOver = new SecondaryTakeOver({ stages, metadata, group, epochs, checkpoints, sessions });
    const choice = new FailoverChoice({ stages, group, metadata, tracker });
    this.#choice = choice;
    this.#failover = new Failover({
      directory,
      asPrimary: options.asPrimary,
      stages,
      choice,
      group,
      epochs,
      metadata,
      serial: this.#serial,
      own: this.#own,
      reserve,
      disconnectWriters,
      ended: (failure) => {
        if (failure === null) {
          trouble.clear();
          // What was lost has been given up, whether or not its primary has come back for it before.
          group.forgetFailures();
        }
        events.commitEnded(failure);
      },
      log,
    });
  }

  /**
   * Takes up where the node stopped or crashed.
   * @throws MetadataError if the state directory can't be trusted or belongs to other disks
   */
  static async open(options: SecondaryOptions): Promise<Secondary> {
    const { directory, disks } = options;
    const { metadata, isNew, hasChangedRole } = await readSecondaryState(directory, disks, options);
    const secondary = new Secondary(options, metadata);
    if (isNew) await refuseLeftovers(directory, secondary.#store);
    else if (metadata.stage === "none" || metadata.stage === "running")
      await secondary.#own.open(hasChangedRole);
    await recover({
      disks,
      metadata: secondary.#metadata,
      store: secondary.#store,
      group: secondary.#group,
      stages: secondary.#stages,
      failover: secondary.#failover,
      tracker: secondary.#tracker,
    });
    if (secondary.stage === "none" || secondary.stage === "running") await secondary.#reserve.hold();
    return secondary;
  }

  get disks(): readonly SecondaryDisk[] {
    return this.#group.disks;
  }

  get stage(): Stage {
    return this.#stages.stage;
  }

  get metadata(): SecondaryMetadata {
    return this.#metadata.current;
  }

  /** Number of the epoch that writes belong to. */
  get epoch(): number {
    return this.#epochs.number;
  }

  /** The overlays in use, while replication runs or a failover is under way. */
  get overlays(): Epoch | null {
    return this.#group.epoch;
  }

  get tracker(): WriterTracker {
    return this.#tracker;
  }

  get error(): SwallowedError | null {
    return this.#trouble.error;
  }

  /** The commit of a failover, while there is one. */
  get commit(): Commit | null {
    return this.#failover.commit;
  }

  /** As Failover.promoted. */
  get promoted(): Primary {
    return this.#failover.promoted;
  }

  /** Why the last primary that introduced itself was refused for its data's history, or null. */
  get conflict(): string | null {
    return this.#sessions.conflict;
  }

  /** Where what this node gave up last is saved, or null. */
  get salvage(): string | null {
    return this.#own.salvage;
  }

  /** Why the replication exports take nobody, or null. */
  exportRefusal(): string | null {
    return this.#failover.exportRefusal();
  }

  /** Why a checkpoint would be refused now, or null. */
  checkpointRefusal(): string | null {
    return this.#checkpoints.refusal();
  }

  /** Which promise can't be kept any more, or null; for the exit code. */
  brokenPromise(): string | null {
    const undecided = this.#failover.brokenPromise();
    if (undecided !== null) return undecided;
    const isLost = (this.overlays?.lost ?? null) !== null;
    return this.#epochs.failure ?? this.#group.failure ?? (isLost ? "the last checkpoint is lost" : null);
  }

  /** @throws StateError with QEMU's texts, or if the disks are half of what a primary is copying here */
  start(mode: Mode): Promise<void> {
    return this.#serial.run(() => {
      if (this.metadata.copying) {
        const remedy =
          "the primary starts replication itself when it is; to give that up, stop replication first (enable: false)";
        throw new StateError("copying", `a primary's copy is not finished: ${remedy}`);
      }
      // Whoever writes from now on is the manager's choice.
      return this.#stages.apply({ type: "start", mode }, { number: null, lineage: { primary: null } });
    });
  }

  /**
   * @returns the number of the epoch that began; see checkpointDurable()
   * @throws StateError with the reason if it is refused: nothing has changed then
   */
  checkpoint(request: CheckpointRequest): Promise<number> {
    return this.#serial.run(() => this.#checkpoints.take(request));
  }

  /** A checkpoint is about to be taken: what can be done before it is, so that nobody waits for that. */
  prepareCheckpoint(epoch: number): Promise<void> {
    return this.#serial.run(() => this.#checkpoints.prepare(epoch));
  }

  /** Resolves when the checkpoint in force is durable. @throws if it can't become so */
  checkpointDurable(): Promise<void> {
    return this.#epochs.durable;
  }

  /** @throws StateError with QEMU's texts if an error was swallowed or replication is not running */
  getError(): void {
    this.#stages.getError();
  }

  /** @param failover null: stop without failover, keeping everything received; none runs: a copy that is not finished is given up */
  stop(failover: FailoverTarget | null): Promise<void> {
    return this.#serial.run(() => this.#stop(failover));
  }

  /**
   * Fails over: resolves when the views are on their way to be the disks, on record; the merge goes on behind it.
   * @throws StateError if it is refused, also while another one is under way or done, which may have another target; or ReplError
   * "failover-failed" if it could not begin: it can be tried again
   */
  async failOver(target: FailoverTarget): Promise<void> {
    await this.#serial.run(() => {
      this.#choice.refuseSecond();
      return this.#stop(target);
    });
    await this.#failover.begun();
  }

  /** As failOver() to the checkpoint, for a manager of QEMU's: ignored by a node that is being or has been promoted. */
  async failOverOnce(): Promise<void> {
    await this.stop("checkpoint");
    await this.#failover.begun();
  }

  /**
   * A primary hands over at a checkpoint. Asked again after it was done, it says so.
   * @returns this node's new generation
   * @throws StateError if it can't take over: nothing has changed then
   */
  async takeOver(primary: string, epoch: number): Promise<string> {
    await this.#serial.run(() => this.#takeOver.begin(primary, epoch));
    await this.commitEnded();
    return this.#takeOver.outcome(epoch);
  }

  /** Resolves when the background part of a failover has ended, one way or the other. */
  commitEnded(): Promise<void> {
    return this.#failover.ended;
  }

  /** What a failover now would cost, target by target. @throws StateError if there is nothing to fail over */
  failoverOptions(): FailoverOption[] {
    return this.#choice.options();
  }

  /** As WriterSessions.introduce(). */
  introduce(introduction: Introduction): Promise<Introduced> {
    return this.#serial.run(async () => {
      const introduced = await this.#sessions.introduce(introduction);
      this.#tellLostRollback();
      return introduced;
    });
  }

  /** As WriterSessions.written(). */
  written(disk: SecondaryDisk, stranger: string | null): void {
    this.#sessions.written(disk, stranger);
  }

  /** Finishes what was acknowledged, makes it durable and records a clean state. The exports are closed already. */
  close(): Promise<void> {
    return this.#serial.run(async () => {
      await this.#failover.close();
      await this.#group.drain();
      await this.#epochs.settled();
      await this.#store.discardPrepared();
      await this.#group.flush();
      await this.overlays?.flush();
      const cleanShutdown = this.#group.failure === null && this.#epochs.obstacle === null;
      await this.#metadata.save({
        cleanShutdown,
        logs: cleanShutdown ? ((await this.overlays?.logEnds()) ?? []) : [],
        disks: await identifyDisks(this.#options.disks, true),
      });
      await this.overlays?.close();
      await this.#own.close();
    });
  }

  async #stop(failover: FailoverTarget | null): Promise<void> {
    if (failover === null && this.stage === "none" && this.metadata.copying) {
      this.#tracker.end();
      return this.#metadata.save({ copying: false });
    }
    if (!isPromoted(this.stage)) this.#choice.refuseLostCheckpoint(failover);
    const { overlays } = this;
    await this.#stages.apply({ type: "stop", failover });
    // A primary that is connected goes on writing, and has to show that there is nothing to fail over to.
    const { mixed } = this.metadata;
    if (this.stage === "none" && overlays !== null && mixed !== null)
      this.#options.events.rollbackLost({ epoch: overlays.number, reason: mixed });
  }

  #makeEpochs(): EpochChanger {
    const { disks, log, events } = this.#options;
    return new EpochChanger(this.#group, this.#store, this.#metadata, {
      durable: (epoch) => {
        log.debug({ epoch }, "checkpoint");
        this.#own.forgetIfGivenUp();
        events.checkpointDurable(epoch);
      },
      notDurable: (epoch, { message: reason }) => {
        log.error({ epoch, reason }, "checkpoint failed");
        events.checkpointFailed({ epoch, reason });
      },
      flushFailed: (error) => {
        const all = disks.map(({ name }) => name).join(",");
        this.#trouble.failed(all, { operation: "flush", offset: 0, lengthBytes: 0, error });
      },
      leftOver: (error) => {
        log.warn({ error: error.message }, "files of an epoch that is over could not be closed or removed");
      },
    });
  }

  #makeStages(): SecondaryStages {
    const { log, events } = this.#options;
    return new SecondaryStages({
      beginEpoch: (begin) => this.#checkpoints.beginEpoch(begin),
      dropOverlays: () => this.#checkpoints.dropOverlays(),
      fence: (target) => this.#failover.fence(target),
      commit: (target) => this.#failover.begin(target),
      changed: (stage) => {
        log.info({ stage, epoch: this.epoch }, "stage");
        events.stageChanged(stage);
      },
    });
  }

  #tellLostRollback(): void {
    const { overlays } = this;
    const reason = overlays?.lost ?? null;
    if (overlays !== null && reason !== null)
      this.#options.events.rollbackLost({ epoch: overlays.number, reason });
  }
}
