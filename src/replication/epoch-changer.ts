/**
 * Begins and ends epochs of a secondary, and makes them durable.
 *
 * Invariant: metadata.json names the epoch whose overlays count. It moves on only after everything received before
 * that epoch is durable on the disks; until then the older epoch's files are kept (design, promise 9).
 */
import { Deferred } from "../deferred.js";
import { asError, StateError } from "../errors.js";
import type { SecondaryMetadata } from "../meta/metadata.js";
import type { DiskGroup } from "./disk-group.js";
import type { Epoch, EpochStore } from "./epoch.js";
import type { MetadataKeeper } from "./metadata-keeper.js";

/** Of SecondaryMetadata.mixed. */
const STOPPED = "replication was stopped without a failover";

export interface EpochEvents {
  durable(epoch: number): void;
  /** The epoch can't be made durable; its predecessor stays on record. */
  durabilityLost(error: Error): void;
  /** Files of earlier epochs are still there: the next one removes them. */
  leftOver(error: Error): void;
}

export class EpochChanger {
  readonly #group: DiskGroup;
  readonly #store: EpochStore;
  readonly #metadata: MetadataKeeper<SecondaryMetadata>;
  readonly #events: EpochEvents;
  #durable = settledDeferred();
  #failure: string | null = null;

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
    return this.#failure;
  }

  /** Resolves when nothing is being made durable any more, successfully or not. */
  async settled(): Promise<void> {
    await Promise.allSettled([this.durable]);
  }

  /** Makes the files of an epoch that may begin next. */
  async prepare(number: number): Promise<void> {
    await this.settled();
    if (number > this.number) await this.#store.prepare(number);
  }

  /**
   * Begins an epoch; resolves when every disk is in it. The first one on record is durable by then, later ones are so later.
   * @param lineage what else changes in the metadata with the epoch, in the same step
   * @throws StateError if it can't begin: nothing has changed then
   */
  async begin(number: number, lineage: Partial<SecondaryMetadata>): Promise<void> {
    await this.settled();
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
        this.#failure = `the last checkpoint could not be made durable: ${asError(error).message}`;
        durable.reject(asError(error));
        this.#events.durabilityLost(asError(error));
      },
    );
    // A start has nothing to go back to before it is durable, even one after another that failed; a checkpoint has the one before.
    if (this.#metadata.recorded.stage === "running") return;
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
    const old = await this.#giveUpCheckpoint();
    await this.#group.flush();
    await this.#metadata.save({ stage: "none", epoch: number, gap: null, cutOff: null });
    // A disk whose flush has failed goes on failing; anything else may have been mended.
    this.#failure = null;
    await this.remove(old);
  }

  /** Closes overlays that don't count any more, and removes all overlay files. */
  async remove(old: Epoch | null): Promise<void> {
    await old?.close();
    await this.#store.removeAllBut(null);
  }

  /**
   * That is on record before the first write that leaves no before-image: a node that died in between would take it for a part of what
   * the epoch began on.
   */
  async #giveUpCheckpoint(): Promise<Epoch | null> {
    try {
      await this.#metadata.save({ mixed: this.#metadata.current.mixed ?? STOPPED, checkpointAt: null });
      return await this.#group.drop();
    } catch (error) {
      // It may be on record all the same, and then counts after a restart.
      this.#group.epoch?.distrust(STOPPED);
      throw error;
    }
  }

  /** Unless it may be on record that the node runs: then before-images are kept on, until a start succeeds. */
  async #giveUpStart(): Promise<void> {
    if (this.#metadata.current.stage === "running") return;
    const dropped = await this.#group.drop();
    await dropped?.close();
  }

  async #makeDurable(
    number: number,
    begun: { at: string; epoch: Epoch; old: Epoch | null },
    lineage: Partial<SecondaryMetadata>,
  ): Promise<void> {
    try {
      await this.#group.flush();
    } catch (error) {
      // What the checkpoint is of may be gone from the disks by now.
      begun.epoch.distrust(
        "a disk failed to make durable what it held; started anew, the node goes back to the checkpoint before",
      );
      throw error;
    }
    const checkpointAt = (lineage.mixed ?? null) === null ? begun.at : null;
    await this.#metadata.save({ ...lineage, stage: "running", epoch: number, checkpointAt });
    try {
      await begun.old?.close();
      await this.#store.removeAllBut(number);
    } catch (error) {
      this.#events.leftOver(asError(error));
    }
  }
}

function settledDeferred(): Deferred<void> {
  const deferred = new Deferred<void>();
  deferred.resolve();
  return deferred;
}
