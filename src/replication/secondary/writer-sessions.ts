/**
 * Whose writes a secondary takes, and whose word that nothing is missing: the primaries that introduce themselves, and writers
 * that never do.
 *
 * Invariants:
 * - Whoever wrote before an introduction is cut off before it is answered; but nobody is cut off for another primary.
 * - Data that belongs to a line of history is overwritten only in an epoch, so that it can be gone back to, or after it is on record
 *   that it is spoilt, so that nobody goes back to it.
 */
import { randomUUID } from "node:crypto";
import type { Logger } from "pino";
import { describeError, StateError } from "../../errors.js";
import type { SecondaryMetadata } from "../../meta/metadata.js";
import type { DiskGroup } from "./disk-group.js";
import { relationOf } from "../generation.js";
import { type Introduction, Introductions } from "./introduction.js";
import type { ChangedRanges } from "./local-changes.js";
import type { MetadataKeeper } from "../metadata-keeper.js";
import type { OwnData } from "./own-data.js";
import type { SecondaryDisk } from "./disk.js";
import type { SecondaryStages } from "./stages.js";
import { isPromoted } from "../stage.js";
import { Tenures } from "./tenures.js";
import type { SessionId, WriterTracker } from "./writer-tracker.js";

/** A value of SecondaryMetadata.mixed, outside an epoch. */
const UNFINISHED = "a primary's copy is not finished";

/** The answer to an introduction. */
export interface Introduced {
  /** Whether the primary's dirty maps, and `changed`, tell all that is missing here. */
  readonly isKnown: boolean;
  /** What to call the time from now on. */
  readonly tenure: string;
  /** What this node changed by itself. */
  readonly changed: ChangedRanges;
  /** As DiskGroup.memory. */
  readonly memory: string;
  /** As WriterTracker.writer. */
  readonly writer: string;
}

export interface WriterSessionsParts {
  readonly stages: SecondaryStages;
  readonly group: DiskGroup;
  readonly tracker: WriterTracker;
  readonly own: OwnData;
  readonly metadata: MetadataKeeper<SecondaryMetadata>;
  /** Why nobody may write here any more, or null. */
  readonly refusal: () => string | null;
  /** Resolves when no request of theirs is in flight any more. */
  readonly disconnectWriters: () => Promise<void>;
  readonly log: Logger;
}

export class WriterSessions {
  readonly #parts: WriterSessionsParts;
  readonly #introductions = new Introductions();
  readonly #tenures: Tenures;
  /** Code of the last refusal, while none is admitted: a primary tries again every few seconds, for as long as it takes an operator. */
  #refused: string | null = null;

  constructor(parts: WriterSessionsParts) {
    this.#parts = parts;
    this.#tenures = new Tenures(parts.metadata);
  }

  /** Why the last primary that introduced itself was refused for its data's history, or null. */
  get conflict(): string | null {
    return this.#introductions.conflict;
  }

  /** Whether a primary that introduced itself replicates to this node, or copies to it, be it connected or not. */
  get isReserved(): boolean {
    const { stages, metadata } = this.#parts;
    const { primary, copying } = metadata.current;
    return primary !== null && (stages.stage === "running" || copying);
  }

  /** Whether this primary introduced itself, and no other one after it. */
  isLast(primary: string): boolean {
    return this.#introductions.last?.primary === primary;
  }

