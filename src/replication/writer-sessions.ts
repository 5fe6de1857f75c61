/**
 * Whose writes a secondary takes, and whose word that nothing is missing: the primaries that introduce themselves, and writers
 * that never do.
 *
 * Invariants:
 * - Whoever wrote before an introduction is cut off before it is answered; but nobody is cut off for another primary.
 * - Data of a line of history is not overwritten before it can be gone back to.
 */
import { randomUUID } from "node:crypto";
import type { Logger } from "pino";
import { describeError, StateError } from "../errors.js";
import type { SecondaryMetadata } from "../meta/metadata.js";
import type { DiskGroup } from "./disk-group.js";
import { type Introduction, Introductions } from "./introduction.js";
import type { ChangedRanges } from "./local-changes.js";
import type { MetadataKeeper } from "./metadata-keeper.js";
import type { OwnData } from "./own-data.js";
import type { SecondaryDisk } from "./secondary-disk.js";
import type { SecondaryStages } from "./secondary-stages.js";
import { isPromoted } from "./stage.js";
import { Tenures } from "./tenures.js";
import type { SessionId, WriterTracker } from "./writer-tracker.js";

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

  constructor(parts: WriterSessionsParts) {
    this.#parts = parts;
    this.#tenures = new Tenures(parts.metadata);
  }

  /** Why the last primary that introduced itself was refused for its data's history, or null. */
  get conflict(): string | null {
    return this.#introductions.conflict;
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
    const { stages, group, tracker, own, disconnectWriters } = this.#parts;
    this.#refuse(introduction);
    tracker.introductionBegins();
    try {
      await disconnectWriters();
      await group.drain();
      group.forgetFailures();
      if (stages.stage === "none" && this.#mayGoBack()) {
        await stages.apply({ type: "start", mode: "secondary" });
      }
      if (group.epoch !== null) await own.keep(group.epoch.number);
      const { isKnown, tenure } = await this.#tenures.renew(introduction.tenures, { copying: true });
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
   * @param isIntroduced whether of the primary that introduced itself
   */
  written({ writer }: SecondaryDisk, isIntroduced: boolean): void {
    writer.await(isIntroduced ? this.#tenures.confirm() : this.#tenures.forget());
  }

  /** Takes a primary's word that nothing is missing. @throws StateError if it doesn't count */
  trust(session: SessionId): void {
    if (isPromoted(this.#parts.stages.stage))
      throw new StateError("promoted", "checkpoint refused: this node was promoted by a failover");
    if (!this.#parts.tracker.resynced(session)) {
      throw new StateError(
        "session-lost",
        "checkpoint refused: the primary's connections were lost since its handshake",
      );
    }
  }

  /** What becomes of this node's data when a primary of ours says that nothing is missing: its line is the primary's. */
  adopted(): Partial<SecondaryMetadata> {
    if (this.#introductions.last === null) return {};
    const { generation, ancestors } = this.#introductions.last;
    return { generation, ancestors: [...ancestors], copying: false, discard: false, returning: false };
  }

  /** Whether what the disks hold is worth going back to, or has to be saved. */
  #mayGoBack(): boolean {
    const { generation, copying, discard, returning } = this.#parts.metadata.current;
    return generation !== null && (!copying || discard || returning);
  }

  #refuse(introduction: Introduction): void {
    const { metadata, own, tracker, log } = this.#parts;
    const refusal = this.#parts.refusal();
    if (refusal !== null) throw new StateError("promoted", refusal);
    try {
      this.#introductions.admit(introduction, {
        ...metadata.current,
        writer: tracker.peer,
        changed: own.summary(),
      });
    } catch (error) {
      log.error({ reason: describeError(error) }, "primary refused");
      throw error;
    }
  }
}
