/** The merge of the overlays into the disks, of all disks of a node. */
import type { BlockDevice } from "../../block/device.js";
import { CommitDevice } from "../../block/overlay/commit.js";
import type { Epoch } from "./epoch.js";

/** One disk after the other. */
export class Commit {
  readonly devices: readonly CommitDevice[];
  #doneBytes = 0;
  readonly #startMs = performance.now();

  constructor(disks: readonly BlockDevice[], epoch: Epoch) {
    this.devices = disks.map((disk, index) => {
      const overlays = epoch.overlays[index];
      if (overlays === undefined) throw new RangeError(`no overlays for disk ${index}`);
      return new CommitDevice(disk, overlays.hidden, overlays.active);
    });
  }

  /** Makes run() reject soon, wherever it is. */
  interrupt(): void {
    for (const device of this.devices) device.interrupt();
  }

  get totalBytes(): number {
    return this.devices.reduce((sum, device) => sum + device.totalBytes, 0);
  }

  get elapsedSeconds(): number {
    return (performance.now() - this.#startMs) / 1000;
  }

  get doneBytes(): number {
    return this.#doneBytes;
  }

  /** @throws DeviceError if a disk fails; may be run again then */
  async run(): Promise<void> {
    this.#doneBytes = 0;
    let before = 0;
    for (const device of this.devices) {
      await device.run((done) => {
        this.#doneBytes = before + done;
      });
      before += device.totalBytes;
    }
  }
}
