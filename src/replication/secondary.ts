/**
 * The secondary node: stage, epoch, overlays and failover of all its disks at once.
 *
 * Invariants:
 * - Operations run one at a time. What they change together changes with both gates shut, so that every request to any
 *   disk falls before or after it.
 * - metadata.json names the epoch whose overlays count. It moves on only after everything received before that
 *   epoch is durable on the disks; until then the older epoch's files are kept (design, promise 9).
 * - From failover on, no replication write reaches a disk: the export is closed before the view becomes the disk.
 */
import type { Logger } from "pino";
import { describeError, MetadataError, StateError } from "../errors.js";
import { checkDisks, newSecondaryMetadata, readMetadata, type SecondaryMetadata } from "../meta/metadata.js";
import type { UndoErrorPolicy } from "../config/schema.js";
import type { StateDirectory } from "../meta/state-directory.js";
import { DiskGroup } from "./disk-group.js";
import { type Epoch, EpochStore } from "./epoch.js";
import { EpochChanger } from "./epoch-changer.js";
import type { SwallowedError } from "../status.js";
import { IoTrouble } from "./io-trouble.js";
import { findForeignDisk, identifyDisks } from "../meta/disk-identity.js";
import type { Commit } from "./commit.js";
import { Failover, type FailoverOption, failoverOptions } from "./failover.js";
import { type Introduction, Introductions } from "./introduction.js";
import type { ChangedRanges } from "./local-changes.js";
import { MetadataKeeper } from "./metadata-keeper.js";
import { OwnData } from "./own-data.js";
import type { Primary } from "./primary.js";
import { guestExportsOf, type PrimarySettings, promote } from "./promotion.js";
import type { NamedDisk, SecondaryDisk } from "./secondary-disk.js";
import { asSecondary } from "./roles.js";
import { Serial } from "./serial.js";
import {
  type Effect,
  type Event,
  type FailoverTarget,
  initialState,
  isPromoted,
  type Mode,
  type Stage,
  type State,
  step,
} from "./stage.js";
import { Tenures } from "./tenures.js";
import { type SessionId, WriterTracker } from "./writer-tracker.js";

export interface SecondaryOptions {
  readonly directory: StateDirectory;
  readonly disks: readonly NamedDisk[];
  readonly onUndoError: UndoErrorPolicy;
  /** How it replicates once it is promoted and takes a replica. */
  readonly asPrimary: PrimarySettings;
  /** Give up what only this node has, for a primary with another history. */
  readonly discardLocalChanges: boolean;
  /** If it was promoted, be a secondary again. */
  readonly demote: boolean;
  readonly log: Logger;
  readonly events: SecondaryEvents;
}

interface SecondaryEvents {
  /** Peers that are connected to the replication exports. */
  writers(): readonly string[];
  /** The replication exports are to be closed: resolve when no request of theirs is in flight any more. */
  disconnectWriters(): Promise<void>;
  /** A checkpoint is durable here. */
  checkpointDurable(epoch: number): void;
  stageChanged(stage: Stage): void;
  commitEnded(error: Error | null): void;
}

export interface CheckpointRequest {
  /** Who asks; null: a manager, who vouches for nothing. */
  readonly session: SessionId | null;
  /** Number of the epoch to begin; null: the next. */
  readonly epoch: number | null;
}

/** The answer to an introduction. */
export interface Introduced {
  /** Whether the primary's dirty maps, and `changed`, tell all that is missing here. */
  readonly isKnown: boolean;
  /** What to call the time from now on. */
  readonly tenure: string;
  /** What this node changed by itself. */
  readonly changed: ChangedRanges;
}

interface EpochToBegin {
  readonly number: number;
  /** The history of the data in it, where it differs. */
  readonly lineage: Partial<SecondaryMetadata>;
}

export class Secondary {
  readonly #options: SecondaryOptions;
  readonly #log: Logger;
  readonly #group: DiskGroup;
  readonly #store: EpochStore;
  readonly #metadata: MetadataKeeper<SecondaryMetadata>;
  readonly #tracker: WriterTracker;
  readonly #trouble: IoTrouble;
  readonly #serial = new Serial();
  #state: State = initialState("secondary");
  readonly #epochs: EpochChanger;
  readonly #failover: Failover;
  #promoted: Primary | null = null;
  readonly #own: OwnData;
  #isFenced = false;
  readonly #tenures: Tenures;
  readonly #introductions = new Introductions();

