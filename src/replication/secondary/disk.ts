/** One disk of a secondary: the stack under the replication export and the stack under the view. */
import { checked } from "../../block/checked.js";
import type { BlockDevice, DeviceInfo } from "../../block/device.js";
import { CopyBeforeWrite, type CopyBeforeWriteOptions } from "../../block/filters/copy-before-write.js";
import { gated } from "../../block/filters/gated.js";
import { held } from "../../block/filters/held.js";
import { SecondaryFilter } from "../../block/filters/replication.js";
import type { Gate } from "../../block/gate.js";
import { OnRecord } from "../../block/on-record.js";
import type { NamedDisk } from "../named-disk.js";

export class SecondaryDisk {
  readonly name: string;
  readonly path: string;
  /** The secondary disk itself. */
  readonly disk: BlockDevice;
  readonly copyBeforeWrite: CopyBeforeWrite;
  /** What the primary writes to. */
  readonly replicationExport: BlockDevice;
  /** Who writes there has to be on record first. */
  readonly writer = new OnRecord();
  /** What clients of the view see; the same device for the whole life of the node. */
  readonly viewExport: BlockDevice;
  /** What the stage puts under the view, whole requests of any size. */
  readonly stack: BlockDevice;
  readonly #stack: SecondaryFilter;
  /** Within the view's gate: the stack, or the mirror over it once the node is promoted. */
  readonly #front: SecondaryFilter;

  constructor(disk: NamedDisk, gates: { replication: Gate; view: Gate }, options: CopyBeforeWriteOptions) {
    this.name = disk.name;
    this.path = disk.path;
    this.disk = disk.device;
    this.copyBeforeWrite = new CopyBeforeWrite(disk.device, options);
    this.replicationExport = held(
      checked(gated(this.copyBeforeWrite, gates.replication, "writes")),
      this.writer,
    );
    const { sizeBytes, blockSize, extents, rotational = false } = disk.device.info;
    const info: DeviceInfo = {
      sizeBytes,
      blockSize: { ...blockSize, minimumBytes: 1 },
      writable: true,
      trim: "native",
      zero: "native",
      fua: "native",
      extents,
      rotational,
    };
    this.#stack = new SecondaryFilter(info);
    this.stack = this.#stack;
    this.#front = new SecondaryFilter(info);
    this.#front.setTarget(this.#stack);
    this.viewExport = checked(gated(this.#front, gates.view, "all"));
  }

  /** The view's requests go through this device from now on, which lies over `stack`. The view's gate is shut. */
  setFront(device: BlockDevice): void {
    this.#front.setTarget(device);
  }

  /** What the view shows from now on; null: nothing, every request fails. The view's gate is shut. */
  setView(device: BlockDevice | null): void {
    // Overlays take whole blocks: checked() modifies parts of them, inside the gate, so that no checkpoint comes between.
    this.#stack.setTarget(device === null ? null : checked(device));
  }
}
