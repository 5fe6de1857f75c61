/**
 * The exports of a secondary's disks: each by its name, for anybody, and by another one that is not listed, for the primary that
 * introduced itself (writerExport()).
 */
import { ExportTable, type NbdExport } from "../nbd/server/exports.js";
import { writerExport } from "../replication/protocol.js";
import type { Secondary } from "../replication/secondary/secondary.js";
import type { SecondaryDisk } from "../replication/secondary/disk.js";

export interface ExportedDisk {
  readonly isWritable: boolean;
  /** For clients; null: that it is a replica. */
  readonly description: string | null;
}

export class ReplicationExports extends ExportTable {
  readonly #secondary: () => Secondary | null;
  readonly #ofSession = new Map<string, NbdExport>();

  /** @param secondary null: there is none yet, nor an export */
  constructor(secondary: () => Secondary | null) {
    super();
    this.#secondary = secondary;
  }

  /** @throws StateError export-exists */
  addDisk(disk: SecondaryDisk, name: string, how: ExportedDisk): void {
    this.add(this.#export(disk, name, how, false));
    this.#ofSession.set(name, this.#export(disk, name, how, true));
  }

  override remove(name: string): boolean {
    this.#ofSession.delete(name);
    return super.remove(name);
  }

  /** By that name, for anybody. */
  has(name: string): boolean {
    return this.list().some((exported) => exported.name === name);
  }

  override get(name: string): NbdExport | undefined {
    return super.get(name) ?? this.#findOfSession(name);
  }

  #findOfSession(name: string): NbdExport | undefined {
    const writer = this.#secondary()?.tracker.writer ?? null;
    if (writer === null) return undefined;
    return [...this.#ofSession.values()].find((exported) => writerExport(exported.name, writer) === name);
  }

  #export(disk: SecondaryDisk, name: string, how: ExportedDisk, isOfSession: boolean): NbdExport {
    const { isWritable, description } = how;
    return {
      name,
      description: description ?? `replica of disk ${disk.name}`,
      readOnly: !isWritable,
      device: disk.replicationExport,
      refusal: () => this.#secondary()?.exportRefusal() ?? null,
      connected: ({ peer }) => {
        // No writer can be lost where nobody may write.
        if (!isWritable && !isOfSession) return {};
        const observer = this.#secondary()?.tracker.observe(peer, isOfSession, (refusal) => {
          if (refusal === null) this.#secondary()?.written(disk, isOfSession ? null : peer);
        });
        return observer ?? {};
      },
    };
  }
}
