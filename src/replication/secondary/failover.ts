/**
 * The failover of a secondary, from its fence to the last merged block, while clients of the views go on. stage.ts says whether there
 * is one; SecondaryStages has steps 1 to 3 carried out (its effects `fence` and `commit`). The steps, and what is on stable
 * storage after each:
 *
 * 1. fence(): no replication write reaches a disk any more, and what was taken is on the disks. That may still cost the checkpoint;
 *    then there is no failover to it. On record: `running`, as before. A restart finds that none was asked for.
 * 2. begin(): that it was asked for is put on record: `running` with a target, and the new generation of this node's data.
 *    A restart begins it anew.
 * 3. To the checkpoint, what a failed write left in the log of before-images is cut off. Then, at one instant, with no request to any disk
 *    under way: the node becomes a primary, whose dirty maps tell what the failover changes; then `failover` is put on record; then
 *    the views take writes, as that primary's guests. To the checkpoint they go on through the overlays, to the latest they are the
 *    disks. A restart finishes it, to this target. begun() resolves.
 * 4. In the background the overlays are merged into the disks; to the latest there is nothing to merge. Nothing new is on record, and the
 *    overlays stay complete, so that a restart can begin the merge anew.
 * 5. At one instant: the disks are flushed, `done` is put on record, the views are the disks. Then the overlays are removed; a
 *    restart removes what is left of them.
 *
 * One that fails behind step 1 is on record as `failover-failed`; without a target as long as it has changed nothing, so that a
 * restart neither begins it nor is bound to its target. If that can't be recorded, the record before counts: a restart finds it not
 * asked for, or begins it anew. It can be tried again, from step 1.
 */
import type { Logger } from "pino";
import { asError, describeError, ReplError, StateError } from "../../errors.js";
import type { SecondaryMetadata } from "../../meta/metadata.js";
import type { StateDirectory } from "../../meta/state-directory.js";
import { Commit } from "./commit.js";
import type { DiskGroup } from "./disk-group.js";
import type { Epoch } from "./epoch.js";
import type { EpochChanger } from "./epoch-changer.js";
import type { FailoverChoice } from "./failover-choice.js";
import { branch } from "../generation.js";
import type { MetadataKeeper } from "../metadata-keeper.js";
import type { OwnData } from "./own-data.js";
import type { Primary } from "../primary/primary.js";
import { guestExportsOf, type PrimarySettings, promote, tellChanges } from "./promotion.js";
import type { Reserve } from "./reserve.js";
import type { SecondaryStages } from "./stages.js";
import type { Serial } from "../serial.js";
import { type FailoverTarget, hasChangedDisks, isPromoted } from "../stage.js";

export interface FailoverParts {
  readonly directory: StateDirectory;
  /** How the node replicates once it takes a replica. */
  readonly asPrimary: PrimarySettings;
  readonly stages: SecondaryStages;
  readonly choice: FailoverChoice;
  readonly group: DiskGroup;
  readonly epochs: EpochChanger;
  readonly metadata: MetadataKeeper<SecondaryMetadata>;
  /** Keeps the end of the failover apart from other operations. */
  readonly serial: Serial;
  readonly own: OwnData;
  /** Let go of when a failover begins. */
  readonly reserve: Reserve;
  /** As WriterSessionsParts.disconnectWriters. */
  readonly disconnectWriters: () => Promise<void>;
  /** The background part has ended; the stage says so already. */
  readonly ended: (failure: Error | null) => void;
  readonly log: Logger;
}

export class Failover {
  readonly #parts: FailoverParts;
  #isFenced = false;
  /** What kept it from beginning the last time, or null. */
  #obstacle: Error | null = null;
  /** Whether it has changed something, or may have in an earlier life: it is on record as begun. */
  #hasBegun: boolean;
  /** Whether it was asked for before this start. */
  #isResumed = false;
  /** The primary that the node is, from the instant on at which its views become writable as one. */
  #promoted: Primary | null = null;
  #commit: Commit | null = null;
  #merging: Promise<unknown> = Promise.resolve();
  #isInterrupted = false;
  #ended: Promise<void> = Promise.resolve();
  /** Why it failed the last time in this life, or null. */
  #failure: Error | null = null;

  constructor(parts: FailoverParts) {
    this.#parts = parts;
    this.#hasBegun = hasChangedDisks(parts.metadata.current);
  }

