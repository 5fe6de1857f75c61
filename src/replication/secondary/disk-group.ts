/**
 * All disks of a secondary as one: what they copy and what their views show changes for all at one instant.
 * This is the mechanics; checkpoints.ts and failover.ts decide when.
 *
 * Invariants: a change happens with both gates shut and every acknowledged write on its disk, so that each request
 * falls before or after it; either every disk has the overlays of `epoch`, or none has any. A failure that may have cost something
 * acknowledged is forgotten only when whoever wrote is cut off, and `memory` has another name from then on.
 */
import { randomUUID } from "node:crypto";
import type { Clock } from "../../clock.js";
import type { BlockDevice } from "../../block/device.js";
import type { CopyBeforeWriteOptions } from "../../block/filters/copy-before-write.js";
import type { RangeFailure } from "../../block/failure.js";
import { Gate } from "../../block/gate.js";
import { MemoryBudget } from "../../block/memory-budget.js";
import { StateError } from "../../errors.js";
import type { Epoch } from "./epoch.js";
import type { Commit } from "./commit.js";
import type { NamedDisk } from "../named-disk.js";
import { SecondaryDisk } from "./disk.js";

/** Memory of a node for writes that were acknowledged and are not on the disk yet; before-images take as much again, twice. */
const WRITE_BEHIND_BYTES = 16 * 1024 * 1024;

export interface DiskGroupEvents {
  /** As CopyBeforeWriteOptions.onImageError. */
  imageLost(disk: string, failure: RangeFailure): Promise<void>;
  ioError(disk: string, failure: Parameters<CopyBeforeWriteOptions["onError"]>[0]): void;
  /** Resolves when nobody who wrote until now is connected. */
  disconnectWriters(): Promise<void>;
}

export class DiskGroup {
  readonly disks: readonly SecondaryDisk[];
  readonly #gates = { replication: new Gate(), view: new Gate() };
  #epoch: Epoch | null = null;
  /** When the epoch began, by the clock; null: in an earlier life of the node. */
  #begunMs: number | null = null;
  #memory = randomUUID();
  readonly #clock: Clock;
  readonly #events: DiskGroupEvents;

