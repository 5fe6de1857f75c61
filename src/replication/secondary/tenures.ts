/**
 * The names by which a secondary knows how far to trust a primary's dirty map (docs/adr/0001).
 *
 * Invariant: maps are trusted only if each has the name given at the last handshake; or the name before that, as long as nothing was
 * written since, because the answer with the newer name may have been lost. So neither side's state from before the last handshake,
 * restored from a backup, passes for the present one; one from after it has the name, and is known by its epoch.
 */
import { randomUUID } from "node:crypto";
import type { SecondaryMetadata } from "../../meta/metadata.js";
import type { MetadataKeeper } from "../metadata-keeper.js";

export class Tenures {
  readonly #metadata: MetadataKeeper<SecondaryMetadata>;

  constructor(metadata: MetadataKeeper<SecondaryMetadata>) {
    this.#metadata = metadata;
  }

  /** Whether these names, which a primary shows, are all of the time since which nobody else wrote. */
  areKnown(shown: readonly string[]): boolean {
    const { tenure, offeredTenure } = this.#metadata.current;
    return shown.length > 0 && shown.every((each) => each === tenure || each === offeredTenure);
  }

  /**
   * A primary shows the names that its dirty maps have: one, unless it ended in the middle of renaming them.
   * @param change what goes on record with it
   * @returns whether they tell all that this replica lacks, and the name from now on, which is on record
   */
  async renew(
    shown: readonly string[],
    change: Partial<SecondaryMetadata>,
  ): Promise<{ readonly isKnown: boolean; readonly tenure: string }> {
    const { tenure, offeredTenure } = this.#metadata.current;
    const [name = null, ...others] = shown;
    const isKnown = this.areKnown(shown);
    // It ended while it renamed its maps to the offered name, before it wrote anything: the older name is the present one, and the
    // other one is offered again, for it may end once more before it has renamed the first.
    const isRenaming = isKnown && others.length > 0;
    const kept = isRenaming ? tenure : name;
    const offered = (isRenaming ? offeredTenure : null) ?? randomUUID();
    await this.#metadata.save({ ...change, tenure: isKnown ? kept : null, offeredTenure: offered });
    return { isKnown, tenure: offered };
  }

  /** The primary writes: it has the new name. @returns null: that is on record; else resolves when it is */
  confirm(): Promise<void> | null {
    const { tenure, offeredTenure } = this.#metadata.recorded;
    return offeredTenure === null || tenure === offeredTenure
      ? null
      : this.#metadata.saveSoon({ tenure: offeredTenure });
  }

  /**
   * Somebody writes who has no dirty map: no map tells what this replica lacks.
   * @param change what goes on record with it; null: nothing
   * @returns null: that is on record; else resolves when it is
   */
  forget(change: Partial<SecondaryMetadata> | null = null): Promise<void> | null {
    const { tenure, offeredTenure } = this.#metadata.recorded;
    const isForgotten = tenure === null && offeredTenure === null;
    if (isForgotten && change === null) return null;
    return this.#metadata.saveSoon({ ...change, tenure: null, offeredTenure: null });
  }
}