  /**
   * This node as a primary, which can take a replica of its own.
   * @throws StateError if it was not promoted, or its failover is not over
   */
  get promoted(): Primary {
    const { stage } = this.#parts.stages;
    if (stage === "done" && this.#promoted !== null) return this.#promoted;
    throw new StateError(
      "not-promoted",
      isPromoted(stage) || stage === "failover-failed"
        ? "the failover is not over: this node can't take a replica before it is"
        : "this node is a secondary: only after a failover can it take a replica of its own",
    );
  }

  /** The merge of overlays into the disks, while there is one. */
  get commit(): Commit | null {
    return this.#commit;
  }

  /** Resolves when the background part has ended, one way or the other. */
  get ended(): Promise<void> {
    return this.#ended;
  }

  /** Why the replication exports take nobody, or null. Primaries show it as their own error: "this node" would be the wrong one. */
  exportRefusal(): string | null {
    return this.#isFenced
      ? "the secondary was promoted by a failover and takes no replication writes any more: start the primary's node as its secondary (repl-secondary on its state directory), or, if the primary was promoted later, the secondary with --demote"
      : null;
  }

  /** Which promise this node can't keep because of its failover, or as a primary, or null. */
  brokenPromise(): string | null {
    if (this.#parts.stages.stage === "failover-failed") {
      const why = this.#failure === null ? "" : `: ${this.#failure.message}`;
      return `the failover has failed${why}`;
    }
    return this.#promoted?.brokenPromise() ?? null;
  }

  /**
   * Step 1. Nothing is on record yet.
   * @throws StateError if the last writes have cost the checkpoint to fail over to: there is no failover then
   */
  async fence(target: FailoverTarget): Promise<void> {
    const wasFenced = this.#isFenced;
    this.#setFenced(true);
    try {
      await this.#settleWrites(target);
    } catch (error) {
      // Whoever was cut off may come back: nothing is on record, and the node is what it was.
      this.#setFenced(wasFenced);
      throw error;
    }
  }

  async #settleWrites(target: FailoverTarget): Promise<void> {
    const { choice, group, epochs, reserve, disconnectWriters } = this.#parts;
    await disconnectWriters();
    await group.drain();
    await epochs.settled();
    // The last writes may have cost the checkpoint. Before anything is on record, the other target is still open.
    choice.refuseLostCheckpoint(target);
    // Nothing is received any more that could take the room.
    await reserve.release();
  }