  /**
   * A primary of ours introduces itself. Whoever wrote before is cut off: a late write of an old connection would
   * overwrite what this one sends.
   * @throws StateError if somebody else is replicating to this node, it was promoted, or its data has another history
   */
  async introduce(introduction: Introduction): Promise<Introduced> {
    const { group, tracker, own, metadata, disconnectWriters } = this.#parts;
    this.#refuse(introduction);
    tracker.introductionBegins();
    try {
      await disconnectWriters();
      await group.drain();
      group.forgetFailures();
      const tenures = this.#tenuresOf(introduction);
      const isGivenUp = own.isGivenUp(this.#isReplica(introduction, tenures));
      if (isGivenUp) await this.#endBrokenEpoch();
      await this.#beginEpoch();
      if (isGivenUp && group.epoch !== null) await own.keep(group.epoch.number);
      const mixed = group.epoch === null ? { mixed: metadata.current.mixed ?? UNFINISHED } : {};
      // Under the new tenure nothing was asked for yet that it does not know of.
      const primaryEpoch = Math.min(this.#askedEpoch(introduction), introduction.epoch);
      const change = { primary: introduction.primary, primaryEpoch, copying: true, ...mixed };
      const { isKnown, tenure } = await this.#tenures.renew(tenures, change);
      const writer = randomUUID();
      tracker.introduce(introduction.session, writer);
      this.#introductions.admitted(introduction);
      return { isKnown, tenure, changed: own.changed(), memory: group.memory, writer };
    } finally {
      tracker.introductionEnded();
    }
  }

  /**
   * The first write over a connection: it is not carried out before who writes is on record. A node that died between the two would
   * trust the dirty map of another one.
   * @param stranger who writes; null: the primary that introduced itself
   */
  written({ writer }: SecondaryDisk, stranger: string | null): void {
    writer.await(stranger === null ? this.#tenures.confirm() : this.#tenures.forget(this.#spoilt(stranger)));
  }

  /** Takes a primary's word that nothing is missing. @throws StateError if it doesn't count */
  trust(session: SessionId): void {
    if (isPromoted(this.#parts.stages.stage))
      throw new StateError("promoted", "checkpoint refused: the secondary was promoted by a failover");
    if (!this.#parts.tracker.resynced(session)) {
      throw new StateError(
        "session-lost",
        "checkpoint refused: the primary has to introduce itself again: its connections were lost, or replication was stopped at the secondary",
      );
    }
  }

  /**
   * What becomes of this node's data when a primary of ours says that nothing is missing: its line is the primary's.
   * @param epoch the one that the primary asks for; null: it names none
   */
  adopted(epoch: number | null): Partial<SecondaryMetadata> {
    if (this.#introductions.last === null) return {};
    const { generation, ancestors } = this.#introductions.last;
    const settled = { copying: false, discard: false, returning: false, handedOver: false };
    const asked = epoch === null ? {} : { primaryEpoch: epoch };
    return { generation, ancestors: [...ancestors], ...settled, ...asked };
  }

  /**
   * An epoch that has lost a before-image keeps no other one: what is given up would be saved nowhere. Where that is what the epoch is kept
   * for, all of it was overwritten before: the log that lost one was that of the next epoch (EpochStore.recover()).
   */
  async #endBrokenEpoch(): Promise<void> {
    const { stages, group, metadata } = this.#parts;
    if (group.epoch?.isBroken !== true || group.epoch.number === metadata.current.salvage) return;
    await metadata.save({ mixed: metadata.current.mixed ?? group.epoch.lost, checkpointAt: null });
    await stages.apply({ type: "stop", failover: null });
  }

  /** Begins an epoch if there is data to go back to, or to save. */
  async #beginEpoch(): Promise<void> {
    const { stages, metadata, log } = this.#parts;
    const { generation, mixed, discard, returning } = metadata.current;
    if (stages.stage !== "none" || generation === null) return;
    if (mixed !== null) {
      log.warn({ reason: mixed }, "no checkpoint to go back to until a primary's copy is finished");
      if (!discard && !returning) return;
    }
    await stages.apply({ type: "start", mode: "secondary" }, { number: null, lineage: { mixed } });
  }

  /** What to put on record before writes of a stranger that leave no before-images; null: nothing, or it is on record already. */
  #spoilt(stranger: string): Partial<SecondaryMetadata> | null {
    const { group, metadata } = this.#parts;
    const { generation, mixed } = metadata.recorded;
    if (group.epoch !== null || generation === null || mixed !== null) return null;
    const reason = `writer ${stranger} wrote to the disks while replication was not running`;
    return { mixed: metadata.current.mixed ?? reason, checkpointAt: null };
  }

  /** One whose maps tell nothing is the one that is connected, after the loss of its maps: it must not wait until that is noticed. */
  #isOutdated(introduction: Introduction): boolean {
    const { tenures } = introduction;
    return this.#isOlderCopy(introduction) || (tenures.length > 0 && !this.#tenures.areKnown(tenures));
  }

  /** Whether all that this node has is the primary's, which knows what it lacks. @param tenures that count */
  #isReplica(introduction: Introduction, tenures: readonly string[]): boolean {
    const relation = relationOf(this.#parts.metadata.current, introduction);
    return (relation === "same" || relation === "behind") && this.#tenures.areKnown(tenures);
  }

  /** Its state is from before a checkpoint that it asked for: what was written meanwhile is not in its maps, though they have the name. */
  #isOlderCopy(introduction: Introduction): boolean {
    return introduction.epoch < this.#askedEpoch(introduction);
  }

  /** The last epoch that a primary asked for; 0: none, for it is not the one that was admitted last. */
  #askedEpoch({ primary }: Introduction): number {
    const { current } = this.#parts.metadata;
    return primary === current.primary ? current.primaryEpoch : 0;
  }

  /** The names that its maps show, if they count. */
  #tenuresOf(introduction: Introduction): readonly string[] {
    if (!this.#isOlderCopy(introduction)) return introduction.tenures;
    const { primaryEpoch } = this.#parts.metadata.current;
    this.#parts.log.warn(
      { primaryEpoch, epoch: introduction.epoch },
      "the primary is an older copy of itself, from before a checkpoint that it took: everything is copied",
    );
    return [];
  }

  #refuse(introduction: Introduction): void {
    const { metadata, own, tracker, log } = this.#parts;
    const refusal = this.#parts.refusal();
    if (refusal !== null) throw new StateError("promoted", refusal);
    try {
      this.#introductions.admit(introduction, {
        ...metadata.current,
        writer: tracker.peer,
        isOutdated: tracker.isSessionConnected && this.#isOutdated(introduction),
        changed: own.summary(),
      });
    } catch (error) {
      const code = error instanceof StateError ? error.code : null;
      const isNews = code === null || code !== this.#refused;
      this.#refused = code;
      log[isNews ? "error" : "debug"]({ reason: describeError(error) }, "primary refused");
      throw error;
    }
    this.#refused = null;
  }
}
