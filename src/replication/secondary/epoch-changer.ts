/**
 * Begins and ends epochs of a secondary, and makes them durable.
 *
 * Invariant: metadata.json names the epoch whose overlays count. It moves on only after everything received before
 * that epoch is durable on the disks; until then the older epoch's files are kept.
 */
import { Deferred } from "../../deferred.js";
import { asError, describeError, DeviceError, errnoOf, StateError } from "../../errors.js";
import type { SecondaryMetadata } from "../../meta/metadata.js";
import type { DiskGroup } from "./disk-group.js";
import type { Epoch, EpochStore } from "./epoch.js";
import type { MetadataKeeper } from "../metadata-keeper.js";

/** A value of SecondaryMetadata.mixed. */
const STOPPED = "replication was stopped without a failover";

export interface EpochEvents {
  durable(epoch: number): void;
  /** The epoch is not durable, and its predecessor stays on record; what to do about it is in the error. */
  notDurable(epoch: number, error: Error): void;
  /** A disk failed to make durable what it held, which is why an epoch is not. */
  flushFailed(error: Error): void;
  /** Files of earlier epochs are still there: the next one removes them. */
  leftOver(error: Error): void;
}

export class EpochChanger {
  readonly #group: DiskGroup;
  readonly #store: EpochStore;
  readonly #metadata: MetadataKeeper<SecondaryMetadata>;
  readonly #events: EpochEvents;
  #durable = settledDeferred();
  /** A disk's flush that was to make an epoch durable has failed: what it has lost nobody knows. */
  #flushFailure: Error | null = null;
  /** An epoch whose data is durable while its record could not be written, and why; null: there is none. */
  #unrecorded: { readonly number: number; readonly error: Error } | null = null;

  constructor(
    group: DiskGroup,
    store: EpochStore,
    metadata: MetadataKeeper<SecondaryMetadata>,
    events: EpochEvents,
  ) {
    this.#group = group;
    this.#store = store;
    this.#metadata = metadata;
    this.#events = events;
  }

  /** Number of the epoch that writes belong to. */
  get number(): number {
    return this.#group.epoch?.number ?? this.#metadata.current.epoch;
  }

  /** Resolves when the epoch is durable; rejects if it can't become so. */
  get durable(): Promise<void> {
    return this.#durable.promise;
  }

  /** Why the last checkpoint could not be made durable, or null. */
  get failure(): string | null {
    const error = this.#flushFailure ?? this.#recordFailure;
    return error === null ? null : `the last checkpoint could not be made durable: ${error.message}`;
  }

  /** Why no checkpoint can be taken any more in this life of the node, or null; a record that failed may still be written. */
  get obstacle(): string | null {
    return this.#flushFailure === null ? null : this.failure;
  }

  get #recordFailure(): Error | null {
    // Whatever else was written later has put the epoch on record as well.
    const isRecorded = this.#metadata.recorded.epoch === this.#unrecorded?.number;
    return isRecorded ? null : (this.#unrecorded?.error ?? null);
  }

  /** Resolves when nothing is being made durable any more, successfully or not. */
  async settled(): Promise<void> {
    await Promise.allSettled([this.durable]);
  }

  /** Makes the files of an epoch that may begin next. */
  async prepare(number: number): Promise<void> {
    await this.#settle();
    if (number > this.number) await this.#store.prepare(number);
  }

  /**
   * Begins an epoch; resolves when every disk is in it. The first one on record is durable by then, later ones are so later.
   * @param lineage what else changes in the metadata with the epoch, in the same step
   * @throws StateError or DeviceError if it can't begin: nothing has changed then
   */
  async begin(number: number, lineage: Partial<SecondaryMetadata>): Promise<void> {
    // A start has nothing to go back to before it is durable, even one after another that failed; a checkpoint has the one before.
    const isStart = this.#metadata.recorded.stage !== "running";
    await this.#settle();
    if (number <= this.number) {
      throw new StateError("old-epoch", `epoch ${number} is over: the secondary is in epoch ${this.number}`);
    }
    const durable = new Deferred<void>();
    const inForce = async (): Promise<void> => {
      try {
        await durable.promise;
      } catch (error) {
        // What was written later, by a failover, has put it on record all the same.
        if (this.#metadata.recorded.epoch !== number) throw error;
      }
    };
    const epoch = await this.#store.create(number, inForce);
    const { mixed = null } = lineage;
    if (mixed !== null) epoch.distrust(mixed);
    let begun: { at: string; old: Epoch | null };
    try {
      begun = await this.#group.begin(epoch);
    } catch (error) {
      await epoch.close();
      throw error;
    }
    this.#durable = durable;
    void this.#makeDurable(number, { ...begun, epoch }, lineage).then(
      () => {
        durable.resolve();
        this.#events.durable(number);
      },
      (error: unknown) => {
        durable.reject(asError(error));
        this.#events.notDurable(number, asError(error));
      },
    );
    if (!isStart) return;
    try {
      await durable.promise;
    } catch (error) {
      await this.#giveUpStart();
      throw error;
    }
  }

