/**
 * What only this node has, because it was a primary once or its data is of another history than its new primary's: what
 * of it is known, and that it is saved before it is given up.
 *
 * Invariants:
 * - Ranges are told as changed until the checkpoint that ends a new primary's resync is durable.
 * - From the metadata's `salvage` on, the before-images of that epoch are kept; a write whose before-image can't be is refused.
 */
import type { Logger } from "pino";
import { describeError } from "../../errors.js";
import type { SecondaryMetadata } from "../../meta/metadata.js";
import type { StateDirectory } from "../../meta/state-directory.js";
import type { ChangesSummary } from "../changes-summary.js";
import { type ChangedRanges, LocalChanges } from "./local-changes.js";
import type { MetadataKeeper } from "../metadata-keeper.js";
import { hiddenName } from "./epoch-files.js";
import { lastSalvage, salvageName } from "./salvage.js";
import type { NamedDisk } from "../named-disk.js";

export interface OwnDataParts {
  readonly directory: StateDirectory;
  readonly disks: readonly NamedDisk[];
  readonly metadata: MetadataKeeper<SecondaryMetadata>;
  readonly log: Logger;
}

export class OwnData {
  readonly #parts: OwnDataParts;
  /** What this node changed by itself, until a new primary has resynced it. */
  #changes: LocalChanges | null = null;
  /** Resolves when maps that tell nothing any more are gone. */
  #forgotten: Promise<void> = Promise.resolve();

  constructor(parts: OwnDataParts) {
    this.#parts = parts;
  }

  /** What this node changed by itself and knows of; null: it knows of nothing. */
  summary(): ChangesSummary | null {
    return this.#changes?.summary() ?? null;
  }

  /** The same by ranges, of which close ones are merged; empty: it knows of nothing. */
  changed(): ChangedRanges {
    return this.#changes?.ranges() ?? {};
  }

  /** Where what was given up last is saved, or null. */
  get salvage(): string | null {
    const { metadata, directory } = this.#parts;
    const { salvage } = metadata.current;
    return salvage === null ? null : `${directory.path}/${salvageName(salvage)}`;
  }

  /**
   * Finds what is known from an earlier life; the node is not promoted.
   * @param hasChangedRole whether the state directory was a primary's until now
   * @throws MetadataError if a dirty map can't be trusted
   */
  async open(hasChangedRole: boolean): Promise<void> {
    const { directory, disks, metadata, log } = this.#parts;
    await this.#findSalvage();
    if (!metadata.current.returning) return LocalChanges.forget(directory, disks);
    const changes = await LocalChanges.open(directory, disks, log);
    this.#changes = changes;
    const tellsNothing = changes.tenure === null || changes.isBroken;
    if (tellsNothing) await this.#forgetTenure();
    // Once: what is written to this node later by somebody else voids it.
    else if (hasChangedRole) await metadata.save({ tenure: changes.tenure });
    log.info({ bytes: changes.bytes }, "this node was a primary: what it changed by itself is known");
  }

  /**
   * Whether something that is this node's own is given up for a primary that introduces itself.
   * @param isReplica whether that has all that this node has, but for what is known as changed: then what was saved last is not to be
   * replaced by nothing, though what only this node has may be given up
   */
  isGivenUp(isReplica: boolean): boolean {
    return (this.#parts.metadata.current.discard && !isReplica) || (this.#changes?.bytes ?? 0) > 0;
  }

  /** Puts on record that the before-images of this epoch, which overwrites what is this node's own, are to be kept. */
  async keep(epoch: number): Promise<void> {
    const { metadata, log } = this.#parts;
    // All of it was overwritten in the epoch before, whose end is not on record yet: the primary has come back meanwhile.
    if (metadata.current.salvage === epoch || (await this.#isSaving())) return;
    await metadata.save({ salvage: epoch });
    log.warn({ path: this.salvage }, "local changes are given up, and saved when the resync is done");
  }

  /** Nothing was given up in this epoch: what was saved before is the last again. */
  async nothingSaved(epoch: number): Promise<void> {
    const { directory, metadata, log } = this.#parts;
    if (metadata.current.salvage !== epoch) return;
    await metadata.save({ salvage: lastSalvage(await directory.list()) });
    log.info("nothing was given up of what this node changed by itself");
  }

  /** The record does not outlive a change of roles, nor the file somebody who removes it. */
  async #findSalvage(): Promise<void> {
    const { directory, metadata } = this.#parts;
    if (await this.#isSaving()) return;
    const salvage = lastSalvage(await directory.list());
    if (metadata.current.salvage !== salvage) await metadata.save({ salvage });
  }

  /** Whether the before-images to be kept have the name of their epoch still. */
  async #isSaving(): Promise<boolean> {
    const { directory, metadata } = this.#parts;
    const { salvage } = metadata.current;
    return salvage !== null && (await directory.list()).includes(hiddenName(salvage));
  }

  /** A checkpoint is durable: if the new primary has resynced this node, its own changes are no more. */
  forgetIfGivenUp(): void {
    const { directory, disks, metadata, log } = this.#parts;
    const changes = this.#changes;
    if (changes === null || metadata.current.returning) return;
    this.#changes = null;
    this.#forgotten = changes
      .close()
      .then(() => LocalChanges.forget(directory, disks))
      .catch((error: unknown) => {
        log.warn({ error: describeError(error) }, "old dirty maps could not be removed");
      });
  }

  /** The maps are somebody else's from here on: of the primary that this node becomes. */
  async close(): Promise<void> {
    await this.#changes?.close();
    // Whatever it told, the primary that this node becomes finds a new map, which says that a replica lacks nothing.
    if (this.#changes?.isBroken === true) await this.#forgetTenure();
    this.#changes = null;
    // Else the old maps' removal, still under way, takes the new ones, which have the same names.
    await this.#forgotten;
  }

  /** No map of another node and of this one together tell any more in what they differ. */
  async #forgetTenure(): Promise<void> {
    await this.#parts.metadata.save({ tenure: null, offeredTenure: null });
  }
}
