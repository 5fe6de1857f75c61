/**
 * `--grow`: disks that are larger from this start on.
 *
 * In this order, so that a crash between two steps leaves what the same start goes on with:
 * 1. metadata.json no longer tells when the file was changed last, for it is about to be;
 * 2. the file is made larger, as it is opened; a device, or the export of another server, has been by somebody else;
 * 3. metadata.json has the new size, and the time again: from here on the disk is that large.
 * Its dirty map follows when it is opened (meta/dirty-map-growth.ts).
 *
 * Invariant: a start that is refused leaves the time of each file on record, so that what somebody else writes to it later is noticed.
 */
import type { Logger } from "pino";
import type { DiskConfig, GrowthConfig } from "../config/fields.js";
import { ConfigError, MetadataError } from "../errors.js";
import type { FileIdentity } from "../meta/disk-identity.js";
import { type DiskIdentity, metadataPath, type NodeMetadata, writeMetadata } from "../meta/metadata.js";
import type { StateDirectory } from "../meta/state-directory.js";
import type { NamedDisk } from "../replication/named-disk.js";

/** A disk that is smaller on record than it is to be. */
export interface Growing {
  readonly path: string;
  readonly fromBytes: number;
  readonly toBytes: number;
}

export interface GrowthOptions {
  readonly directory: StateDirectory;
  /** What is on record; null: nothing, and no disk grows. */
  readonly known: NodeMetadata | null;
  readonly disks: readonly DiskConfig[];
  readonly growth: readonly GrowthConfig[];
  /** As IdentifiableDisk has it, of a path. */
  readonly identify: (path: string) => Promise<FileIdentity | null>;
}

export class DiskGrowth {
  readonly #options: GrowthOptions;
  readonly #growing = new Map<string, Growing>();
  /** Disks whose time was taken off the record, which nobody but this node changes meanwhile. */
  readonly #untimed = new Set<string>();

  /** A disk that is as large, or larger, on record has grown before: nothing is done about it. */
  constructor(options: GrowthOptions) {
    this.#options = options;
    for (const { name, sizeBytes } of options.growth) {
      const onRecord = options.known?.disks.find((disk) => disk.name === name);
      const disk = options.disks.find((given) => given.name === name);
      if (disk === undefined || onRecord === undefined || onRecord.sizeBytes >= sizeBytes) continue;
      this.#growing.set(name, { path: disk.path, fromBytes: onRecord.sizeBytes, toBytes: sizeBytes });
    }
  }

  /** Undefined: the disk stays as large as it is. */
  of(name: string): Growing | undefined {
    return this.#growing.get(name);
  }

  /** The first step. @throws MetadataError if a disk is another file: it is not this node's to be made larger */
  async announce(): Promise<void> {
    const { directory, known } = this.#options;
    if (known === null || this.#growing.size === 0) return;
    for (const { name, inode, modifiedNs } of known.disks) {
      const file = await this.#identify(name);
      if (file === null) continue;
      if (inode !== null && file.inode !== inode) {
        throw new MetadataError(
          "foreign-disk",
          `--grow: disk ${name}: ${this.of(name)?.path ?? ""} is another file than the one of ${metadataPath(directory)}: put that back`,
        );
      }
      // One that somebody else has changed stays noticed: its content may not be what the other node has.
      if (file.modifiedNs === modifiedNs) this.#untimed.add(name);
    }
    await this.#write(known, (disk) => (this.#untimed.has(disk.name) ? { ...disk, modifiedNs: null } : disk));
  }

  /** The last step, with the disks open. @throws ConfigError if one is not as large as it is to be */
  async record(opened: readonly NamedDisk[], log: Logger): Promise<void> {
    const { known } = this.#options;
    if (known === null || this.#growing.size === 0) return;
    for (const { name, path, device } of opened) {
      const { sizeBytes } = device.info;
      const { fromBytes, toBytes } = this.of(name) ?? { fromBytes: sizeBytes, toBytes: sizeBytes };
      if (sizeBytes === toBytes) continue;
      const remedy =
        sizeBytes === fromBytes
          ? "make the device, or its server's disk, that large first"
          : `give --grow ${name}=${sizeBytes}`;
      throw new ConfigError(
        "disk-size",
        `--grow: disk ${name}: ${path} has ${sizeBytes} bytes, not ${toBytes}: ${remedy}`,
      );
    }
    const times = await this.#times(opened);
    await this.#write(known, (disk) => ({
      ...disk,
      sizeBytes: this.of(disk.name)?.toBytes ?? disk.sizeBytes,
      modifiedNs: times.get(disk.name) ?? disk.modifiedNs,
    }));
    this.#untimed.clear();
    for (const [disk, { fromBytes, toBytes }] of this.#growing)
      log.info({ disk, fromBytes, toBytes }, "disk grown");
  }

  /**
   * The start is refused before the last step is done: its sizes stay on record, and its times get there again.
   * @param opened while they are open nobody else changes them; of another disk the time before is put back
   */
  async retract(opened: readonly NamedDisk[]): Promise<void> {
    const { known } = this.#options;
    if (known === null || this.#untimed.size === 0) return;
    const times = await this.#times(opened);
    await this.#write(known, (disk) => ({ ...disk, modifiedNs: times.get(disk.name) ?? disk.modifiedNs }));
  }

  /** When the files that were opened, and whose time is not on record, were changed last: by this node. */
  async #times(opened: readonly NamedDisk[]): Promise<ReadonlyMap<string, string>> {
    const times = new Map<string, string>();
    for (const { name } of opened) {
      const file = this.#untimed.has(name) ? await this.#identify(name) : null;
      if (file !== null) times.set(name, file.modifiedNs);
    }
    return times;
  }

  /** The file of a disk that grows; null: it has none, or does not grow. */
  async #identify(name: string): Promise<FileIdentity | null> {
    const growing = this.of(name);
    return growing === undefined ? null : this.#options.identify(growing.path);
  }

  #write(metadata: NodeMetadata, change: (disk: DiskIdentity) => DiskIdentity): Promise<void> {
    return writeMetadata(this.#options.directory, { ...metadata, disks: metadata.disks.map(change) });
  }
}