  #setFenced(isFenced: boolean): void {
    this.#isFenced = isFenced;
    this.#parts.group.setFenced(isFenced);
  }

  /**
   * Steps 2 and 3, behind the fence; the others go on in the background. If it can't begin, it ends as one that failed (see begun()),
   * since it may be on record already. Never rejects.
   */
  async begin(target: FailoverTarget): Promise<void> {
    const overlays = this.#parts.group.epoch;
    if (overlays === null) throw new Error("failover without overlays");
    this.#obstacle = null;
    try {
      await this.#recordTarget(target);
      const merge = await this.#show(overlays, target);
      this.#ended = this.#finish(overlays, merge);
    } catch (error) {
      this.#obstacle = asError(error);
      this.#ended = this.#finish(overlays, () => Promise.reject(asError(error)));
    }
  }

  /**
   * What came of the last begin().
   * @throws ReplError "failover-failed", once the stage says so, if what comes before the merge could not be done or recorded
   */
  async begun(): Promise<void> {
    const obstacle = this.#obstacle;
    if (obstacle === null) return;
    await this.#ended;
    throw new ReplError(
      "failover-failed",
      `failover could not begin: ${obstacle.message}: the node is in stage failover-failed; mend that, then fail over again`,
      { cause: obstacle },
    );
  }

  /** Step 2. */
  async #recordTarget(target: FailoverTarget): Promise<void> {
    const { metadata } = this.#parts;
    // From here on this node's data has a history of its own; one, however often the failover is begun.
    const isFirst = metadata.current.stage === "running" && metadata.current.failoverTarget === null;
    const lineage = isFirst ? branch(metadata.current) : {};
    const stage = this.#hasBegun ? "failover" : "running";
    await metadata.save({ stage, failoverTarget: target, ...lineage });
  }

  /** Step 3. @returns step 4 */
  async #show(overlays: Epoch, target: FailoverTarget): Promise<() => Promise<void>> {
    const { group } = this.#parts;
    if (target === "latest") {
      // At once, for what clients write from now on must not go to an overlay that is about to be dropped.
      await group.showDisks(() => this.#becomePrimary(overlays, target));
      return () => group.flush();
    }
    // A restart must find no image of a block that has none now: the guests' changes of such a block go to the disk itself.
    await overlays.cutOff();
    const commit = await group.showCommit(async () => {
      await this.#becomePrimary(overlays, target);
      this.#commit ??= new Commit(group.devices, overlays);
      return this.#commit;
    });
    return () => commit.run();
  }

  /** The last that can keep the failover from beginning. */
  async #becomePrimary(overlays: Epoch, target: FailoverTarget): Promise<void> {
    const { group, metadata, log } = this.#parts;
    const primary = await this.#promote();
    await tellChanges(primary, metadata.current, overlays, target, this.#isResumed, log);
    // Before the first block, a guest's or a merged one: from here on the maps are all that tells of those changes.
    if (!this.#hasBegun) await metadata.save({ stage: "failover", returning: true });
    this.#hasBegun = true;
    group.setFronts(guestExportsOf(primary));
  }

  async #promote(): Promise<Primary> {
    const { directory, asPrimary, group, metadata, own, log } = this.#parts;
    // From here on they are the dirty maps of the primary that this node becomes.
    await own.close();
    this.#promoted ??= await promote(group.disks, metadata, { directory, log, ...asPrimary });
    return this.#promoted;
  }

  /** Steps 4 and 5. Never rejects: a failure is a stage. */
  async #finish(overlays: Epoch, merge: () => Promise<void>): Promise<void> {
    const { serial } = this.#parts;
    const merged = merge().then(
      () => null,
      (error: unknown) => asError(error),
    );
    this.#merging = merged;
    let failure = await merged;
    if (this.#isInterrupted) return;
    if (failure === null) {
      try {
        await serial.run(() => (this.#isInterrupted ? Promise.resolve() : this.#succeed(overlays)));
      } catch (error) {
        failure = asError(error);
      }
    }
    if (failure !== null) await serial.run(() => this.#fail(failure));
  }

  /** Step 5. */
  async #succeed(overlays: Epoch): Promise<void> {
    const { group, epochs, metadata, own, log } = this.#parts;
    // What a primary was overwriting is the disks' again.
    if (metadata.current.failoverTarget === "checkpoint") await own.nothingSaved(overlays.number);
    await group.showDisks(async () => {
      await group.flush();
      await metadata.save({ stage: "done" });
    });
    group.release();
    // Who is told of the end can still see what was merged.
    this.#end(null);
    this.#commit = null;
    // The failover is done and on record, whatever becomes of the files.
    await epochs.remove(overlays).catch((error: unknown) => {
      log.warn({ error: describeError(error) }, "overlay files could not be removed");
    });
  }

  async #fail(error: Error): Promise<void> {
    const { metadata, log } = this.#parts;
    log.error({ error: error.message }, "failover failed");
    this.#end(error);
    const target = this.#hasBegun ? {} : { failoverTarget: null };
    // What kept it from beginning may keep this from being written: a restart begins it anew then, or finds it not asked for.
    await metadata.save({ stage: "failover-failed", ...target }).catch((failure: unknown) => {
      log.error({ error: describeError(failure) }, "the failure of the failover could not be recorded");
    });
  }

  #end(failure: Error | null): void {
    const { stages, ended } = this.#parts;
    this.#failure = failure;
    if (stages.stage === "failover") {
      const failed = this.#hasBegun ? "commit-failed" : "begin-failed";
      stages.happened(failure === null ? "commit-succeeded" : failed);
    }
    ended(failure);
  }

  /** After a restart, in a stage from which replication doesn't go on. */
  refuseWriters(): void {
    this.#setFenced(true);
  }

  /** After a restart: goes on where it was. @param overlays null: it was done */
  async resume(overlays: Epoch | null, target: FailoverTarget | null): Promise<void> {
    const { group, stages } = this.#parts;
    this.#isResumed = true;
    if (overlays === null) {
      await group.showDisks(async () => {
        group.setFronts(guestExportsOf(await this.#promote()));
      });
      return;
    }
    group.adopt(overlays);
    if (stages.stage === "failover") await this.begin(target ?? "checkpoint");
    else await this.#show(overlays, target ?? "checkpoint");
  }

  /** The node stops: a merge is interrupted, which a restart begins anew, and what the node is as a primary is closed. */
  async close(): Promise<void> {
    await this.#promoted?.close();
    this.#isInterrupted = true;
    this.#commit?.interrupt();
    await this.#merging;
  }
}
