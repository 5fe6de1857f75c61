/** One disk of a primary: the stack between the guest's NBD server and the primary disk and its replica. */
import type { Logger } from "pino";
import { checked } from "../../block/checked.js";
import type { BlockDevice } from "../../block/device.js";
import type { DirtyMap } from "../../block/dirty-map.js";
import type { RequestFailure } from "../../block/failure.js";
import { gated } from "../../block/filters/gated.js";
import { held } from "../../block/filters/held.js";
import { WatchedDevice } from "../../block/filters/watched-device.js";
import { PrimaryFilter } from "../../block/filters/replication.js";
import type { Gate } from "../../block/gate.js";
import type { Hold } from "../../block/hold.js";
import type { MemoryBudget } from "../../block/memory-budget.js";
import { Mirror } from "../../block/mirror.js";
import type { AckMode, RecordedError } from "../../status.js";
import { ErrorRecord } from "../error-record.js";
import type { NamedDisk } from "../named-disk.js";

/** A disk whose failures are noticed. */
export interface WatchedDisk extends NamedDisk {
  readonly device: WatchedDevice;
  /** All of them, since the start. */
  readonly errors: ErrorRecord;
}

export interface PrimaryDiskOptions {
  readonly ackMode: AckMode;
  readonly dirty: DirtyMap;
  /** Shut while a checkpoint looks for its instant. */
  readonly gate: Gate;
  /** Where changes wait for the replica; null: they go on without it. */
  readonly hold: Hold | null;
  readonly memory: MemoryBudget;
  /** A change did not reach the replica, or may not have; the dirty map has it already. The guest waits for it. */
  readonly onForwardFailure: (disk: PrimaryDisk, failure: RequestFailure) => Promise<void>;
  /** As MirrorOptions.onCongested. */
  readonly onCongested: () => void;
  /** A change is made that no replica is told of. The guest waits for it. */
  readonly onAlone: () => Promise<void>;
}

export class PrimaryDisk {
  readonly name: string;
  readonly path: string;
  /** The primary disk itself. */
  readonly local: WatchedDevice;
  readonly dirty: DirtyMap;
  readonly mirror: Mirror;
  /** What guests see. */
  readonly guestExport: BlockDevice;
  readonly #filter: PrimaryFilter;
  readonly #errors: ErrorRecord;
  #resyncedBytes = 0;
  #foundBytes = 0;

  constructor(disk: WatchedDisk, options: PrimaryDiskOptions) {
    this.name = disk.name;
    this.path = disk.path;
    this.local = disk.device;
    this.#errors = disk.errors;
    this.dirty = options.dirty;
    this.#filter = new PrimaryFilter(disk.device.info, (failure) => {
      this.dirty.missed(failure.offset, failure.lengthBytes);
      return options.onForwardFailure(this, failure);
    });
    this.mirror = new Mirror(disk.device, {
      ackMode: options.ackMode,
      dirty: this.dirty,
      memory: options.memory,
      isReachable: () => this.#filter.isReachable,
      onCongested: options.onCongested,
      onAlone: options.onAlone,
    });
    const gate = gated(this.mirror, options.gate, "writes");
    // Above the gate and all locks: whatever mends the replica must not wait for what waits for the replica.
    this.guestExport = checked(options.hold === null ? gate : held(gate, options.hold));
  }

  /** Why the disk may lack what guests wrote to it, in this life of the node, or null. */
  get trouble(): string | null {
    const { failure } = this.local;
    return failure === null
      ? null
      : `disk ${this.name} may lack what was written, a flush of it has failed: ${failure.message}: fail over to the replica, or start this node anew`;
  }

  /** The first error of the disk itself since the start, and how many there were; null: none. */
  get error(): RecordedError | null {
    return this.#errors.get();
  }

  /** Changes and bytes that the replica has acknowledged. */
  get forwarded(): { readonly writes: number; readonly bytes: number } {
    return this.#filter.forwarded;
  }

  /** Content that resyncs have sent to replicas, or found there; holes are not. */
  get resyncedBytes(): number {
    return this.#resyncedBytes;
  }

  /** What of that was found there, and not sent. */
  get foundBytes(): number {
    return this.#foundBytes;
  }

  /** A resync has sent so much. */
  resynced(lengthBytes: number): void {
    this.#resyncedBytes += lengthBytes;
  }

  /** A resync has found so much on the replica. */
  found(lengthBytes: number): void {
    this.#resyncedBytes += lengthBytes;
    this.#foundBytes += lengthBytes;
  }

  /** Puts the replication filter beside the primary disk, or takes it away. */
  setReplicated(isReplicated: boolean): void {
    this.#filter.setStarted(isReplicated);
    this.mirror.setReplica(isReplicated ? this.#filter : null);
  }

  /**
   * Where changes are forwarded to; null while the replica can't be reached.
   * @param hasKept it has all that it acknowledged before the last link was lost
   */
  setReplica(replica: BlockDevice | null, hasKept = false): void {
    this.#filter.setReplica(replica);
    if (replica === null) this.dirty.linkLost();
    else this.dirty.linkMade(hasKept);
  }
}

/** The disk's failures are recorded, and the first is logged: a guest hears of them, an operator does not. */
export function watchedDisk(disk: NamedDisk, log: Logger): WatchedDisk {
  const { name, device } = disk;
  const errors = new ErrorRecord();
  const watched = new WatchedDevice(device, {
    failed: (failure) => {
      if (!errors.add(name, failure)) return;
      log.error({ disk: name, ...failure, error: failure.error.message }, "I/O error of the disk");
    },
    flushFailed: (error) => {
      log.error({ disk: name, error: error.message }, "flush failed: the disk may lack what was written");
    },
  });
  return { ...disk, device: watched, errors };
}

/** A primary's disks, which share everything but their maps. */
export function primaryDisks(
  disks: readonly WatchedDisk[],
  maps: readonly DirtyMap[],
  options: Omit<PrimaryDiskOptions, "dirty">,
): PrimaryDisk[] {
  return disks.map((disk, index) => {
    const dirty = maps[index];
    if (dirty === undefined) throw new RangeError(`no dirty map for disk ${disk.name}`);
    return new PrimaryDisk(disk, { ...options, dirty });
  });
}

/** The first disk's trouble, or null. */
export function troubleOf(disks: readonly PrimaryDisk[]): string | null {
  return disks.find(({ trouble }) => trouble !== null)?.trouble ?? null;
}

/** What the replicas of these disks lack. */
export function missedBytesOf(disks: readonly PrimaryDisk[]): number {
  return disks.reduce((sum, { dirty }) => sum + dirty.missedBytes, 0);
}