  constructor(disks: readonly NamedDisk[], clock: Clock, events: DiskGroupEvents) {
    const memory = new MemoryBudget(WRITE_BEHIND_BYTES);
    this.#clock = clock;
    this.#events = events;
    this.disks = disks.map(
      (disk) =>
        new SecondaryDisk(disk, this.#gates, {
          memory,
          clock,
          onImageError: (failure) => events.imageLost(disk.name, failure),
          onError: (failure) => {
            events.ioError(disk.name, failure);
          },
        }),
    );
  }

  /** The overlays in use, if replication has been started. */
  get epoch(): Epoch | null {
    return this.#epoch;
  }

  /** The bare disks. */
  get devices(): BlockDevice[] {
    return this.disks.map(({ disk }) => disk);
  }

  /** Bytes acknowledged to the primary that are not on the disks yet. */
  get pendingBytes(): number {
    return this.disks.reduce((sum, { copyBeforeWrite }) => sum + copyBeforeWrite.pendingBytes, 0);
  }

  /** What stopped a disk from acknowledging, or null. */
  get failure(): string | null {
    for (const { name, copyBeforeWrite } of this.disks) {
      if (copyBeforeWrite.failure !== null) return `disk ${name}: ${copyBeforeWrite.failure.message}`;
    }
    return null;
  }

  /** Names what the disks have in memory; another name after anything that was acknowledged may have been lost. */
  get memory(): string {
    return this.#memory;
  }

  /**
   * Begins an epoch: every disk copies into, and every view shows, overlays that are empty.
   * @returns when, and the overlays that were in use until then
   * @throws StateError if an acknowledged write was lost: then nothing has changed
   */
  async begin(epoch: Epoch): Promise<{ at: string; old: Epoch | null }> {
    const old = this.#epoch;
    const at = await this.#atOneInstant(() => {
      if (old === null) this.#forgive();
      else if (this.failure !== null)
        throw new StateError("checkpoint-refused", `checkpoint refused: ${this.failure}`);
      this.resume(epoch);
      this.#begunMs = this.#clock.nowMs();
      return new Date().toISOString();
    });
    return { at, old };
  }

  /** How long ago the epoch began, whatever became of the wall clock since; null: in an earlier life of the node. */
  get epochSeconds(): number | null {
    return this.#begunMs === null ? null : (this.#clock.nowMs() - this.#begunMs) / 1000;
  }

  /** As begin(), with overlays that recovery brought back, before anything is served. */
  resume(epoch: Epoch): void {
    this.#epoch = epoch;
    for (const [index, disk] of this.disks.entries()) {
      const overlays = epoch.overlays[index];
      if (overlays === undefined) throw new RangeError(`no overlays for disk ${disk.name}`);
      disk.copyBeforeWrite.setOverlay(overlays.hidden);
      disk.setView(overlays.active);
    }
  }

  /** Keeps overlays that recovery brought back for a commit, without showing them. */
  adopt(epoch: Epoch): void {
    this.#epoch = epoch;
  }

  /** Ends copying; the views fail from now on. @returns the overlays that were in use */
  async drop(): Promise<Epoch | null> {
    const old = this.#epoch;
    await this.#atOneInstant(() => {
      for (const disk of this.disks) {
        disk.copyBeforeWrite.setOverlay(null);
        disk.setView(null);
      }
      this.#forgive();
      this.#epoch = null;
    });
    return old;
  }

  /**
   * The views go on through a commit.
   * @param makeCommit called at the instant: what a client was writing until then is in the overlays only then
   */
  showCommit(makeCommit: () => Promise<Commit>): Promise<Commit> {
    return this.#atOneInstant(async () => {
      const commit = await makeCommit();
      for (const [index, disk] of this.disks.entries()) disk.setView(commit.devices[index] ?? null);
      return commit;
    });
  }

  /** The views are the disks, once `record` has resolved; the overlays are kept until release(). */
  showDisks(record: () => Promise<void>): Promise<void> {
    return this.#atOneInstant(async () => {
      await record();
      for (const disk of this.disks) disk.setView(disk.disk);
    });
  }

  /** The views' requests go through these devices from now on, one for each disk. Called at an instant of the above. */
  setFronts(devices: readonly BlockDevice[]): void {
    for (const [index, device] of devices.entries()) this.disks[index]?.setFront(device);
  }

  /** Forgets overlays that nothing shows or copies into any more. */
  release(): void {
    this.#epoch = null;
  }

  /** Whether no replication write is taken. */
  setFenced(isFenced: boolean): void {
    for (const { copyBeforeWrite } of this.disks) copyBeforeWrite.setFenced(isFenced);
  }

  /** To be called only when what was lost will be sent again, or was given up. */
  forgetFailures(): void {
    if (this.#mayHaveLost) this.#memory = randomUUID();
    for (const { copyBeforeWrite } of this.disks) copyBeforeWrite.reset();
  }

  /**
   * Forgets failures, but cuts the writers off first: a primary learns of a loss by its next handshake; without one, it would take the
   * next flush that succeeds for one that covers what was lost.
   */
  #forgive(): void {
    if (!this.#mayHaveLost) return;
    void this.#events.disconnectWriters().then(() => {
      this.forgetFailures();
    });
  }

  get #mayHaveLost(): boolean {
    return this.disks.some(({ copyBeforeWrite }) => copyBeforeWrite.mayHaveLost);
  }

  /** Resolves when every acknowledged write is on its disk, or has failed. */
  async drain(): Promise<void> {
    for (const { copyBeforeWrite } of this.disks) await copyBeforeWrite.drain();
  }

  async flush(): Promise<void> {
    for (const { copyBeforeWrite } of this.disks) await copyBeforeWrite.makeDurable();
  }

  async #atOneInstant<T>(change: () => T | Promise<T>): Promise<T> {
    const { replication, view } = this.#gates;
    await Promise.all([replication.shut(), view.shut()]);
    try {
      await this.drain();
      return await change();
    } finally {
      replication.reopen();
      view.reopen();
    }
  }
}
