/**
 * What a node changed by itself while it was a primary, and has to give up as a secondary: its dirty maps from then, as long as
 * the new primary has not resynced it.
 */
import type { Logger } from "pino";
import { type DirtyMap, dirtyMapName } from "../../block/dirty-map.js";
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

  private constructor(maps: ReadonlyMap<string, DirtyMap>) {
    this.#maps = maps;
  }

  /** @throws MetadataError if a map can't be trusted */
  static async open(
    directory: StateDirectory,
    disks: readonly NamedDisk[],
    log: Logger,
  ): Promise<LocalChanges> {
    const opened = await openDirtyMaps(directory, disks, log);
    const maps = new Map<string, DirtyMap>();
    for (const [index, map] of opened.entries()) {
      const disk = disks[index];
      if (disk !== undefined) maps.set(disk.name, map);
    }
    return new LocalChanges(maps);
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

  ranges(): ChangedRanges {
    return Object.fromEntries([...this.#maps].map(([name, map]) => [name, map.missedRuns(MAX_RUNS)]));
  }

  /** Exact, unlike ranges(), which merges close ones. */
  summary(): ChangesSummary {
    return summaryOf(this.#maps);
  }

  async close(): Promise<void> {
    for (const map of this.#maps.values()) await map.close();
  }
}
