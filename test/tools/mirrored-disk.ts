/** A primary's disk with a replica, without a link between them: both are in memory, and can be made to fail. */
import { pino } from "pino";

import { checked } from "../../src/block/checked.js";
import type { DirtyMap } from "../../src/block/dirty-map.js";
import { Gate } from "../../src/block/gate.js";
import { MemoryBudget } from "../../src/block/memory-budget.js";
import { PrimaryDisk, watchedDisk } from "../../src/replication/primary/disk.js";
import type { AckMode } from "../../src/status.js";
import { FailingDevice } from "./failing-device.js";
import { MemoryDevice, type MemoryDeviceOptions } from "./memory-device.js";

export interface MirroredDiskOptions extends MemoryDeviceOptions {
  readonly name?: string;
  readonly ackMode?: AckMode;
}

export class MirroredDisk {
  readonly localMemory: MemoryDevice;
  readonly replicaMemory: MemoryDevice;
  readonly local: FailingDevice;
  readonly replica: FailingDevice;
  readonly disk: PrimaryDisk;

  /** @param dirty of a disk of this size */
  constructor(dirty: DirtyMap, options: MirroredDiskOptions = {}) {
    const { name = "disk0", ackMode = "memsync" } = options;
    this.localMemory = new MemoryDevice(dirty.sizeBytes, options);
    this.replicaMemory = new MemoryDevice(dirty.sizeBytes, options);
    this.local = new FailingDevice(checked(this.localMemory));
    this.replica = new FailingDevice(checked(this.replicaMemory));
    this.disk = new PrimaryDisk(
      watchedDisk({ name, path: `${name}.img`, device: this.local }, pino({ level: "silent" })),
      {
        ackMode,
        dirty,
        gate: new Gate(),
        hold: null,
        memory: new MemoryBudget(1024 * 1024),
        onForwardFailure: () => Promise.resolve(),
        onAlone: () => Promise.resolve(),
        onCongested: () => undefined,
      },
    );
    this.disk.setReplicated(true);
    this.disk.setReplica(this.replica);
  }
}
