/**
 * Failover of a secondary: what it would cost, and how its view becomes the disk while its clients go on.
 *
 * What is on record, in this order:
 * - stage `running` with a target: it was asked for. A restart begins it anew.
 * - stage `failover`: the dirty maps are whole, and from now on the disks change. A restart finishes it, to this target.
 * - stage `done`: the last block is durable.
 * One that fails is on record as `failover-failed`; without a target as long as it has changed nothing, so that a restart neither
 * begins it nor is bound to its target. If that can't be recorded, the record before counts: a restart finds the failover not asked for,
 * or begins it anew.
 *
 * Invariant: until stage `done` is on record the overlays are complete, so that a restart can begin the merge anew.
 */
import type { Logger } from "pino";
import { asError, describeError, ReplError } from "../errors.js";
import type { SecondaryMetadata } from "../meta/metadata.js";
import { Commit } from "./commit.js";
import type { DiskGroup } from "./disk-group.js";
import type { Epoch } from "./epoch.js";
import type { EpochChanger } from "./epoch-changer.js";
import { branch } from "./generation.js";
import type { MetadataKeeper } from "./metadata-keeper.js";
import type { Primary } from "./primary.js";
import { guestExportsOf } from "./promotion.js";
import type { Serial } from "./serial.js";
import { type FailoverTarget, hasChangedDisks } from "./stage.js";

/** What is lost by a failover to `to`. */
export interface FailoverOption {
  readonly to: FailoverTarget;
  readonly lost: { readonly bytes: number; readonly seconds: number };
  /** Why it can't be done; null if it can. */
  readonly refusal: string | null;
  /** What to know before choosing it; null if there is nothing. */
  readonly warning: string | null;
}

/**
 * @param pendingBytes received, and not in the overlays yet
 * @param gap why the replica may have holes, or null
 */
export function failoverOptions(
  epoch: Epoch,
  pendingBytes: number,
  secondsSinceCheckpoint: number,
  gap: string | null,
): FailoverOption[] {
  let received = pendingBytes;
  let speculative = 0;
  for (const { hidden, active } of epoch.overlays) {
    received += hidden.mappedBytes;
    speculative += active.mappedBytes;
  }
  return [
    {
      to: "checkpoint",
      lost: { bytes: received, seconds: received > 0 ? secondsSinceCheckpoint : 0 },
      refusal: epoch.lost === null ? null : `the last checkpoint is lost: ${epoch.lost}`,
      warning: null,
    },
    {
      to: "latest",
      lost: { bytes: speculative, seconds: speculative > 0 ? secondsSinceCheckpoint : 0 },
      refusal: null,
      warning: gap === null ? null : `what was received may have holes: ${gap}`,
    },
  ];
}

export interface FailoverParts {
  readonly group: DiskGroup;
  readonly epochs: EpochChanger;
  readonly metadata: MetadataKeeper<SecondaryMetadata>;
  /** Keeps the end of the failover apart from other operations. */
  readonly serial: Serial;
  /**
   * Makes the primary that the node becomes, at the instant at which nothing is written to it, with dirty maps that tell what the
   * failover changes. Again is no harm.
   */
  readonly promote: (overlays: Epoch, target: FailoverTarget) => Promise<Primary>;
  /** The disks are whole: enter stage done. Or the merge failed: enter failover-failed. */
  readonly onEnd: (failure: Error | null) => void;
  readonly log: Logger;
}

export class Failover {
  readonly #parts: FailoverParts;
  #commit: Commit | null = null;
  #ended: Promise<void> = Promise.resolve();
  #merging: Promise<unknown> = Promise.resolve();
  #isInterrupted = false;
  /** What kept the failover from beginning the last time, or null. */
  #obstacle: Error | null = null;
  /** Whether it has changed something, or may have in an earlier life: it is on record as begun. */
  #hasBegun: boolean;

  constructor(parts: FailoverParts) {
    this.#parts = parts;
    this.#hasBegun = hasChangedDisks(parts.metadata.current);
  }

  /** Whether the disks may have changed: the target stays what it is. */
  get hasBegun(): boolean {
    return this.#hasBegun;
  }

