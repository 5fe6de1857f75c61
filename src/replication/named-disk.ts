/** A disk of either node. */
import type { BlockDevice } from "../block/device.js";
import type { IdentifiableDisk } from "../meta/disk-identity.js";

/** A disk as it was opened, by name. */
export interface NamedDisk extends IdentifiableDisk {
  readonly name: string;
  /** Path or URI, for people. */
  readonly path: string;
  readonly device: BlockDevice;
}
