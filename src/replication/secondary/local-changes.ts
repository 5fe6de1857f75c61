/**
 * What a node changed by itself while it was a primary, and has to give up as a secondary: its dirty maps from then, as long as
 * the new primary has not resynced it.
 *
 * The map of a disk that has been made larger since stays as large as it was: what is new may differ from the new primary's, and is told
 * to that, but it is nothing that this node has changed. As a primary the node makes the map larger, and then all that is new is missed.
 */
import type { Logger } from "pino";
import { type DirtyMap, dirtyMapName } from "../../block/dirty-map.js";
import { DIRTY_BLOCK_BYTES } from "../../block/dirty-blocks.js";
import { DirtyMapFile } from "../../meta/dirty-map-file.js";
import type { StateDirectory } from "../../meta/state-directory.js";
import { type ChangesSummary, summaryOf } from "../changes-summary.js";
import { openDirtyMaps } from "../primary/keeper.js";
import type { NamedDisk } from "../named-disk.js";

/** Ranges told for each disk; closer ones are merged. A handshake's answer stays well under 1 MiB. */
const MAX_RUNS = 4096;

/** For each disk by its name: ranges of bytes. */
export type ChangedRanges = Readonly<
  Record<string, readonly (readonly [offset: number, lengthBytes: number])[]>
>;

export class LocalChanges {
  readonly #maps: ReadonlyMap<string, DirtyMap>;
  /** Of the disks, by their names. */
  readonly #sizes: ReadonlyMap<string, number>;

  private constructor(maps: ReadonlyMap<string, DirtyMap>, disks: readonly NamedDisk[]) {
    this.#maps = maps;
    this.#sizes = new Map(disks.map(({ name, device }) => [name, device.info.sizeBytes]));
  }

  /** @throws MetadataError if a map can't be trusted */
  static async open(
    directory: StateDirectory,
    disks: readonly NamedDisk[],
    log: Logger,
  ): Promise<LocalChanges> {
    const sizes: number[] = [];
    for (const [index, { device }] of disks.entries()) {
      const { sizeBytes } = device.info;
      const known = await DirtyMapFile.diskSizeBytes(directory, dirtyMapName(index));
      sizes.push(Math.min(known ?? sizeBytes, sizeBytes));
    }
    const opened = await openDirtyMaps(directory, disks, log, sizes);
    const maps = new Map<string, DirtyMap>();
    for (const [index, map] of opened.entries()) {
      const disk = disks[index];
      if (disk !== undefined) maps.set(disk.name, map);
    }
    return new LocalChanges(maps, disks);
  }

  /** Removes the maps of a node that has nothing of its own. */
  static async forget(directory: StateDirectory, disks: readonly NamedDisk[]): Promise<void> {
    const files = await directory.list();
    for (const disk of disks.keys()) {
      if (files.includes(dirtyMapName(disk))) await directory.remove(dirtyMapName(disk));
    }
  }

  /** Whether a map could not be written: what it tells is known in this life of the node, and by nobody after it is closed. */
  get isBroken(): boolean {
    return [...this.#maps.values()].some((map) => map.isBroken);
  }

  /** The tenure that all maps tell of, or null. */
  get tenure(): string | null {
    const [first = null, ...others] = [...this.#maps.values()].map(({ tenure }) => tenure);
    return others.every((tenure) => tenure === first) ? first : null;
  }

  get bytes(): number {
    return [...this.#maps.values()].reduce((sum, { missedBytes }) => sum + missedBytes, 0);
  }

  /** With what is new of a disk, from the block on in which it ended. */
  ranges(): ChangedRanges {
    return Object.fromEntries(
      [...this.#maps].map(([name, map]) => {
        const runs = map.missedRuns(MAX_RUNS);
        const end = this.#sizes.get(name) ?? map.sizeBytes;
        const start = map.sizeBytes - (map.sizeBytes % DIRTY_BLOCK_BYTES);
        return [name, end === map.sizeBytes ? runs : [...runs, [start, end - start] as const]];
      }),
    );
  }

  /** Exact, unlike ranges(), which merges close ones. */
  summary(): ChangesSummary {
    return summaryOf(this.#maps);
  }

  async close(): Promise<void> {
    for (const map of this.#maps.values()) await map.close();
  }
}