  /** The merge of overlays into the disks, while there is one. */
  get commit(): Commit | null {
    return this.#commit;
  }

  /** Resolves when the background part has ended, one way or the other. */
  get ended(): Promise<void> {
    return this.#ended;
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

  /**
   * Begins the failover, or begins it again after a failure or a restart; the replication exports are closed. If it can't begin, it ends
   * as one that failed (see begun()), since it may be on record already. Never rejects.
   */
  async begin(overlays: Epoch, target: FailoverTarget): Promise<void> {
    this.#obstacle = null;
    try {
      await this.#begin(overlays, target);
    } catch (error) {
      this.#obstacle = asError(error);
      this.#ended = this.#finish(overlays, () => Promise.reject(asError(error)));
    }
  }

  async #begin(overlays: Epoch, target: FailoverTarget): Promise<void> {
    const { group, metadata } = this.#parts;
    // From here on this node's data has a history of its own; one, however often the failover is begun.
    const isFirst = metadata.current.stage === "running" && metadata.current.failoverTarget === null;
    const lineage = isFirst ? branch(metadata.current) : {};
    await metadata.save({
      stage: this.#hasBegun ? "failover" : "running",
      failoverTarget: target,
      ...lineage,
    });
    if (target === "latest") {
      // At once, for what clients write from now on must not go to an overlay that is about to be dropped.
      await this.showLatest(overlays);
      this.#ended = this.#finish(overlays, () => group.flush());
      return;
    }
    const commit = await this.showCommit(overlays);
    this.#ended = this.#finish(overlays, () => commit.run());
  }

  /** Stops a merge before its end; a restart begins it anew. Resolves when nothing of it is under way. */
  async interrupt(): Promise<void> {
    this.#isInterrupted = true;
    this.#commit?.interrupt();
    await this.#merging;
  }

  /** To the checkpoint: the views go on through overlays whose merge is still to come. */
  showCommit(overlays: Epoch): Promise<Commit> {
    const { group } = this.#parts;
    return group.showCommit(async () => {
      await this.#promote(overlays, "checkpoint");
      this.#commit ??= new Commit(group.devices, overlays);
      return this.#commit;
    });
  }

  /** To the latest: the views are the disks. */
  showLatest(overlays: Epoch): Promise<void> {
    return this.#parts.group.showDisks(() => this.#promote(overlays, "latest"));
  }

  /** The last step that can keep the failover from beginning. Nothing is written to the views meanwhile. */
  async #promote(overlays: Epoch, target: FailoverTarget): Promise<void> {
    const { group, metadata, promote } = this.#parts;
    const primary = await promote(overlays, target);
    // Before the first block, a guest's or a merged one: from here on the maps are all that tells of those changes.
    if (!this.#hasBegun) await metadata.save({ stage: "failover", returning: true });
    this.#hasBegun = true;
    group.setFronts(guestExportsOf(primary));
  }

  /** Never rejects: a failure is a stage. */
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

  async #succeed(overlays: Epoch): Promise<void> {
    const { group, epochs, metadata, onEnd, log } = this.#parts;
    await group.showDisks(async () => {
      await group.flush();
      await metadata.save({ stage: "done" });
    });
    group.release();
    // Who is told of the end can still see what was merged.
    onEnd(null);
    this.#commit = null;
    // The failover is done and on record, whatever becomes of the files: a start removes what is left of them.
    await epochs.remove(overlays).catch((error: unknown) => {
      log.warn({ error: describeError(error) }, "overlay files could not be removed");
    });
  }

  async #fail(error: Error): Promise<void> {
    const { metadata, onEnd, log } = this.#parts;
    onEnd(error);
    const target = this.#hasBegun ? {} : { failoverTarget: null };
    // What kept it from beginning may keep this from being written: a restart begins it anew then, or finds it not asked for.
    await metadata.save({ stage: "failover-failed", ...target }).catch((failure: unknown) => {
      log.error({ error: describeError(failure) }, "the failure of the failover could not be recorded");
    });
  }
}