  private constructor(options: SecondaryOptions, metadata: SecondaryMetadata) {
    this.#options = options;
    this.#log = options.log;
    this.#metadata = new MetadataKeeper(options.directory, metadata);
    this.#group = new DiskGroup(options.disks, {
      imageLost: (error) => this.#trouble.imageLost(error),
      ioError: (disk, failure) => {
        this.#trouble.failed(disk, failure);
      },
    });
    this.#tenures = new Tenures(this.#metadata, (error) => {
      this.#metadataFailed(error);
    });
    const { directory, disks, log } = options;
    this.#own = new OwnData({ directory, disks, metadata: this.#metadata, log });
    this.#store = new EpochStore({
      directory: options.directory,
      disks: this.#group.devices,
      sync: true,
      salvage: () => this.metadata.salvage,
    });
    this.#tracker = new WriterTracker(metadata.gap, () => {
      this.#saveSoon({ gap: this.#tracker.gap });
    });
    this.#trouble = new IoTrouble({
      policy: options.onUndoError,
      overlays: () => this.overlays,
      isSalvage: (epoch) => epoch === this.metadata.salvage,
      tracker: this.#tracker,
      onError: () => {
        this.#become(step(this.#state, { type: "io-error" })[0]);
      },
      log,
    });
    this.#epochs = new EpochChanger(this.#group, this.#store, this.#metadata, {
      durable: (epoch) => {
        this.#log.debug({ epoch }, "checkpoint");
        this.#own.forgetIfGivenUp();
        options.events.checkpointDurable(epoch);
      },
      durabilityLost: (error) => {
        this.#trouble.failed("", { operation: "flush", offset: 0, lengthBytes: 0, error });
      },
    });
    this.#failover = new Failover({
      group: this.#group,
      epochs: this.#epochs,
      metadata: this.#metadata,
      serial: this.#serial,
      promote: (overlays, target) => this.#promote(overlays, target),
      onEnd: (failure) => {
        this.#failoverEnded(failure);
      },
      log: options.log,
    });
  }

  /**
   * Takes up where the node stopped or crashed.
   * @throws MetadataError if the state directory can't be trusted or belongs to other disks
   */
  static async open(options: SecondaryOptions): Promise<Secondary> {
    const { directory, disks } = options;
    const identities = await identifyDisks(disks, true);
    const known = await readMetadata(directory);
    if (known !== null) checkDisks(directory, known.disks, identities);
    const found = known ?? newSecondaryMetadata(identities);
    const secondary = new Secondary(options, asSecondary(found, options));
    if (known === null) await secondary.#refuseLeftovers();
    else {
      secondary.#refuseForeignDisk(findForeignDisk(known.disks, identities, disks));
      if (!isPromoted(secondary.metadata.stage)) await secondary.#own.open(found !== secondary.metadata);
    }
    await secondary.#recover();
    return secondary;
  }

  get disks(): readonly SecondaryDisk[] {
    return this.#group.disks;
  }

  get stage(): Stage {
    return this.#state.stage;
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

  /**
   * This node as a primary, which can take a replica of its own.
   * @throws StateError if it was not promoted, or its failover is not over
   */
  get promoted(): Primary {
    if (this.stage === "done" && this.#promoted !== null) return this.#promoted;
    throw new StateError(
      "not-promoted",
      isPromoted(this.stage) || this.stage === "failover-failed"
        ? "the failover is not over: this node can't take a replica before it is"
        : "this node is a secondary: only after a failover can it take a replica of its own",
    );
  }

  /** Why the last primary that introduced itself was refused for its data's history, or null. */
  get conflict(): string | null {
    return this.#introductions.conflict;
  }

  /** Where what this node gave up last is saved, or null. */
  get salvage(): string | null {
    return this.#own.salvage;
  }

  /** Why the replication exports take nobody, or null. */
  exportRefusal(): string | null {
    return this.#isFenced
      ? "this node was promoted by a failover and takes no replication writes any more: start the old primary's node as its secondary (repl-secondary on its state directory), or this one with --demote"
      : null;
  }

  /** Why a checkpoint would be refused now, or null. */
  checkpointRefusal(): string | null {
    if (this.stage !== "running") return "Block replication is not running";
    return this.#group.failure ?? this.#epochs.failure ?? this.#tracker.gap;
  }

  /** Which promise can't be kept any more, or null; for the exit code. */
  brokenPromise(): string | null {
    if (this.stage === "failover-failed") return "the failover has failed";
    const undecided = this.#promoted?.brokenPromise() ?? null;
    if (undecided !== null) return undecided;
    const isLost = this.overlays?.isBroken === true;
    return this.#group.failure ?? this.#epochs.failure ?? (isLost ? "the last checkpoint is lost" : null);
  }

  start(mode: Mode): Promise<void> {
    return this.#serial.run(() => this.#apply({ type: "start", mode }));
  }

  /**
   * @returns the number of the epoch that began; see checkpointDurable()
   * @throws StateError with the reason if it is refused: nothing has changed then
   */
  checkpoint(request: CheckpointRequest): Promise<number> {
    return this.#serial.run(async () => {
      const { session, epoch } = request;
      if (session !== null) this.#trust(session);
      const refusal = this.stage === "running" ? this.checkpointRefusal() : null;
      if (refusal !== null) throw new StateError("checkpoint-refused", `checkpoint refused: ${refusal}`);
      // The checkpoint that ends the first copy of a primary of ours starts replication.
      const isFirst = this.stage === "none" && session !== null;
      const number = epoch ?? this.epoch + 1;
      await this.#apply(isFirst ? { type: "start", mode: "secondary" } : { type: "checkpoint" }, {
        number,
        lineage: session === null ? {} : this.#adopted(),
      });
      if (session !== null) this.#mended();
      return this.epoch;
    });
  }

  /** A checkpoint is about to be taken: what can be done before it is, so that nobody waits for that. */
  prepareCheckpoint(epoch: number): Promise<void> {
    return this.#serial.run(async () => {
      if (this.stage === "running") await this.#epochs.prepare(epoch);
    });
  }

  /** Resolves when the checkpoint in force is durable. @throws if it can't become so */
  checkpointDurable(): Promise<void> {
    return this.#epochs.durable;
  }

  /** @throws StateError with QEMU's texts if an error was swallowed or replication is not running */
  getError(): void {
    step(this.#state, { type: "get-error" });
  }

  /** @param failover null: stop without failover, keeping everything received */
  stop(failover: FailoverTarget | null): Promise<void> {
    return this.#serial.run(() => {
      if (!isPromoted(this.stage)) this.#refuseLostCheckpoint(failover);
      return this.#apply({ type: "stop", failover });
    });
  }

  /**
   * A primary hands over at a checkpoint. Asked again after it was done, it says so.
   * @returns this node's new generation
   * @throws StateError if it can't take over: nothing has changed then
   */
  async takeOver(primary: string, epoch: number): Promise<string> {
    await this.#serial.run(async () => {
      if (isPromoted(this.stage)) return;
      const refusal = this.#takeOverRefusal(primary, epoch);
      if (refusal !== null) throw new StateError("no-take-over", `take-over refused: ${refusal}`);
      await this.#apply({ type: "stop", failover: "latest" });
    });
    await this.commitEnded();
    const { generation, epoch: number } = this.metadata;
    if (this.stage !== "done" || generation === null || number !== epoch) {
      throw new StateError("no-take-over", `take-over refused: this node was promoted in epoch ${number}`);
    }
    return generation;
  }

  /** Resolves when the background part of a failover has ended, one way or the other. */
  commitEnded(): Promise<void> {
    return this.#failover.ended;
  }

  /** What a failover now would cost, target by target. @throws StateError if there is nothing to fail over */
  failoverOptions(): FailoverOption[] {
    if (isPromoted(this.stage)) {
      throw new StateError("promoted", `failover is ${this.stage === "done" ? "done" : "under way"} already`);
    }
    const { overlays } = this;
    if (overlays === null) {
      throw new StateError(
        "not-running",
        "Block replication is not running: there is nothing to fail over to",
      );
    }
    const { checkpointAt } = this.metadata;
    const seconds = checkpointAt === null ? 0 : Math.max(0, (Date.now() - Date.parse(checkpointAt)) / 1000);
    return failoverOptions(overlays, this.#group.pendingBytes, seconds, this.#tracker.gap);
  }

  /**
   * A primary of ours introduces itself. Whoever wrote before is cut off: a late write of an old connection would
   * overwrite what this one sends. But nobody is cut off for another primary. Data of a line of history is not
   * overwritten before it can be gone back to.
   * @throws StateError if somebody else is replicating to this node, it was promoted, or its data has another history
   */
  introduce(introduction: Introduction): Promise<Introduced> {
    return this.#serial.run(async () => {
      this.#refuseIntroduction(introduction);
      await this.#options.events.disconnectWriters();
      await this.#group.drain();
      this.#group.forgetFailures();
      if (this.stage === "none" && this.metadata.generation !== null) {
        await this.#apply({ type: "start", mode: "secondary" });
      }
      if (this.overlays !== null) await this.#own.keep(this.overlays.number);
      this.#tracker.introduce(introduction.session);
      const { isKnown, tenure } = await this.#tenures.renew(introduction.tenures);
      return { isKnown, tenure, changed: this.#own.changed() };
    });
  }

  /** The first write over a connection. @param isIntroduced whether of the primary that introduced itself */
  written(isIntroduced: boolean): void {
    if (isIntroduced) this.#tenures.confirm();
    else this.#tenures.forget();
  }

  /** Finishes what was acknowledged, makes it durable and records a clean state. The exports are closed already. */
  close(): Promise<void> {
    return this.#serial.run(async () => {
      await this.#promoted?.close();
      await this.#failover.interrupt();
      await this.#group.drain();
      await this.#epochs.settled();
      await this.#store.discardPrepared();
      await this.#group.flush();
      await this.overlays?.flush();
      const cleanShutdown = this.#group.failure === null && this.#epochs.failure === null;
      await this.#metadata.save({
        cleanShutdown,
        logs: cleanShutdown ? ((await this.overlays?.logEnds()) ?? []) : [],
        disks: await identifyDisks(this.#options.disks, true),
      });
      await this.overlays?.close();
      await this.#own.close();
    });
  }

  /** @param begin the epoch to begin, if one begins */
  async #apply(event: Event, begin: EpochToBegin = { number: this.epoch + 1, lineage: {} }): Promise<void> {
    const [next, effects] = step(this.#state, event);
    for (const effect of effects) await this.#effect(effect, next, begin);
    this.#become(next);
  }

  #become(next: State): void {
    const isChange = next.stage !== this.#state.stage;
    this.#state = next;
    if (!isChange) return;
    this.#log.info({ stage: next.stage, epoch: this.epoch }, "stage");
    this.#options.events.stageChanged(next.stage);
  }

  #effect(effect: Effect, next: State, begin: EpochToBegin): Promise<void> {
    switch (effect) {
      case "begin-epoch":
        return this.#beginEpoch(begin);
      case "drop-overlays":
        return this.#dropOverlays();
      case "fence":
        return this.#fence(next.target);
      case "commit":
        return this.#beginFailover(next.target ?? "checkpoint");
    }
  }

  #takeOverRefusal(primary: string, epoch: number): string | null {
    const refusal = this.checkpointRefusal();
    if (refusal !== null) return refusal;
    if (this.#introductions.last?.primary !== primary) return "another primary introduced itself last";
    if (this.epoch !== epoch) return `this node is in epoch ${this.epoch}, not ${epoch}`;
    const isSame = this.overlays?.overlays.every(({ hidden }) => hidden.mappedBytes === 0) === true;
    return isSame && this.#group.pendingBytes === 0 ? null : "something was received since the checkpoint";
  }

  #refuseIntroduction(introduction: Introduction): void {
    const refusal = this.exportRefusal();
    if (refusal !== null) throw new StateError("promoted", refusal);
    const [writer = null] = this.#options.events.writers();
    try {
      this.#introductions.admit(introduction, {
        ...this.metadata,
        writer,
        changedBytes: this.#own.changedBytes,
      });
    } catch (error) {
      this.#log.error({ reason: describeError(error) }, "primary refused");
      throw error;
    }
  }

  /** What becomes of this node's data when a primary of ours says that nothing is missing: its line is the primary's. */
  #adopted(): Partial<SecondaryMetadata> {
    if (this.#introductions.last === null) return {};
    const { generation, ancestors } = this.#introductions.last;
    return { generation, ancestors: [...ancestors], discard: false, returning: false };
  }

  async #beginEpoch({ number, lineage }: EpochToBegin): Promise<void> {
    // Before the first write of the epoch, so that none is lost unseen.
    if (this.overlays === null) this.#tracker.begin();
    await this.#epochs.begin(number, lineage);
  }

  async #dropOverlays(): Promise<void> {
    await this.#epochs.end();
    this.#tracker.end();
    this.#trouble.clear();
  }

  async #fence(target: FailoverTarget | null): Promise<void> {
    this.#isFenced = true;
    this.#group.fence();
    await this.#options.events.disconnectWriters();
    await this.#group.drain();
    await this.#epochs.settled();
    // The last writes may have cost the checkpoint. Before anything is on record, the other target is still open.
    this.#refuseLostCheckpoint(target);
  }

  #refuseLostCheckpoint(target: FailoverTarget | null): void {
    if (target !== "checkpoint" || this.overlays?.isBroken !== true) return;
    const refusal = "the last checkpoint is lost: fail over to the latest content instead (--to latest)";
    throw new StateError("checkpoint-lost", `failover refused: ${refusal}`);
  }

  #beginFailover(target: FailoverTarget): Promise<void> {
    const { overlays } = this;
    if (overlays === null) throw new Error("failover without overlays");
    return this.#failover.begin(overlays, target);
  }

  /** @param overlays null: nothing of the failover is left to do */
  async #promote(overlays: Epoch | null, target: FailoverTarget): Promise<void> {
    const { directory, asPrimary, log } = this.#options;
    const { disks } = this;
    // From here on they are the dirty maps of the primary that this node becomes.
    await this.#own.close();
    this.#promoted ??= await promote(
      disks,
      this.#metadata,
      { directory, log, ...asPrimary },
      overlays,
      target,
    );
    this.#group.setFronts(guestExportsOf(this.#promoted));
  }

  #failoverEnded(failure: Error | null): void {
    if (failure === null) this.#trouble.clear();
    else this.#log.error({ error: failure.message }, "failover failed");
    if (this.stage === "failover") {
      this.#become(step(this.#state, { type: failure === null ? "commit-succeeded" : "commit-failed" })[0]);
    }
    this.#options.events.commitEnded(failure);
  }

  /** Takes a primary's word that nothing is missing. */
  #trust(session: SessionId): void {
    if (isPromoted(this.stage))
      throw new StateError("promoted", "checkpoint refused: this node was promoted by a failover");
    if (!this.#tracker.resynced(session)) {
      throw new StateError(
        "session-lost",
        "checkpoint refused: the primary's connections were lost since its handshake",
      );
    }
  }

  #mended(): void {
    this.#trouble.clear();
    this.#become(step(this.#state, { type: "errors-mended" })[0]);
  }

  #saveSoon(change: Partial<SecondaryMetadata>): void {
    this.#metadata.saveSoon(change, (error) => {
      this.#metadataFailed(error);
    });
  }

  #metadataFailed(error: unknown): void {
    this.#log.error({ error: describeError(error) }, "metadata could not be written");
  }

  /** Before-images and what a primary knows of this node belong to the disks as they were. */
  #refuseForeignDisk(foreign: string | null): void {
    if (foreign === null || this.metadata.generation === null) return;
    const { path } = this.#options.directory;
    throw new MetadataError(
      "foreign-disk",
      `${foreign}: ${path} does not belong to it: put the disk back as it was, or remove the directory, which costs a full copy`,
    );
  }

  async #refuseLeftovers(): Promise<void> {
    const leftover = await this.#store.anyFile();
    if (leftover === null) return;
    const { path } = this.#options.directory;
    throw new MetadataError(
      "missing",
      `${path}/metadata.json is missing although ${leftover} is there: restore it, or remove the directory, which costs a full copy`,
    );
  }

  async #recover(): Promise<void> {
    const { stage, epoch, failoverTarget: target, cleanShutdown, logs } = this.metadata;
    const overlays = stage === "none" || stage === "done" ? null : await this.#store.recover(epoch, logs);
    if (overlays === null) await this.#store.removeAllBut(null);
    this.#state = { ...this.#state, stage, target, hasError: stage === "failover-failed" };
    this.#isFenced = stage !== "none" && stage !== "running";
    if (this.#isFenced) this.#group.fence();
    await this.#metadata.save({
      cleanShutdown: false,
      logs: [],
      disks: await identifyDisks(this.#options.disks, false),
    });
    if (overlays === null) {
      if (stage === "done") await this.#group.showDisks(() => this.#promote(null, target ?? "latest"));
      return;
    }
    if (stage === "running") {
      this.#group.resume(overlays);
      this.#tracker.resume();
      if (!cleanShutdown)
        this.#tracker.writeFailed(
          "the secondary was not shut down cleanly and may have lost acknowledged writes",
        );
      return;
    }
    this.#group.adopt(overlays);
    if (stage === "failover") await this.#beginFailover(target ?? "checkpoint");
    else if (target === "latest") await this.#group.showDisks(() => this.#promote(overlays, target));
    else await this.#failover.show(overlays, "checkpoint");
  }
}