  /** Stops copying; everything received stays. */
  async end(): Promise<void> {
    await this.settled();
    const { number } = this;
    // While it can still fail without a trace.
    await this.#group.flush();
    const old = await this.#giveUpCheckpoint();
    await this.#metadata.save({ stage: "none", epoch: number, gap: null, cutOff: null });
    // A disk whose flush has failed goes on failing; anything else may have been mended.
    this.#flushFailure = null;
    this.#unrecorded = null;
    await this.remove(old);
  }

  /** Closes overlays that don't count any more, and removes all overlay files. */
  async remove(old: Epoch | null): Promise<void> {
    await old?.close();
    await this.#store.removeAllBut(null);
  }

  /**
   * Puts on record that the checkpoint is given up, before the first write that leaves no before-image: after a crash in between,
   * the node would take that write for a part of what the epoch began on.
   */
  async #giveUpCheckpoint(): Promise<Epoch | null> {
    try {
      await this.#metadata.save({ mixed: this.#metadata.current.mixed ?? STOPPED, checkpointAt: null });
      return await this.#group.drop();
    } catch (error) {
      // The record may have been written all the same, and then counts after a restart.
      this.#group.epoch?.distrust(STOPPED);
      throw error;
    }
  }

  /** Drops the overlays of a start that failed, unless stage `running` may be on record: then before-images are kept on, until a start succeeds. */
  async #giveUpStart(): Promise<void> {
    if (this.#metadata.current.stage === "running") return;
    const dropped = await this.#group.drop();
    await dropped?.close();
  }

  /**
   * Resolves when nothing is being made durable any more and the epoch in force is on record. So there are never more than two epochs
   * whose before-images fill the state directory, and guests don't wait for a checkpoint that won't count.
   * @throws DeviceError if it can't be recorded
   */
  async #settle(): Promise<void> {
    await this.settled();
    if (this.#unrecorded === null) return;
    const { number } = this.#unrecorded;
    await this.#record(number, {});
    this.#events.durable(number);
  }

  async #makeDurable(
    number: number,
    begun: { at: string; epoch: Epoch; old: Epoch | null },
    lineage: Partial<SecondaryMetadata>,
  ): Promise<void> {
    // Its files are what a crash goes back to; nothing reads or writes them before.
    await begun.old?.close().catch(this.#leftOver);
    try {
      await this.#group.flush();
    } catch (error) {
      // What the checkpoint is of may be gone from the disks by now.
      begun.epoch.distrust(
        "a disk failed to make durable what it held; started anew, the node goes back to the checkpoint before",
      );
      this.#flushFailure = asError(error);
      this.#events.flushFailed(this.#flushFailure);
      throw notDurable(
        number,
        error,
        "mend the disk, then start the node anew: it goes back to the checkpoint before",
      );
    }
    const checkpointAt = (lineage.mixed ?? null) === null ? begun.at : null;
    await this.#record(number, { ...lineage, stage: "running", epoch: number, checkpointAt });
  }

  /** Everything before the epoch is durable. @throws DeviceError if that could not be recorded: it can be tried again */
  async #record(number: number, change: Partial<SecondaryMetadata>): Promise<void> {
    try {
      await this.#metadata.save(change);
    } catch (error) {
      this.#unrecorded = { number, error: asError(error) };
      throw notDurable(
        number,
        error,
        "mend that, then take another checkpoint; until then a crash goes back to the one before",
      );
    }
    this.#unrecorded = null;
    await this.#store.removeAllBut(number).catch(this.#leftOver);
  }

  readonly #leftOver = (error: unknown): void => {
    this.#events.leftOver(asError(error));
  };
}

function notDurable(epoch: number, error: unknown, remedy: string): DeviceError {
  const reason = `epoch ${epoch} is not durable: ${describeError(error)}: ${remedy}`;
  return new DeviceError(errnoOf(error), reason, { cause: error });
}

function settledDeferred(): Deferred<void> {
  const deferred = new Deferred<void>();
  deferred.resolve();
  return deferred;
}
